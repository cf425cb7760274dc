from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal
from sklearn.datasets import load_digits
from torch import Tensor, nn

from deepzero import baselines
from deepzero.baselines import LocalForwardGradient, WeightForwardGradient
from deepzero.errors import CheckpointError, InvalidInputError, NonFiniteLossError
from deepzero.models import LocalMixer, SimpleCNN, build

METHODS = ("fg-w", "lg-fg-a")
LABELS = torch.tensor([2, 0])
Gradients = dict[str, Tensor]


def mixer(**options: int) -> LocalMixer:
    sizes = {"blocks": 2, "patches": 2, "channels": 6, "groups": 3, "in_channels": 1, "num_classes": 3, "image_size": 4}
    model = LocalMixer(**{**sizes, **options})
    initialize(model)
    return model


def images(number: int = 2, channels: int = 1, size: int = 4) -> Tensor:
    return normal(number, channels, size, size, seed=3)


def mlp(dropout: float = 0.0) -> nn.Module:
    return initialize(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Tanh(), nn.Dropout(dropout), nn.Linear(3, 3, bias=False))
    )


def exact(model: nn.Module, loss: Tensor) -> Gradients:
    """Autograd's gradient, 0 where the loss does not depend on a parameter."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
    return dict(zip(names, gradients, strict=True))


def flat(gradients: Gradients, names: list[str] | None = None) -> Tensor:
    return torch.cat([gradients[name].reshape(-1) for name in names or gradients])


def gradients_of(source: Any, *batch: Tensor) -> Gradients:
    source.objective.model.zero_grad()
    source.backward(*batch)
    return {name: p.grad.clone() for name, p in source.objective.model.named_parameters()}


# Weight perturbation ------------------------------------------------------------------------------------------------

NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (mlp(), images()),
    "convolutions with batch norm": lambda: (initialize(SimpleCNN(depth=2, width=3, num_classes=3)), images(2, 3, 8)),
    "mixer": lambda: (mixer(), images()),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_estimate_is_the_directional_derivative_times_the_direction(network: str) -> None:
    model, x = NETWORKS[network]()
    source = WeightForwardGradient(model, loss=F.cross_entropy)
    u = {name: normal(*p.shape, seed=9) for name, p in model.named_parameters()}
    loss, found = source.along(x, LABELS, u)
    expected = F.cross_entropy(model(x), LABELS)
    gradient = exact(model, expected)
    slope = flat(gradient) @ flat(u)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(flat(found), slope * flat(u), rtol=1e-9, atol=1e-12)
    assert gradient.keys() == found.keys()
    assert abs(slope) > 1e-3


def test_the_sum_over_an_orthonormal_basis_is_the_gradient() -> None:
    model, x = mlp(), images()
    source = WeightForwardGradient(model, loss=F.cross_entropy)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]
    basis, _ = torch.linalg.qr(normal(sum(sizes), sum(sizes)))
    total = torch.zeros(sum(sizes), dtype=torch.float64)
    for direction in basis:
        parts = zip(shapes.items(), direction.split(sizes), strict=True)
        total += flat(source.along(x, LABELS, {name: part.reshape(shape) for (name, shape), part in parts})[1])
    torch.testing.assert_close(total, flat(exact(model, F.cross_entropy(model(x), LABELS))), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("passes", [50, 1000])
def test_the_squared_error_of_the_mean_is_d_plus_1_over_n(passes: int) -> None:
    """For standard normal u in d dimensions, E|(g.u) u - g|^2 = (d + 1) |g|^2."""
    model, x = mlp(), images()
    gradient = flat(exact(model, F.cross_entropy(model(x), LABELS)))
    source = WeightForwardGradient(model, loss=F.cross_entropy, passes=passes, seed=1)
    error = (flat(gradients_of(source, x, LABELS)) - gradient).square().sum() / gradient.square().sum()
    assert 0.6 < error * passes / (len(gradient) + 1) < 1.6
    assert source.queries == passes


def test_batch_norm_sees_the_batch_once_a_pass_and_its_statistics_carry_no_derivative() -> None:
    model, x = NETWORKS["convolutions with batch norm"]()
    twin, _ = NETWORKS["convolutions with batch norm"]()
    WeightForwardGradient(model, loss=F.cross_entropy).backward(x, LABELS)
    twin(x)
    for found, expected in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


class ForwardOnly(torch.autograd.Function):
    """The square, which cannot be differentiated backwards."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.x = inputs[0]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * ctx.x * tangent

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise AssertionError("something was propagated backwards")


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(ForwardOnly.apply(self.first(x.flatten(1))))


@pytest.mark.parametrize("readout", [None, "last"])
def test_nothing_is_propagated_backwards(readout: str | None) -> None:
    model = initialize(Squares())
    WeightForwardGradient(model, loss=F.cross_entropy, readout=readout).backward(images(), LABELS)
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_the_readout_gets_its_exact_gradient_times_the_ratio() -> None:
    model, x = mixer(), images()
    source = WeightForwardGradient(model, loss=F.cross_entropy, readout="head", readout_ratio=0.25)
    gradient = exact(model, F.cross_entropy(model(x), LABELS))
    u = source.draw(x)
    assert u.keys() == {name for name, _ in model.named_parameters() if not name.startswith("head.")}
    _, found = source.along(x, LABELS, u)
    slope = flat(gradient, list(u)) @ flat(u)
    expected = {name: slope * u[name] if name in u else 0.25 * value for name, value in gradient.items()}
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert not model.head._forward_hooks


@pytest.mark.parametrize(
    ("readout", "message"),
    [("fc", "not a module.*head"), ("", "not a module"), ("heads.0", "make the output"), ("blocks", "output")],
)
def test_a_readout_that_does_not_make_the_output_is_refused(readout: str, message: str) -> None:
    model = mixer()
    with pytest.raises(InvalidInputError, match=message):
        WeightForwardGradient(model, loss=F.cross_entropy, readout=readout).backward(images(), LABELS)
    assert all(p.grad is None for p in model.parameters())


def test_dropout_masks_follow_the_seed() -> None:
    model, x = mlp(dropout=0.5), images()
    losses = [float(WeightForwardGradient(model, loss=F.cross_entropy, seed=s).backward(x, LABELS)) for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


# Activity perturbation with local losses ----------------------------------------------------------------------------


def greedy_loss(model: LocalMixer, x: Tensor, y: Tensor, loss: Callable[..., Tensor]) -> Tensor:
    return sum(loss(logits, y) for logits in model.local_logits(x))


def noises(model: LocalMixer, x: Tensor, seed: int = 0) -> list[list[Tensor]]:
    seeds = iter(range(100 * seed, 100 * seed + 100))
    shape = (len(x), model.blocks[0](model.patchify(x)).shape[1], model.head.in_features)
    return [[normal(*shape, seed=next(seeds)) for _ in block.layers] for block in model.blocks]


def unit_vectors(noise: list[list[Tensor]]) -> Iterator[list[list[Tensor]]]:
    """Every standard basis vector of the space of the noise."""
    zeros = [[torch.zeros_like(u) for u in block] for block in noise]
    for block in zeros:
        for u in block:
            for index in range(u.numel()):
                u.view(-1)[index] = 1
                yield zeros
                u.view(-1)[index] = 0


@pytest.mark.parametrize("options", [{}, {"blocks": 3, "groups": 1, "patches": 1}], ids=["2/3", "1/1"])
def test_the_sum_over_a_basis_of_the_noise_is_the_gradient_of_the_local_losses(options: dict[str, int]) -> None:
    """The estimate is a quadratic form of the noise, so its mean is the sum over an orthonormal basis."""
    model, x, y = mixer(**options), images(1), LABELS[:1]
    source = LocalForwardGradient(model, loss=F.cross_entropy)
    gradient = exact(model, greedy_loss(model, x, y, F.cross_entropy))
    layers = [name for name in gradient if name.startswith("blocks.")]
    total = sum(flat(source.along(x, y, e)[1], layers) for e in unit_vectors(noises(model, x)))
    torch.testing.assert_close(total, flat(gradient, layers), rtol=1e-9, atol=1e-12)
    assert all(gradient[name].abs().max() > 1e-6 for name in layers if not name.endswith("0.fc.bias"))


def unit_loss(output: Tensor, head: nn.Linear, y: Tensor, loss: Callable[..., Tensor], unit: tuple[Any, ...]) -> Tensor:
    """The loss of a block's head, seen from one group of channels of one token of one sample."""
    mask = torch.zeros_like(output)
    mask[unit] = 1
    seen = mask * output + ((1 - mask) * output).detach()
    return loss(head(seen.mean(1)), y)


def by_definition(
    model: LocalMixer, x: Tensor, y: Tensor, noise: list[list[Tensor]], loss: Callable[..., Tensor]
) -> Gradients:
    """The estimate for the layers, by backpropagation and one group of one token of one sample after the other."""
    found, tokens, width = {}, model.patchify(x), model.head.in_features // model.groups
    for index, (block, head) in enumerate(zip(model.blocks, model.heads, strict=True)):
        zeros = [torch.zeros_like(u).requires_grad_() for u in noise[index]]
        states = block.states(tokens.detach(), zeros)
        estimates = [torch.zeros_like(u) for u in zeros]
        for n in range(len(x)):
            for p in range(tokens.shape[1]):
                for g in range(model.groups):
                    unit = (n, p, slice(g * width, (g + 1) * width))
                    local = unit_loss(states[-1], head, y, loss, unit)
                    gradients = torch.autograd.grad(local, zeros, retain_graph=True, allow_unused=True)
                    slope = sum((d * u).sum() for d, u in zip(gradients, noise[index], strict=True) if d is not None)
                    for layer, (estimate, u) in enumerate(zip(estimates, noise[index], strict=True)):
                        over_tokens = index > 0 and layer == 0
                        where = (n, p) if over_tokens else unit
                        estimate[where] += slope * u[where]
        for layer, (module, estimate) in enumerate(zip(block.layers, estimates, strict=True)):
            open_relu = (states[layer + 1] > 0).to(estimate.dtype)
            value = (module(states[layer].detach()) * estimate * open_relu).sum()
            for name, parameter in module.named_parameters():
                (gradient,) = torch.autograd.grad(value, parameter, retain_graph=True)
                found[f"blocks.{index}.layers.{layer}.{name}"] = gradient
        tokens = states[-1]
    return found


def smooth(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, label_smoothing=0.2)


@pytest.mark.parametrize("loss", [F.cross_entropy, smooth], ids=["cross-entropy", "smoothed"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_estimate_is_the_one_of_the_definition(loss: Callable[..., Tensor], seed: int) -> None:
    model, x = mixer(), images()
    noise = noises(model, x, seed)
    expected = by_definition(model, x, LABELS, noise, loss)
    _, found = LocalForwardGradient(model, loss=loss).along(x, LABELS, noise)
    torch.testing.assert_close(flat(found, list(expected)), flat(expected), rtol=1e-9, atol=1e-12)
    assert expected.keys() == {name for name in found if name.startswith("blocks.")}


def test_a_loss_that_couples_the_samples_is_taken_as_it_is() -> None:
    """Mean squared error to one-hot targets, weighted by the batch's own mean: no sum over samples."""

    def coupled(logits: Tensor, y: Tensor) -> Tensor:
        return (logits - logits.mean(0) - F.one_hot(y, 3)).square().mean()

    model, x = mixer(blocks=1), images()
    source = LocalForwardGradient(model, loss=coupled)
    gradient = exact(model, greedy_loss(model, x, LABELS, coupled))
    layers = [name for name in gradient if name.startswith("blocks.")]
    total = sum(flat(source.along(x, LABELS, e)[1], layers) for e in unit_vectors(noises(model, x)))
    torch.testing.assert_close(total, flat(gradient, layers), rtol=1e-9, atol=1e-12)


def test_the_error_of_the_mean_falls_as_one_over_the_root_of_the_passes() -> None:
    model, x = mixer(), images()
    gradient = exact(model, greedy_loss(model, x, LABELS, F.cross_entropy))
    layers = [name for name in gradient if name.startswith("blocks.")]

    def error(passes: int) -> float:
        source = LocalForwardGradient(model, loss=F.cross_entropy, passes=passes, seed=4)
        return float((flat(gradients_of(source, x, LABELS), layers) - flat(gradient, layers)).norm())

    few, many = error(10), error(160)
    assert 2.5 < few / many < 6.5  # 4 in the mean


def test_heads_get_the_exact_gradients_of_their_losses() -> None:
    model, x = mixer(), images()
    gradient = exact(model, greedy_loss(model, x, LABELS, F.cross_entropy))
    for options, final, local in [({}, 0.1, 1.0), ({"final_head_ratio": 2.0, "local_head_ratio": 0.5}, 2.0, 0.5)]:
        found = gradients_of(LocalForwardGradient(model, loss=F.cross_entropy, passes=2, **options), x, LABELS)
        for name in (name for name in gradient if name.startswith("head")):
            ratio = local if name.startswith("heads.") else final
            torch.testing.assert_close(found[name], ratio * gradient[name], rtol=1e-10, atol=1e-13)


def test_the_loss_is_that_of_the_network() -> None:
    model, x = mixer(), images()
    source = LocalForwardGradient(model, loss=F.cross_entropy, passes=3)
    expected = F.cross_entropy(model(x), LABELS).detach()
    torch.testing.assert_close(source.backward(x, LABELS), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("changed", ["blocks.1.", "heads.1.", "head."])
def test_what_comes_later_does_not_reach_an_earlier_block(changed: str) -> None:
    model, x = mixer(blocks=3), images()
    source, noise = LocalForwardGradient(model, loss=F.cross_entropy), noises(model, x)
    before = source.along(x, LABELS, noise)[1]
    with torch.no_grad():
        for parameter in (p for name, p in model.named_parameters() if name.startswith(changed)):
            parameter.add_(normal(*parameter.shape, seed=8))
    after = source.along(x, LABELS, noise)[1]
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(("blocks.0.", "heads.0."))} <= same
    assert not {f"{changed}weight", f"{changed}layers.1.fc.weight"} & same


def test_noise_of_one_block_does_not_reach_another() -> None:
    model, x = mixer(blocks=3), images()
    source, noise = LocalForwardGradient(model, loss=F.cross_entropy), noises(model, x)
    silent = [*noise[:1], [torch.zeros_like(u) for u in noise[1]], *noise[2:]]
    before, after = source.along(x, LABELS, noise)[1], source.along(x, LABELS, silent)[1]
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert differing == {name for name in before if name.startswith("blocks.1.")}
    assert not flat({name: after[name] for name in differing}).any()


@pytest.mark.parametrize("model", [mlp(), SimpleCNN(depth=1)], ids=["mlp", "cnn"])
def test_another_network_is_refused(model: nn.Module) -> None:
    with pytest.raises(InvalidInputError, match=r"lg-fg-a needs .*LocalMixer.*fg-w"):
        baselines.build("lg-fg-a", model, loss=F.cross_entropy)


# Both ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        *((method, "passes", value) for method in METHODS for value in (0, 1.5)),
        ("fg-w", "readout_ratio", 0.0),
        ("lg-fg-a", "final_head_ratio", -1.0),
        ("lg-fg-a", "local_head_ratio", float("nan")),
        ("lg-fg-a", "readout", "head"),
    ],
)
def test_bad_options_are_refused_by_name(method: str, option: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=option):
        baselines.build(method, mixer(), loss=F.cross_entropy, **{option: value})


@pytest.mark.parametrize("method", METHODS)
def test_the_draws_are_a_function_of_the_seed_and_the_step_and_the_global_generators_are_left_alone(
    method: str,
) -> None:
    model, x = mixer(), images()
    source = baselines.build(method, model, loss=F.cross_entropy, seed=5)
    first, second = gradients_of(source, x, LABELS), gradients_of(source, x, LABELS)
    state = torch.get_rng_state()
    again = gradients_of(baselines.build(method, model, loss=F.cross_entropy, seed=5), x, LABELS)
    other = gradients_of(baselines.build(method, model, loss=F.cross_entropy, seed=6), x, LABELS)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for different in (second, other):
        assert not torch.equal(flat(first), flat(different))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_the_callers_autograd_mode_does_not_matter(method: str, mode: Callable[[], Any]) -> None:
    model, x = mixer(), images()
    expected = gradients_of(baselines.build(method, model, loss=F.cross_entropy), x, LABELS)
    with mode():
        found = gradients_of(baselines.build(method, model, loss=F.cross_entropy), x, LABELS)
    assert all(torch.equal(expected[name], found[name]) and not found[name].requires_grad for name in expected)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parameters_get_no_gradient(method: str) -> None:
    model = mixer()
    model.blocks[0].requires_grad_(False)
    baselines.build(method, model, loss=F.cross_entropy).backward(images(), LABELS)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("blocks.0.")


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_leaves_no_gradient(method: str) -> None:
    model = mixer()
    source = baselines.build(method, model, loss=F.cross_entropy)
    with pytest.raises(NonFiniteLossError):
        source.backward(images() * torch.nan, LABELS)
    assert all(p.grad is None for p in model.parameters())
    assert (source.queries, source.step) == (0, 0)


def digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).reshape(-1, 1, 8, 8) / 8 - 1, torch.from_numpy(labels)


def steps(source: Any, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Iterator[Tensor]:
    while True:
        for batch in torch.arange(len(x)).split(50):
            optimizer.zero_grad()
            source.backward(x[batch], y[batch])
            optimizer.step()
            yield torch.cat([p.detach().reshape(-1) for p in source.objective.model.parameters()])


def learner(method: str, rate: float, **options: Any) -> tuple[Any, torch.optim.Optimizer]:
    sizes = {"blocks": 2, "patches": 1, "channels": 16, "groups": 4}
    model = build("local_mixer", in_channels=1, image_size=8, **sizes).double()
    return baselines.build(method, model, loss=F.cross_entropy, **options), torch.optim.SGD(model.parameters(), lr=rate)


def loss_after(number: int, source: Any, optimizer: torch.optim.Optimizer) -> float:
    x, y = digits()
    list(islice(steps(source, optimizer, x, y), number))
    with torch.no_grad():
        return float(F.cross_entropy(source.objective.model(x), y))


def test_training_with_weight_perturbation_lowers_the_loss() -> None:
    assert loss_after(0, *learner("fg-w", 2e-3)) == pytest.approx(2.3026, abs=1e-4)  # ln 10
    assert loss_after(300, *learner("fg-w", 2e-3)) < 2.27


def test_training_with_activity_perturbation_lowers_the_loss_and_not_by_the_heads_alone() -> None:
    source, optimizer = learner("lg-fg-a", 0.5, final_head_ratio=1.0)
    twin, of_twin = learner("lg-fg-a", 0.5, final_head_ratio=1.0)
    twin.objective.model.blocks.requires_grad_(False)
    learned, only_heads = loss_after(100, source, optimizer), loss_after(100, twin, of_twin)
    assert learned < only_heads - 0.3 < 1.6


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_goes_on_bitwise(method: str) -> None:
    x, y = (part[:100] for part in digits())
    source, optimizer = learner(method, 1e-2, passes=2)
    *_, expected = islice(steps(source, optimizer, x, y), 6)
    first, optimizer = learner(method, 1e-2, passes=2)
    list(islice(steps(first, optimizer, x, y), 2))
    second, optimizer = learner(method, 1e-2, passes=2)
    second.objective.model.load_state_dict(first.objective.model.state_dict())
    second.load_state_dict(first.state_dict())
    *_, found = islice(steps(second, optimizer, x, y), 4)
    assert torch.equal(found, expected)
    assert (second.queries, second.step) == (12, 6)
    with pytest.raises(CheckpointError):
        learner(method, 1e-2, seed=1)[0].load_state_dict(first.state_dict())
