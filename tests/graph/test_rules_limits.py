"""Where formulas change over, overflow, or meet infinity; half precision; empty tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_agrees, initialize, normal
from rule_cases import apply, aten, delta
from torch import Tensor, nn

from deepzero.graph import kernels
from deepzero.graph.calls import Call, Operand, Value
from deepzero.graph.capture import Node
from deepzero.graph.differences import Channel, Dense, Difference, LowRank, OneHot, difference_dtype
from deepzero.graph.rules import RULES, formulas

GRID = torch.cartesian_prod(
    torch.linspace(-12, 12, 49).double(),
    torch.tensor([1e-30, 1e-9, 1e-4, 0.02, 0.049, 0.051, 0.3, 0.9, 2.0, 7.0]).double(),
)
Z, D = GRID[:, 0], torch.cat([GRID[::2, 1], -GRID[1::2, 1]]).flip(0)[: len(GRID)]

TAILS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": formulas.sigmoid,
    "tanh": formulas.tanh,
    "softplus": formulas.softplus,
    "gauss": formulas.gauss_interval,
    "exp": formulas.exp,
    "atan": formulas.atan,
}


def exact(function: str, z: Tensor, d: Tensor) -> Tensor:
    """By the integral of the derivative over the interval: Gauss-Legendre, which never cancels."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(60))
    t = z[:, None] + d[:, None] * (nodes + 1) / 2
    slopes = {
        "sigmoid": torch.sigmoid(t) * torch.sigmoid(-t),
        "tanh": 4 * torch.sigmoid(2 * t) * torch.sigmoid(-2 * t),
        "softplus": torch.sigmoid(t),
        "gauss": torch.exp(-t * t / 2) / math.sqrt(2 * math.pi),
        "exp": torch.exp(t),
        "atan": 1 / (1 + t * t),
    }[function]
    return (slopes * weights).sum(1) * d / 2


SHRUNK = torch.Size((8, 6, 5))
"""Rows of 30 entries, or of 5, or channels of 40."""
NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda z: F.layer_norm(z, SHRUNK[-1:]),
    "layer_norm_of_two_dimensions": lambda z: F.layer_norm(z, SHRUNK[-2:]),
    "rms_norm": lambda z: F.rms_norm(z, SHRUNK[-1:], eps=1e-5),
    "group_norm": lambda z: F.group_norm(z, 2),
    "instance_norm": F.instance_norm,
    "batch_norm": lambda z: F.batch_norm(z, None, None, training=True),
    "weight_norm": lambda z: torch._weight_norm(z, torch.ones(SHRUNK[0], 1, 1, dtype=z.dtype), 0),
}


def normalization(name: str, z: Tensor, difference: Difference) -> Difference:
    """The rule's change by a difference of z."""
    calls: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "layer_norm": (aten.layer_norm.default, ([5],)),
        "layer_norm_of_two_dimensions": (aten.layer_norm.default, ([6, 5],)),
        "rms_norm": (aten.rms_norm.default, ([5], None, 1e-5)),
        "group_norm": (aten.group_norm.default, (2,)),
        "instance_norm": (aten.instance_norm.default, (None, None, None, None, True, 0.0, 1e-5, False)),
        "batch_norm": (aten._native_batch_norm_legit.no_stats, (None, None, True, 0.0, 1e-5)),
        "weight_norm": (aten._weight_norm.default, (torch.ones(SHRUNK[0], 1, 1, dtype=z.dtype), 0)),
    }
    target, options = calls[name]
    found = apply(target, (z, difference), *options)
    change = found[0] if isinstance(found, tuple) else found
    assert isinstance(change, Difference)
    return change


def shrinking(kind: str, z: Tensor) -> Difference:
    """A difference to values of size 1: of all entries, of a channel, of one entry of each row, or of rank one."""
    goal = normal(3, *SHRUNK, seed=4)
    if kind == "dense":
        return Dense(goal.to(z.dtype) - z)
    if kind == "channel":
        channels = torch.tensor([3, 0, 3])
        return Channel(1, channels, (goal[:, :, 0] - z[:, channels].movedim(1, 0)).to(z.dtype), SHRUNK)
    if kind == "entry":
        return Channel(2, torch.tensor([2, 2]), (goal[:2, ..., 0] - z[..., 2]).to(z.dtype), SHRUNK)
    return LowRank(goal[:2, ..., :1].to(z.dtype) - z[..., 2:3], torch.eye(5, dtype=z.dtype)[2].expand(2, 1, 5), SHRUNK)


@pytest.mark.parametrize("kernels_too", [True, False])
@pytest.mark.parametrize(
    ("kind", "names"),
    {
        "dense": [*NORMALIZATIONS],
        "channel": ["layer_norm", "rms_norm", "instance_norm", "batch_norm"],
        "entry": ["layer_norm", "rms_norm"],
        "rank one": ["layer_norm", "rms_norm"],
    }.items(),
)
def test_a_scale_of_which_next_to_nothing_is_left(
    kind: str, names: list[str], kernels_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variance that shrinks by 10^7 in float32: ``s^2 + dv`` would have no digit left, and may be negative.

    Differences and centred values round by 10^-7 of 3,000 times what they come to.
    """
    if not kernels_too:
        monkeypatch.setattr(kernels, "BY_DEVICE", {})
    one_entry = kind in ("entry", "rank one")
    z = normal(*SHRUNK, seed=3)
    z = (z + 3e3 * (torch.arange(5) == 2) if one_entry else 3e3 * z).float()
    for name in names:
        difference = shrinking(kind, z)
        dense = difference.dense().double()
        function, wide = NORMALIZATIONS[name], z.double()
        expected = torch.stack([function(wide + d) for d in dense]) - function(wide)
        found = normalization(name, z, difference).dense().double()
        worst = float((found - expected).abs().max())
        assert worst <= 1e-2, f"{name}: off by {worst:.3g}, the largest is {float(expected.abs().max()):.3g}"


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 3e-12), (torch.float32, 2e-5)])
def test_formulas_hold_in_their_tails_and_across_their_changeovers(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Relative to each entry: a saturated sigmoid changes by a part of what is left, however small that is."""
    z, d = Z.to(dtype), D.to(dtype)
    expected = exact(name, z.double(), d.double())
    found = TAILS[name](z, d).double()
    representable = expected.abs() > 1e-35
    error = ((found - expected).abs() / expected.abs())[representable]
    assert float(error.max()) < tolerance


def test_the_expansion_of_gelu_ends_where_it_loses_accuracy_in_float32() -> None:
    """Four standard deviations out it is off by 5e-5 at an interval of 0.45, which the difference is not."""
    z, d = torch.full((40,), 4.0), torch.linspace(0.01, 0.6, 40)
    expected = exact("gauss", z.double(), d.double())
    found = formulas.gauss_interval(z, d).double()
    assert float(((found - expected) / expected).abs().max()) < 3e-6


@pytest.mark.parametrize("target", [aten.exp.default, aten.expm1.default, aten.exp2.default])
def test_exponentials_do_not_overflow_on_the_way(target: object) -> None:
    """``exp(z) expm1(d)`` is infinite for z = -100 and d = 130 in float32, the result is not."""
    z, d = torch.tensor([-100.0, -120.0, 30.0]), torch.tensor([[130.0, 120.5, -200.0]])
    found = delta(target, (z, Dense(d)))
    expected = target(z.double() + d.double()) - target(z.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "name",
    ["sigmoid", "tanh", "silu", "mish", "softplus", "log_sigmoid", "elu", "gelu", "log", "log1p", "sqrt", "rsqrt"],
)
def test_long_ways_in_float32(name: str) -> None:
    """From one tail to the other, and from 1 nearly to 0: no intermediate value overflows or loses what is left."""
    target = getattr(aten, name).default
    z, d = torch.tensor([[-60.0, 60.0, -5.0, 3.0, 20.0, -120.0], [120.0, -120.0, 105.0, -8.0, -40.0, 115.0]])
    if name in ("log", "log1p", "sqrt", "rsqrt"):
        z, d = torch.tensor([[3.0, 1.0, 8.0, 1e-6, 1e4], [1e-6 - 3.0, -0.75, -7.99, 1e3, -9.99e3]])
    found = delta(target, (z, Dense(d[None])))[0].double()
    expected = target(z.double() + d.double()) - target(z.double())
    torch.testing.assert_close(found, expected, rtol=5e-6, atol=1e-30)


@pytest.mark.parametrize("target", [aten.softmax.int, aten.log_softmax.int])
def test_softmax_of_logits_that_come_from_far_below(target: object) -> None:
    """Their probabilities are 0 in float32, and 1 after a step of 200."""
    z, d = torch.tensor([0.0, -150.0, 1.0]), torch.tensor([[0.0, 200.0, -1.0], [150.0, 0.0, 0.0], [-90.0, 0.0, -90.0]])
    found = delta(target, (z, Dense(d)), 0).double()
    expected = target(z.double() + d.double(), 1) - target(z.double(), 0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_cross_entropy_of_logits_that_come_from_far_below() -> None:
    z, d = torch.tensor([[0.0, -150.0, 1.0]]), torch.tensor([[[0.0, 200.0, -1.0]], [[150.0, 0.0, 0.0]]])
    found = delta(aten.cross_entropy_loss.default, (z, Dense(d)), torch.tensor([1]))
    expected = [
        F.cross_entropy(z.double() + row.double(), torch.tensor([1])) - F.cross_entropy(z.double(), torch.tensor([1]))
        for row in d
    ]
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_a_sure_network_keeps_the_accuracy_of_its_loss() -> None:
    """A loss of 1e-9 changes by 1e-12, and by no rounding of the logits' difference of 1e-3."""
    z = torch.tensor([[20.0, 0.0, -1.0]])
    d = torch.tensor([[[1e-3, 0.0, 0.0]]])
    found = delta(aten.cross_entropy_loss.default, (z, Dense(d)), torch.tensor([0])).double()
    rest = math.exp(-20) + math.exp(-21)
    torch.testing.assert_close(found, torch.tensor([rest * math.expm1(-1e-3)]).double(), rtol=1e-5, atol=0)


INFINITE = torch.tensor([[0.3, -torch.inf, 1.0], [-torch.inf, -torch.inf, -torch.inf]]).double()


@pytest.mark.parametrize(
    ("target", "options"),
    [
        (aten.exp.default, ()), (aten.sigmoid.default, ()), (aten.tanh.default, ()), (aten.relu.default, ()), (aten.abs.default, ()),
        (aten.clamp.default, (-1.0, 1.0)), (aten.clamp_min.default, (-5.0,)), (aten.softplus.default, ()), (aten.elu.default, ()),
        (aten.hardtanh.default, ()), (aten.logsumexp.default, ([1],)), (aten.amax.default, ([1],)), (aten.max.dim, (1,)),
        (aten._safe_softmax.default, (1,)), (aten.atan.default, ()), (aten.erf.default, ()), (aten.leaky_relu.default, ()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("step", [0.5, 30.0])
def test_infinite_values_that_stay_do_not_differ(target: object, options: tuple[object, ...], step: float) -> None:
    d = step * normal(3, 2, 3, seed=2)
    outcome = apply(target, (INFINITE, Dense(d)), *options)
    found = (outcome[0] if isinstance(outcome, tuple) else outcome).dense()
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    new, base = torch.stack([first(target(INFINITE + row, *options)) for row in d]), first(target(INFINITE, *options))
    assert not bool(found.isnan().any())
    seen = base.isfinite() if target in MOVE_ALONG else torch.ones_like(base, dtype=torch.bool)
    expected = torch.where(new == base, 0, new - base)
    torch.testing.assert_close(found[:, seen], expected[:, seen], rtol=1e-9, atol=1e-12)


MOVE_ALONG = {aten.abs.default, aten.leaky_relu.default, aten.amax.default, aten.max.dim}
"""Their values are infinite where their operand is; the difference there is a number that nothing can see."""


class Masked(nn.Module):
    """Scores under a mask of -inf, by addition, by fill, by where, and through attention's own softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-1, -2)
        below = torch.ones(5, 5, dtype=torch.bool).tril()
        added = (scores + torch.zeros(5, 5, dtype=x.dtype).masked_fill(~below, -torch.inf)).softmax(-1)
        filled = scores.masked_fill(~below, -torch.inf).log_softmax(-1).exp()
        chosen = torch.where(below, scores, -torch.inf).logsumexp(-1)
        return self.o(added + filled) + chosen[..., None]


def test_masks_of_minus_infinity() -> None:
    model = initialize(Masked())
    found = assert_agrees(model, F.mse_loss, normal(3, 5, 4, seed=3), normal(3, 5, 2, seed=4))
    assert all(bool(g.isfinite().all()) for g in found.gradients.values())


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_differences_of_half_precision_values_are_held_in_float32(half: torch.dtype) -> None:
    """A step of 1e-9 is 0 in float16. Base values of half types come to the rules in float32."""
    z, tiny = normal(2, 3, dtype=torch.float32), torch.full((1, 2, 3), 1e-9)
    cast = Call(Node("cast", aten._to_copy.default, (), {}), (Value(z.to(half)),))
    outcome = RULES[aten._to_copy.default](cast, Operand(Value(z), Dense(tiny)), dtype=half)
    torch.testing.assert_close(outcome.dense(), tiny, rtol=0, atol=0)
    assert outcome.dense().dtype == torch.float32
    assert difference_dtype(half) == torch.float32
    back = Call(Node("back", aten._to_copy.default, (), {}), (Value(z.double()),))
    assert (
        RULES[aten._to_copy.default](back, Operand(Value(z), outcome), dtype=torch.float64).dense().dtype
        == torch.float64
    )


@pytest.mark.parametrize("target", [aten.sum.default, aten.prod.default])
def test_reductions_of_nothing(target: object) -> None:
    found = delta(target, (torch.zeros(0, 3).double(), Dense(torch.zeros(2, 0, 3).double())))
    torch.testing.assert_close(found.double(), torch.zeros(2).double())


def test_a_difference_of_two_operands_on_the_same_channel_stays_there() -> None:
    shape, channels = torch.Size((2, 4, 3)), torch.tensor([1, 1, 3])
    left, right = (Channel(1, channels, normal(3, 2, 3, seed=s), shape) for s in (1, 2))
    a, b = normal(*shape, seed=3), normal(*shape, seed=4)
    outcome = apply(aten.mul.Tensor, (a, left), (b, right))
    assert isinstance(outcome, Channel)
    torch.testing.assert_close(outcome.dense(), (a + left.dense()) * (b + right.dense()) - a * b)


def test_a_difference_of_two_operands_at_the_same_entries_stays_there() -> None:
    shape, indices = torch.Size((2, 4)), torch.tensor([1, 7])
    left, right = (OneHot(indices, normal(2, seed=s), shape) for s in (1, 2))
    a, b = normal(*shape, seed=3), normal(*shape, seed=4)
    for target in (aten.mul.Tensor, aten.add.Tensor):
        outcome = apply(target, (a, left), (b, right))
        assert isinstance(outcome, OneHot)
        torch.testing.assert_close(outcome.dense(), target(a + left.dense(), b + right.dense()) - target(a, b))


def test_sums_of_one_hot_differences_are_one_hot() -> None:
    base = normal(2, 4, 3)
    difference: Difference = OneHot(torch.tensor([3, 22]), normal(2, seed=1), base.shape)
    for dims, keep in (([1], False), ([0, 2], True), ([0, 1, 2], False)):
        outcome = apply(aten.sum.dim_IntList, (base, difference), dims, keep)
        assert isinstance(outcome, OneHot)
        expected = difference.dense().sum([d + 1 for d in dims], keepdim=keep)
        torch.testing.assert_close(outcome.dense(), expected)
