"""What a forward leaves behind, and values that are not plain real parameters: buffers, counters, caches, complex numbers, lookup tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, initialize, normal, nothing_changes
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import deepzero as dz
from deepzero.errors import InvalidInputError
from deepzero.writes import WriteNoticed, WriteWatch, copied

X, Y = normal(6, 4), torch.tensor([0, 1, 2, 1, 0, 2])
TOKENS = torch.tensor([[1, 2, 0], [3, 0, 0], [2, 1, 4], [0, 0, 0], [1, 1, 1], [4, 2, 3]])

pytestmark = pytest.mark.filterwarnings("ignore::deepzero.errors.SlowQueriesWarning")

WAYS: dict[str, Callable[..., dz.Estimator]] = {
    "cge": dz.CGE,
    "cge one by one": lambda model, **options: dz.CGE(model, evaluator="sequential", **options),
    "rge": lambda model, **options: dz.RGE(model, queries=3, **options),
    "rge one by one": lambda model, **options: dz.RGE(model, queries=3, evaluator="sequential", **options),
}
each_way = pytest.mark.parametrize("way", WAYS)


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor], **held: Any) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 3), function
        for name, value in held.items():
            if name.startswith("b_"):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def assigned(m: Any, x: Tensor) -> Tensor:
    m.b_n = m.b_n + 1
    return m.layer(x) * (1 + 0.1 * m.b_n)


def averaged(m: Any, x: Tensor) -> Tensor:
    output = m.layer(x)
    with torch.no_grad():
        m.b_mean.mul_(0.9).add_(output.mean(0), alpha=0.1)
    return output - m.b_mean


def averaged_data(m: Any, x: Tensor) -> Tensor:
    output = m.layer(x)
    m.b_mean.data = m.b_mean.data * 0.9 + output.mean(0).detach() * 0.1
    return output - m.b_mean


def grows(m: Any, x: Tensor) -> Tensor:
    output = m.layer(x)
    m.b_queue = torch.cat([m.b_queue, output.detach()])
    return output + 0 * m.b_queue.mean()


def counts(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    m.stats["calls"] += 2
    m.history.append(m.calls)
    return m.layer(x) / (1 + 0.1 * m.calls)


def carries(m: Any, x: Tensor) -> Tensor:
    """The state of a recurrent network between batches, as a plain attribute."""
    m.state = (m.layer(x) + (0 if m.state is None else m.state)).tanh().detach() * 0.5
    return m.layer(x) + m.state


def decays(m: Any, x: Tensor) -> Tensor:
    m.scale.mul_(0.9)
    return m.layer(x) * m.scale


def teacher(m: Any, x: Tensor) -> Tensor:
    """A frozen copy that follows the weights inside of the forward."""
    with torch.no_grad():
        m.slow.weight.mul_(0.9).add_(m.layer.weight, alpha=0.1)
    return m.layer(x) + m.slow(x)


def spectral() -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return parametrizations.spectral_norm(initialize(nn.Linear(4, 3)))


zeros = lambda *shape: torch.zeros(shape, dtype=torch.float64)  # noqa: E731
MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
    "batch norm, cumulative": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 3)),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)),
        nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
        nn.Flatten(),
        nn.Linear(4, 3),
    ),
    "spectral norm": spectral,
    "assigned": lambda: Net(assigned, b_n=zeros()),
    "averaged": lambda: Net(averaged, b_mean=zeros(3)),
    "averaged data": lambda: Net(averaged_data, b_mean=zeros(3)),
    "growing": lambda: Net(grows, b_queue=zeros(0, 3)),
    "counter": lambda: Net(counts, calls=0, stats={"calls": 0}, history=[]),
    "carried state": lambda: Net(carries, state=None),
    "plain tensor in place": lambda: Net(decays, scale=torch.ones(3).double()),
    "teacher": lambda: Net(teacher, slow=nn.Linear(4, 3).requires_grad_(False)),
}


def left_behind(model: nn.Module) -> dict[str, Any]:
    """Buffers, frozen parameters and attributes."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    plain = {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in module.__dict__.items()
        if isinstance(value, (int, float, Tensor)) or name in ("stats", "history")
    }
    return {**dict(model.named_buffers()), **frozen, **plain}


@each_way
@pytest.mark.parametrize("name", MODELS)
def test_a_step_leaves_what_one_training_forward_leaves(name: str, way: str) -> None:
    model, twin = initialize(MODELS[name]()), initialize(MODELS[name]())
    zo = WAYS[way](model, loss=F.cross_entropy)
    for _ in range(3):
        loss = zo.backward(X, Y)
        expected = F.cross_entropy(twin(X), Y).detach()
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        found = left_behind(model)
        for key, value in left_behind(twin).items():
            torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["cge", "rge one by one"])
@pytest.mark.parametrize("name", MODELS)
def test_an_estimate_leaves_nothing(name: str, way: str) -> None:
    model = initialize(MODELS[name]())
    model.requires_grad_()
    if hasattr(model, "slow"):
        model.slow.requires_grad_(False)
    before = {n: v.clone() if isinstance(v, Tensor) else repr(v) for n, v in left_behind(model).items()}
    with nothing_changes(model):
        WAYS[way](model, loss=F.cross_entropy).estimate(X, Y)
    after = left_behind(model)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value) if isinstance(value, Tensor) else repr(after[key]) == value


class Centred(nn.Module):
    """DINO's loss: a buffer of the criterion follows the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", zeros(3))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output - self.center, target)
        self.center = self.center * 0.9 + output.detach().mean(0) * 0.1
        return loss


@each_way
def test_buffers_of_a_criterion(way: str) -> None:
    (model, loss), (twin, twins) = ((initialize(nn.Linear(4, 3)), Centred()) for _ in range(2))
    zo = WAYS[way](model, loss=loss)
    for _ in range(2):
        assert float(zo.backward(X, Y)) == pytest.approx(float(twins(twin(X), Y).detach()), rel=1e-12)
        torch.testing.assert_close(loss.center, twins.center, rtol=1e-12, atol=1e-12)


@each_way
def test_buffers_that_share_memory_and_nobody_writes(way: str) -> None:
    model = initialize(Net(lambda m, x: m.layer(x) + m.b_row, b_row=torch.arange(3.0).double()[None].expand(6, 3)))
    with nothing_changes(model):
        WAYS[way](model, loss=F.cross_entropy).backward(X, Y)
        model.zero_grad()
    assert model.b_row.stride() == (0, 1)


@each_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cache_stays_in_the_model_s_dtype(way: str, dtype: torch.dtype) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        if m.table is None:
            m.table = torch.linspace(0, 1, 3, dtype=x.dtype)
        return m.layer(x) + m.table

    model = initialize(Net(forward, table=None), dtype=dtype)
    WAYS[way](model, loss=F.cross_entropy).backward(X.to(dtype), Y)
    assert model(X.to(dtype)).dtype == dtype
    assert model.table.dtype == dtype


WAYS_COMPLEX = {**WAYS, "cge in batches": lambda model, **options: dz.CGE(model, evaluator="batched", **options)}


class TestComplex:
    """A complex parameter counts as its real and imaginary coordinates; the gradient is in PyTorch's convention."""

    @staticmethod
    def rotated() -> nn.Module:
        model = initialize(
            Net(lambda m, x: torch.view_as_real(torch.view_as_complex(m.layer(x)[:, :2].contiguous()) * m.turn))
        )
        model.turn = nn.Parameter(torch.tensor([0.6 - 0.8j], dtype=torch.complex128))
        return model

    @staticmethod
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output * torch.tensor([1.0, -0.5]).double()).square().mean()

    @each_way
    def test_parameters(self, way: str) -> None:
        model = self.rotated()
        zo = WAYS_COMPLEX[way](model, loss=self.loss, step_size=1e-6)
        with nothing_changes(model):
            found = zo.estimate(X, Y).gradients
        expected = dict(
            zip(
                found,
                torch.autograd.grad(self.loss(model(X), Y), [dict(zo.objective.named_parameters())[n] for n in found]),
                strict=True,
            )
        )
        assert found["turn"].dtype == torch.complex128
        if way.startswith("rge"):
            directions = zo.probes.draw(dz.coordinates.StepContext(0, 0, zo.objective, (X, Y), {}))
            along = {name: torch.zeros_like(g) for name, g in expected.items()}
            for k in range(3):
                u = directions.direction(k)
                u = {
                    name: torch.view_as_complex(part) if expected[name].is_complex() else part
                    for name, part in u.items()
                }
                slope = sum(float((u[name].conj() * g).sum().real) for name, g in expected.items())
                for name in along:
                    along[name] += slope * u[name] / 3
            expected = along
        assert_close(found, expected, 1e-4)

    def test_an_optimizer_takes_the_gradient(self) -> None:
        model = self.rotated()
        zo = dz.CGE(model, loss=self.loss)
        before = model.turn.detach().clone()
        zo.backward(X, Y)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        torch.testing.assert_close(model.turn.detach(), before - 0.1 * model.turn.grad)
        assert model.turn.grad.imag.abs() > 1e-3

    @pytest.mark.parametrize("way", [*WAYS, "cge in batches"])
    def test_intermediate_values(self, way: str) -> None:
        """One by one or in batches, the real and imaginary parts of what lies between are moved alike."""
        model = initialize(nn.Linear(4, 3))
        spectrum = lambda m, x: torch.fft.fft(m(x)).abs().square().mean()  # noqa: E731
        plain = lambda m, x: 3 * m(x).square().mean()  # noqa: E731 - Parseval
        found, expected = (WAYS_COMPLEX[way](model, closure=c).estimate(X).gradients for c in (spectrum, plain))
        assert_close(found, expected, 1e-6)

    def test_masks_choose_real_and_imaginary_parts(self) -> None:
        """A mask has the parts along a last dimension."""
        model = self.rotated()
        mask = torch.tensor([[False, True]])
        found = dz.CGE(model, loss=self.loss, sparsity={"turn": mask}, step_size=1e-6).estimate(X, Y).gradients["turn"]
        (exact,) = torch.autograd.grad(self.loss(model(X), Y), [model.turn])
        assert float(found.real) == 0.0
        assert float(found.imag) == pytest.approx(float(exact.imag), rel=1e-4)
        with pytest.raises(InvalidInputError, match=r"mask of turn must have shape \(1, 2\), got \(1,\)"):
            dz.CGE(model, loss=self.loss, sparsity={"turn": torch.tensor([True])}).estimate(X, Y)


class Lookup(nn.Module):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.bag = kind == "bag"
        self.table = (nn.EmbeddingBag if self.bag else nn.Embedding)(5, 4, **options)
        self.head = nn.Linear(4, 5 if kind.startswith("tied") else 3)
        self.kind = kind
        if kind == "tied":
            self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens) if self.bag else self.table(tokens).mean(1)
        return F.linear(h, self.table.weight, self.head.bias) if self.kind == "tied by hand" else self.head(h)


@each_way
class TestTables:
    @pytest.mark.parametrize(
        ("kind", "options"),
        [("plain", {}), ("bag", {"mode": "mean"}), ("bag", {"mode": "sum"})],
        ids=["plain", "mean", "sum"],
    )
    def test_the_padding_row_has_no_gradient(self, way: str, kind: str, options: dict[str, Any]) -> None:
        model = initialize(Lookup(kind, padding_idx=0, **options))
        zo = WAYS[way](model, loss=F.cross_entropy, step_size=1e-6)
        found = zo.estimate(TOKENS, Y).gradients
        assert not found["table.weight"][0].any()
        assert found["table.weight"][1:].any()
        if way.startswith("cge"):
            exact = torch.autograd.grad(F.cross_entropy(model(TOKENS), Y), list(model.parameters()))
            assert_close(found, dict(zip(found, exact, strict=True)), 1e-4)

    @pytest.mark.parametrize("kind", ["tied", "tied by hand"])
    def test_a_table_that_is_an_output_layer_too_keeps_its_gradient(self, way: str, kind: str) -> None:
        """It is the function's: the row moves the output by the product as well as by the lookup."""
        model, open_ = initialize(Lookup(kind, padding_idx=0)), initialize(Lookup(kind))
        found, expected = (
            WAYS[way](m, loss=F.cross_entropy, step_size=1e-6).estimate(TOKENS, Y).gradients for m in (model, open_)
        )
        assert expected["table.weight"][0].any()
        assert_close(found, expected, 1e-9)

    @pytest.mark.parametrize("mode", ["mean", "sum", "max"])
    def test_bags(self, way: str, mode: str) -> None:
        model = initialize(Lookup("bag", mode=mode))
        found = WAYS[way](model, loss=F.cross_entropy, step_size=1e-6).estimate(TOKENS, Y).gradients
        oracle = (
            WAYS[way.split(maxsplit=1)[0] + " one by one"](model, loss=F.cross_entropy, step_size=1e-6)
            .estimate(TOKENS, Y)
            .gradients
        )
        assert_close(found, oracle, 1e-4)

    @pytest.mark.parametrize("kind", ["plain", "bag"])
    def test_evaluations_do_not_clip_the_user_s_table(self, way: str, kind: str) -> None:
        """One warning; the gradient is that of the clipped table's function at the table as it is."""
        model = initialize(Lookup(kind, max_norm=0.5))
        assert float(model.table.weight.detach().norm(dim=1).max()) > 0.6
        clipped = initialize(Lookup(kind))

        def closure(m: Any, tokens: Tensor, y: Tensor) -> Tensor:
            norms = m.table.weight.norm(dim=1, keepdim=True)
            table = torch.where(norms > 0.5, m.table.weight * 0.5 / (norms + 1e-7), m.table.weight)
            return F.cross_entropy(m.head(F.embedding(tokens, table).mean(1)), y)

        zo = WAYS[way](model, loss=F.cross_entropy, step_size=1e-6)
        with (
            nothing_changes(model),
            pytest.warns(dz.WrittenParameterWarning, match=r"writes into its parameter table.weight.*works on a copy"),
        ):
            found = zo.estimate(TOKENS, Y).gradients
        with warnings.catch_warnings():
            warnings.simplefilter("error", dz.WrittenParameterWarning)
            again = zo.estimate(TOKENS, Y).gradients
        assert_close(again, found, 0)
        assert_close(found, WAYS[way](clipped, closure=closure, step_size=1e-6).estimate(TOKENS, Y).gradients, 1e-4)


class TestWrites:
    def test_reading_is_allowed(self) -> None:
        weight = torch.ones(2, 2)
        with WriteWatch({"weight": weight}) as watch:
            assert float((weight @ weight).sum()) == 8.0
        assert watch.multiplied == {"weight"}

    @pytest.mark.parametrize(
        "write",
        [
            lambda w: w.add_(1),
            lambda w: w[0].zero_(),
            lambda w: w.t()[0].fill_(3),
            lambda w: w.detach().mul_(2),
            lambda w: w.__setitem__((0, 0), 5.0),
            lambda w: torch.add(w, 1, out=w),
            lambda w: torch._foreach_add_([torch.zeros(1), w], 1.0),
            lambda w: w.copy_(torch.zeros(2, 2)),
        ],
    )
    def test_a_write_is_noticed_before_it_is_done(self, write: Callable[[Tensor], Any]) -> None:
        weight = torch.ones(2, 2)
        with pytest.raises(WriteNoticed, match="weight"), WriteWatch({"weight": weight, "empty": torch.zeros(0)}):
            write(weight)
        assert torch.equal(weight, torch.ones(2, 2))

    @pytest.mark.parametrize(
        "tensor",
        [
            normal(3, 4),
            normal(3, 4).t(),
            normal(6, 4)[::2],
            normal(2, 3, 4, 4).to(memory_format=torch.channels_last),
            torch.ones(2, 2).to_sparse(),
        ],
    )
    def test_copies_have_the_same_strides(self, tensor: Tensor) -> None:
        made = copied(tensor)
        assert torch.equal(made.to_dense(), tensor.to_dense())
        if tensor.layout == torch.strided:
            assert made.stride() == tensor.stride()
            assert made.data_ptr() != tensor.data_ptr()

    def test_what_overlaps_itself_cannot_be_written_into(self) -> None:
        expanded = torch.ones(1, 3).expand(2, 3)
        assert copied(expanded) is expanded
        with pytest.raises(RuntimeError, match="single memory location"):
            expanded.add_(1)
