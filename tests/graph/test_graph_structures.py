"""Whole networks: tied weights, residuals, branches, modules called twice, frozen and unused parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from oracle import STEP, assert_agrees, assert_close, initialize, normal, seeded, some_coordinates
from torch import Tensor, nn

import deepzero as dz
from deepzero.graph.rules.convolved_tail import convolved_tail
from deepzero.graph.rules.normalization import batch_norm_relu

IMAGES = normal(4, 2, 6, 6, seed=3)
ROWS = normal(5, 6, seed=4)
LABELS = torch.tensor([0, 2, 1, 1])


class Network(nn.Module):
    """A module from a function and its parts."""

    def __init__(self, function: Callable[[Network, Tensor], Tensor], /, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(inputs: int = 3, outputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def head() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))


def residual_block(stride: int = 1) -> Network:
    return Network(
        lambda m, x: F.relu(m.n2(m.b(F.relu(m.n1(m.a(x))))) + (x if stride == 1 else m.short(x))),
        a=nn.Conv2d(3, 3, 3, stride=stride, padding=1),
        n1=nn.BatchNorm2d(3),
        b=conv(),
        n2=nn.BatchNorm2d(3),
        short=nn.Sequential(nn.Conv2d(3, 3, 1, stride=stride), nn.BatchNorm2d(3)),
    )


def tied_convolutions() -> nn.Module:
    first, second = conv(), conv()
    second.weight = first.weight
    return nn.Sequential(conv(2), first, nn.Tanh(), second, nn.ReLU(), head())


def tied_norms() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    return nn.Sequential(conv(2), norm, nn.ReLU(), conv(), norm, nn.ReLU(), head())


def tied_with_pointwise() -> nn.Module:
    first, second = conv(), nn.Conv2d(3, 3, 3, groups=1, stride=2)
    second.weight = first.weight
    return nn.Sequential(conv(2), first, second, head())


STRUCTURES: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(conv(2), nn.BatchNorm2d(3), nn.ReLU(), conv(), nn.BatchNorm2d(3), nn.ReLU(), head()),
    "flatten": lambda: nn.Sequential(conv(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3)),
    "dropout": lambda: nn.Sequential(conv(2), nn.Dropout(0.3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(108, 3)),
    "residual": lambda: nn.Sequential(conv(2), residual_block(), residual_block(2), head()),
    "preactivation": lambda: nn.Sequential(
        conv(2), Network(lambda m, x: x + m.c(F.relu(m.n(x))), n=nn.BatchNorm2d(3), c=conv()), nn.BatchNorm2d(3), nn.ReLU(), head()
    ),
    "option_a": lambda: nn.Sequential(
        Network(lambda m, x: F.relu(m.n(m.c(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))),
                c=nn.Conv2d(2, 4, 3, stride=2, padding=1), n=nn.BatchNorm2d(4)), nn.Conv2d(4, 3, 1), head()
    ),
    "both_sides_normalized": lambda: nn.Sequential(
        Network(lambda m, x: F.relu(m.n(m.a(x)) + m.k(m.b(x))), a=conv(2), n=nn.BatchNorm2d(3), b=conv(2), k=nn.BatchNorm2d(3)), head()
    ),
    "sum_with_itself": lambda: nn.Sequential(conv(2), Network(lambda m, x: F.relu(m.n(x) + m.n(x)), n=nn.BatchNorm2d(3)), head()),
    "sum_with_its_input": lambda: nn.Sequential(conv(2), Network(lambda m, x: F.relu(x + m.n(x)), n=nn.BatchNorm2d(3)), head()),
    "norm_seen_twice": lambda: Network(
        lambda m, x: m.h(F.relu(m.n(m.c(x)))) + m.n(m.c(x)).mean((2, 3)), c=conv(2), n=nn.BatchNorm2d(3), h=head()
    ),
    "norm_output_reused": lambda: Network(lambda m, x: reuse(m, m.n(m.c(x))), c=conv(2), n=nn.BatchNorm2d(3), h=head()),
    "conv_output_reused": lambda: Network(lambda m, x: reuse_before(m, m.c(x)), c=conv(2), n=nn.BatchNorm2d(3), h=head()),
    "residual_parameter": lambda: Network(
        lambda m, x: m.h(F.relu(m.n(m.c(x)) + m.p)), c=conv(2), n=nn.BatchNorm2d(3), p=nn.Parameter(torch.ones(3, 1, 1)), h=head()
    ),
    "residual_gate": lambda: Network(
        lambda m, x: m.h(F.relu(m.n(m.c(x)) + m.c(x).mean((2, 3), keepdim=True))), c=conv(2), n=nn.BatchNorm2d(3), h=head()
    ),
    "residual_bigger": lambda: Network(
        lambda m, x: m.h(F.relu(m.n(m.c(x).mean((2, 3), keepdim=True)) + m.c(x))), c=conv(2), n=nn.BatchNorm2d(3), h=head()
    ),
    "residual_new_dimension": lambda: Network(
        lambda m, x: m.h(F.relu(m.n(m.c(x)) + m.c(x).unsqueeze(0).expand(2, -1, -1, -1, -1).sin()).mean(0)),
        c=conv(2), n=nn.BatchNorm2d(3), h=head(),
    ),
    "branches": lambda: Network(
        lambda m, x: m.h(torch.cat([m.a(x), F.max_pool2d(m.b(x), 3, 1, 1), m.c(F.silu(m.b(x)))], 1)),
        a=nn.Conv2d(2, 1, 1), b=conv(2, 1), c=conv(1, 1), h=head(),
    ),
    "squeeze_excite": lambda: nn.Sequential(
        conv(2), Network(lambda m, x: x * torch.sigmoid(m.l(x.mean((2, 3))))[:, :, None, None], l=nn.Linear(3, 3)), head()
    ),
    "shuffle": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ChannelShuffle(2), nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 3, 1), head()
    ),
    "separable": lambda: nn.Sequential(
        conv(2), nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), head()
    ),
    "called_twice": lambda: Network(lambda m, x: m.h(m.c(F.relu(m.c(m.a(x))))), a=conv(2), c=conv(), h=head()),
    "called_on_two_inputs": lambda: Network(lambda m, x: m.h(m.c(x) * m.c(x.flip(-1)).tanh()), c=conv(2), h=head()),
    "tied_convolutions": tied_convolutions,
    "tied_strides": tied_with_pointwise,
    "frozen_running_statistics": lambda: nn.Sequential(conv(2), nn.BatchNorm2d(3).eval(), nn.ReLU(), conv(), nn.BatchNorm2d(3), head()),
    "layer_scale": lambda: nn.Sequential(conv(2), Network(lambda m, x: x + m.s * F.gelu(m.c(x)), s=nn.Parameter(torch.tensor(0.1)), c=conv()), head()),
    "weight_norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv(2)), nn.ReLU(), head()),
    "hypernetwork": lambda: Network(
        lambda m, x: m.h(F.conv2d(x, m.g(x.mean((0, 2, 3))).reshape(3, 2, 1, 1))), g=nn.Linear(2, 6), h=head()
    ),
    "quantized": lambda: Network(
        lambda m, x: m.h(torch.sign(F.conv2d(x, torch.round(2 * m.w) / 2, padding=1))) + m.h(F.conv2d(x, m.w)),
        w=nn.Parameter(torch.zeros(3, 2, 3, 3)), h=head(),
    ),
}  # fmt: skip


def reuse(model: Network, normalized: Tensor) -> Tensor:
    return model.h(F.relu(normalized)) + normalized.mean((2, 3))


def reuse_before(model: Network, raw: Tensor) -> Tensor:
    return model.h(F.relu(model.n(raw))) + raw.square().mean((2, 3))


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure(name: str) -> None:
    model = initialize(STRUCTURES[name]())
    assert_agrees(model, F.cross_entropy, IMAGES, LABELS, sparsity=some_coordinates(model, most=30))


def test_one_norm_object_in_two_places_cannot_be_exported() -> None:
    """A limit of torch.export: the default evaluator finds another way, and says so."""
    model = initialize(tied_norms())
    options = {"loss": F.cross_entropy, "step_size": STEP, "sparsity": some_coordinates(model, most=4)}
    expected = dz.CGE(model, evaluator="sequential", **options).estimate(IMAGES, LABELS)
    with pytest.warns(dz.SlowQueriesWarning, match="cannot be exported"):
        found = dz.CGE(model, **options).estimate(IMAGES, LABELS)
    assert_close(found.gradients, expected.gradients)


class Block(nn.Module):
    """A transformer block on ``[B, T, 6]``."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in self.qkv(self.n1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.n2(x))))


class TinyLanguageModel(nn.Module):
    """The output matrix is the embedding table."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, 6), nn.Parameter(torch.zeros(5, 6))
        self.block, self.norm = Block(), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.block(self.tokens(x) + self.places)) @ self.tokens.weight.t()).transpose(1, 2)


def test_transformer_with_tied_embeddings() -> None:
    tokens = torch.randint(0, 7, (3, 5), generator=seeded(2))
    model = initialize(TinyLanguageModel())
    assert_agrees(model, F.cross_entropy, tokens, tokens.roll(-1, 1), sparsity=some_coordinates(model, most=12))


@pytest.mark.parametrize("train", [True, False])
def test_torch_transformer_layer(train: bool) -> None:
    model = nn.Sequential(
        nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True, norm_first=True), nn.Flatten()
    )
    initialize(model).train(train)
    assert_agrees(model, F.mse_loss, normal(2, 5, 6), normal(2, 30, seed=8), sparsity=some_coordinates(model, most=8))


def test_recurrent_weights_are_used_at_every_step() -> None:
    def roll_out(m: Network, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 3, dtype=x.dtype)
        for step in range(3):
            state = torch.tanh(m.i(x[:, step : step + 2]) + m.r(state))
        return state

    model = initialize(Network(roll_out, i=nn.Linear(2, 3), r=nn.Linear(3, 3)))
    assert_agrees(model, F.mse_loss, ROWS, normal(5, 3, seed=6))


def test_central_stencil() -> None:
    model = initialize(STRUCTURES["residual"]())
    assert_agrees(model, F.cross_entropy, IMAGES, LABELS, sparsity=some_coordinates(model, most=6), stencil=dz.CENTRAL)


def test_large_steps_are_exact_too() -> None:
    model = initialize(STRUCTURES["plain"]())
    assert_agrees(model, F.cross_entropy, IMAGES, LABELS, sparsity=some_coordinates(model, most=10), step_size=3.0)


def test_frozen_parameters_have_no_gradient() -> None:
    model = initialize(STRUCTURES["plain"]())
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    found = assert_agrees(model, F.cross_entropy, IMAGES, LABELS)
    assert {"0.weight", "1.bias"}.isdisjoint(found.gradients)
    dz.CGE(model, loss=F.cross_entropy).backward(IMAGES, LABELS)
    assert model[0].weight.grad is None
    assert model[0].bias.grad is not None


def test_unused_parameters_have_zero_gradient() -> None:
    model = initialize(Network(lambda m, x: m.used(x), used=nn.Linear(6, 3), unused=nn.Linear(6, 3)))
    found = assert_agrees(model, F.mse_loss, ROWS, normal(5, 3, seed=6))
    assert not found.gradients["unused.weight"].any()
    assert found.gradients["used.weight"].all()


def test_a_parameter_may_be_the_output() -> None:
    model = Network(lambda m, x: m.p, p=nn.Parameter(normal(2, 3)))
    assert_agrees(model, F.mse_loss, ROWS, normal(2, 3, seed=6))


def test_scalar_parameters() -> None:
    model = initialize(Network(lambda m, x: m.s * m.l(x) + m.s, s=nn.Parameter(torch.tensor(1.0)), l=nn.Linear(6, 3)))
    assert_agrees(model, F.mse_loss, ROWS, normal(5, 3, seed=6))


@pytest.mark.parametrize(
    ("batch", "function"),
    [
        ({"v": torch.ones(3).double(), "u": ROWS}, lambda m, x: m.l(x["u"]) * x["v"]),
        ((ROWS, 2.0), lambda m, x: m.l(x[0]) * x[1]),
        ((ROWS, None), lambda m, x: m.l(x[0])),
        ([ROWS, ROWS.square()], lambda m, x: m.l(x[0]) + m.l(x[1])),
    ],
    ids=["dict", "number", "none", "list"],
)
def test_batches_of_any_structure(batch: object, function: Callable[..., Tensor]) -> None:
    model = initialize(Network(function, l=nn.Linear(6, 3)))
    assert_agrees(model, F.mse_loss, batch, normal(5, 3, seed=6))


def test_a_loss_without_a_target() -> None:
    model = initialize(nn.Linear(6, 3))
    assert_agrees(model, lambda output, _: output.square().mean(), ROWS, None)


def test_losses_per_sample_are_averaged() -> None:
    model = initialize(nn.Linear(6, 3))
    target = torch.tensor([0, 1, 2, 1, 0])
    each = assert_agrees(model, lambda o, t: F.cross_entropy(o, t, reduction="none"), ROWS, target)
    mean = assert_agrees(model, F.cross_entropy, ROWS, target)
    assert_close(each.gradients, mean.gradients)


def test_channels_last_parameters() -> None:
    plain = initialize(STRUCTURES["residual"]())
    other = initialize(STRUCTURES["residual"]()).to(memory_format=torch.channels_last)
    coordinates = some_coordinates(plain, most=10)
    expected = assert_agrees(plain, F.cross_entropy, IMAGES, LABELS, sparsity=coordinates)
    for images in (IMAGES, IMAGES.contiguous(memory_format=torch.channels_last)):
        found = assert_agrees(other, F.cross_entropy, images, LABELS, sparsity=coordinates)
        assert_close(found.gradients, expected.gradients)


@pytest.mark.parametrize("shape", [(1, 2, 6, 6), (2, 2, 4, 9), (3, 2, 3, 3)])
def test_shapes_of_the_batch(shape: tuple[int, ...]) -> None:
    model = initialize(STRUCTURES["residual"]())
    assert_agrees(
        model,
        F.cross_entropy,
        normal(*shape),
        LABELS[: shape[0]],
        sparsity=some_coordinates(model, most=6),
        step_size=STEP,
    )


def statistics_of_the_batch(kind: str) -> nn.Module:
    """Batch norm without running statistics, of channels or of single positions, under a relu."""

    def norm(x: Tensor) -> Tensor:
        flat = x.flatten(1) if kind == "positions" else x
        return F.relu(F.batch_norm(flat, None, None, training=True)).reshape(x.shape)

    return nn.Sequential(conv(2), Network(lambda m, x: norm(x)), conv(), Network(lambda m, x: norm(x)), head())


@pytest.mark.parametrize("kind", ["channels", "positions"])
def test_batch_norm_without_running_statistics_is_fused_with_its_relu(kind: str) -> None:
    model = initialize(statistics_of_the_batch(kind), seed=5)
    zo = dz.CGE(model, loss=F.cross_entropy)
    program = zo.evaluator.program(zo.objective, (IMAGES, LABELS))
    rules = [step.rule for step in program.cones["0.weight"].steps]
    assert rules.count(batch_norm_relu) + rules.count(convolved_tail) == 2
    assert rules.count(convolved_tail) == (2 if kind == "channels" else 0)
    assert_agrees(model, F.cross_entropy, IMAGES, LABELS)


def test_a_loss_that_reads_statistics_which_batch_norm_has_just_moved() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.norm(self.first(x)).relu()
            return self.last(hidden + self.norm.running_mean)

    assert_agrees(initialize(Reads()), F.cross_entropy, normal(5, 4), torch.tensor([0, 1, 2, 1, 0]))
