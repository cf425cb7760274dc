"""Steps that take a variance in front of batch norm away, of which fused kernels would keep no digit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal
from torch import Tensor, nn

import deepzero as dz
from deepzero.coordinates import Coordinates
from deepzero.errors import NonFiniteLossError
from deepzero.graph import kernels, tails
from deepzero.graph.cpu import convolution_loops, row_loops

STEP = 0.5
LEFT = 1e-3
"""What a step leaves of a weight: a variance of 4e-6 times the old one, which float32 still holds to a few digits."""


def lonely(channels: int = 2, *, bias: bool = False) -> nn.Conv2d:
    """A convolution whose output channels are made of a single input channel each."""
    return nn.Conv2d(1, channels, 1, bias=bias)


def tail(channels: int, *parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), *parts, nn.Flatten(), nn.LazyLinear(3))


class Residual(nn.Module):
    """A block whose convolution of all channels meets a batch norm, a sum and a relu."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.before = lonely(), nn.Conv2d(1, 2, 1)
        self.norm, self.head = nn.BatchNorm2d(2), nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.first(x)) + self.before(x)).flatten(1))  # type: ignore[no-any-return]


class Behind(nn.Module):
    """A weight in front of a convolution: all of its output channels vanish, or shrink, together."""

    def __init__(self, *between: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.first, self.between, self.second = lonely(1), nn.Sequential(*between), nn.LazyConv2d(5, 3, padding=1)
        self.beside = nn.Sequential(nn.Conv2d(1, 5, 1), nn.BatchNorm2d(5)) if residual else None
        self.tail = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.second(self.between(self.first(x))))
        y = y if self.beside is None else y + self.beside(self.first(x))
        return self.tail(F.relu(y))  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: nn.Sequential(lonely(), tail(2)),
    "relu": lambda: nn.Sequential(lonely(), tail(2, nn.ReLU())),
    "bias": lambda: nn.Sequential(lonely(bias=True), tail(2, nn.ReLU())),
    "one channel": lambda: nn.Sequential(lonely(1), tail(1, nn.ReLU())),
    "maxima": lambda: nn.Sequential(lonely(), tail(2, nn.ReLU(), nn.MaxPool2d(2))),
    "overlapping maxima": lambda: nn.Sequential(lonely(), tail(2, nn.ReLU(), nn.MaxPool2d(3, 2, 1))),
    "mean": lambda: nn.Sequential(lonely(), tail(2, nn.ReLU(), nn.AdaptiveAvgPool2d(1))),
    "one place": lambda: nn.Sequential(lonely(), tail(2, nn.ReLU(), nn.MaxPool2d(4))),
    "residual": Residual,
    "a channel convolved": Behind,
    "all channels convolved": lambda: Behind(nn.Conv2d(1, 3, 3, padding=1)),
    "a convolution and a residual": lambda: Behind(residual=True),
    "depthwise": lambda: Behind(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)),
    "groups": lambda: nn.Sequential(lonely(), nn.Conv2d(2, 2, 1, groups=2), tail(2, nn.ReLU())),
}


def estimated(model: nn.Module, x: Tensor, evaluator: object, some: Sequence[int] | None = None) -> Tensor:
    """The gradient of the first layer's weights, or some, by the step that leaves next to nothing of them."""
    moved = first_weight(model)
    some = range(model.get_parameter(moved).numel()) if some is None else some
    names = [name for name, _ in model.named_parameters()]
    chosen = Coordinates({name: torch.tensor(some if name == moved else [], dtype=torch.int64) for name in names})
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=STEP, evaluator=evaluator, sparsity=chosen)
    return zo.estimate(x, torch.arange(len(x)) % 3).gradients[moved].flatten().double().cpu()


def first_weight(model: nn.Module) -> str:
    return next(name for name, _ in model.named_parameters() if name.endswith("weight"))


def shrinking(name: str, x: Tensor) -> nn.Module:
    """A network whose first weights are all but the step."""
    model = NETWORKS[name]().to(x.dtype)
    model(x)
    initialize(model, dtype=x.dtype)
    with torch.no_grad():
        model.get_parameter(first_weight(model)).fill_(LEFT - STEP)
    return model


def close(found: Tensor, expected: Tensor) -> None:
    """What is left of float32 numbers that shrink by 500 has a few digits less than they."""
    worst, largest = float((found - expected).abs().max()), float(expected.abs().max())
    assert worst <= 4e-3 * largest + 3e-5, f"off by {worst:.3g}, the largest is {largest:.3g}"


@pytest.mark.parametrize(("batch", "side"), [(33, 8), (5, 8), (18, 4), (33, 24)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_variance_of_which_next_to_nothing_is_left(name: str, batch: int, side: int) -> None:
    """By kernels in float32 as by forwards in float64; of inputs so large that eps is nothing to what is left."""
    x = 1e3 * normal(batch, 1, side, side, dtype=torch.float32)
    model = shrinking(name, x)
    found = estimated(model, x, dz.PropagationEvaluator(workers=1, verify=False))
    close(found, estimated(model.double(), x.double(), dz.SequentialEvaluator()))


def test_along_a_random_direction() -> None:
    x = 1e3 * normal(33, 1, 8, 8, dtype=torch.float32)
    model = shrinking("maxima", x)
    moved = first_weight(model)
    for name, p in model.named_parameters():
        p.requires_grad_(name == moved)
    y = torch.arange(33) % 3

    def estimator(evaluator: object) -> dz.RGE:
        return dz.RGE(model, loss=F.cross_entropy, queries=3, step_size=STEP, evaluator=evaluator, seed=0)

    directions = estimator("sequential").directions()
    weight = model.get_parameter(moved)
    with torch.no_grad():
        weight.copy_(LEFT - STEP * directions.stack(1, 2)[moved][0])
    found = estimator(dz.PropagationEvaluator(verify=False)).estimate(x, y).gradients[moved].double()
    model.double()
    close(found, estimator("sequential").estimate(x.double(), y).gradients[moved])


def test_other_perturbations_keep_their_bits() -> None:
    """Whatever becomes of their neighbours in a chunk, and by however many workers."""
    x = 1e3 * normal(33, 1, 8, 8, dtype=torch.float32)
    model = shrinking("maxima", x)
    with torch.no_grad():
        model.get_parameter(first_weight(model))[1] = 0.3
    alone = estimated(model, x, dz.PropagationEvaluator(workers=1, verify=False), some=[1])
    for workers in (1, 2):
        found = estimated(model, x, dz.PropagationEvaluator(workers=workers, verify=False))
        assert found[0] != 0
        assert torch.equal(found[1], alone[1])


def test_a_step_without_an_answer_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses that are no numbers by the rules either are an error, for which not every query is made twice."""
    x = normal(33, 1, 8, 8, dtype=torch.float32)
    model = nn.Sequential(nn.Conv2d(1, 30, 1), nn.Flatten(), nn.Linear(1920, 3))
    initialize(model, dtype=torch.float32)
    calls = mock.Mock(side_effect=kernels.aside)
    monkeypatch.setattr(kernels, "aside", calls)
    evaluator = dz.PropagationEvaluator(workers=1, verify=False)
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e19, evaluator=evaluator)
    with pytest.raises(NonFiniteLossError, match="perturbed losses are not finite"):
        zo.estimate(1e30 * x, torch.arange(33) % 3)
    assert 0 < calls.call_count <= 4


def test_all_kernels_give_up_at_the_same_part() -> None:
    assert convolution_loops.REMAINS == row_loops.REMAINS == tails.REMAINS
    triton_normalization = pytest.importorskip("deepzero.graph.cuda.triton_normalization", reason="needs Triton")
    assert triton_normalization.REMAINS.value == tails.REMAINS
