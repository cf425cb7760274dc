"""Rules called by themselves: ``f(z + d) - f(z)`` of one operation, for each kind of difference, in float64 and float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from oracle import normal, seeded
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero.graph.calls import Call, Operand, Outcome, Value
from deepzero.graph.capture import Node
from deepzero.graph.differences import Channel, Dense, Difference, OneHot, RankOne
from deepzero.graph.rules import RULES, TAKES_RANK_ONE, fallback

COUNT = 3
SHAPE = (2, 4, 3, 5)
aten = torch.ops.aten


def apply(target: object, *args: object, **kwargs: object) -> Outcome:
    """The rule of an operation on arguments of which some are ``(base, difference)``."""
    operands = [
        Operand(Value(a[0]), a[1]) if isinstance(a, tuple) else Operand(Value(a), None) if isinstance(a, Tensor) else a
        for a in args
    ]
    plain = [a.base if isinstance(a, Operand) else a for a in operands]
    call = Call(Node("tested", target, (), {}), (Value(target(*plain, **kwargs)),))
    return RULES.get(target, fallback)(call, *operands, **kwargs)


def delta(target: object, *args: object, **kwargs: object) -> Tensor:
    outcome = apply(target, *args, **kwargs)
    assert isinstance(outcome, Difference)
    return outcome.dense()


@dataclass(frozen=True)
class Differs:
    """A tensor argument that differs; ``seed`` draws its difference."""

    base: Tensor
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """A call of an ATen operation.

    Attributes:
        target: the operation.
        args: its arguments; those that differ are wrapped in ``Differs``.
        kwargs: its keyword arguments.
        keeps: whether one-hot and channel differences come out as such.
        scale: size of the difference in the comparison in float64.
        single: whether the operation is also compared in float32 at a tiny step.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    keeps: bool = False
    scale: float = 0.3
    single: bool = True


def one_hot(shape: torch.Size, values: Tensor, seed: int) -> OneHot:
    indices = torch.randint(0, shape.numel(), (COUNT,), generator=seeded(11 + seed))
    return OneHot(indices, values, shape)


def channel(shape: torch.Size, values: Tensor, axis: int, seed: int) -> Channel:
    channels = torch.randint(0, shape[axis], (COUNT,), generator=seeded(21)).sort().values
    return Channel(axis, channels, values, shape)


def rank_one(shape: torch.Size, scale: float, dtype: torch.dtype, seed: int) -> RankOne:
    """Two groups; a row does not differ, and another is given in full."""
    lead, size = shape[:-1], shape[-1]
    coefficients = scale * normal(COUNT, *lead, seed=31 + seed).to(dtype)
    flat, rows = coefficients.view(-1), scale * normal(1, size, seed=51 + seed).to(dtype)
    flat[0] = flat[-1] = 0
    directions = normal(2, 1, size, seed=61 + seed).to(dtype)
    return RankOne(coefficients, directions, torch.tensor([1, 0, 0]), shape, torch.tensor([flat.numel() - 1]), rows)


def draw(shape: torch.Size, kind: str, like: Tensor, scale: float, seed: int) -> Difference:
    """A difference of ``kind``: ``one_hot``, ``dense``, ``rank_one``, or ``channel`` with its axis."""
    if kind == "rank_one":
        return rank_one(shape, scale, like.dtype, seed)
    axis = int(kind[7:]) if kind.startswith("channel") else 0
    sizes: tuple[int, ...] = {"o": (), "d": tuple(shape), "c": tuple(s for d, s in enumerate(shape) if d != axis)}[
        kind[0]
    ]
    values = scale * normal(COUNT, *sizes, seed=31 + seed)
    if like.is_complex():
        values = torch.complex(values, scale * normal(COUNT, *sizes, seed=41 + seed))
    elif not like.is_floating_point():
        values = (values > 0).long() * (1 if like.dtype != torch.bool else 0)
    if kind == "one_hot":
        return one_hot(shape, values, seed)
    return channel(shape, values, axis, seed) if kind.startswith("channel") else Dense(values)


def kinds(case: Case) -> Iterator[str]:
    leaves = pytree.tree_leaves((case.args, case.kwargs), is_leaf=lambda a: isinstance(a, Differs))
    dims = max(a.base.dim() for a in leaves if isinstance(a, Differs))
    yield from ("one_hot", *(f"channel{axis}" for axis in range(dims)), "dense")
    if RULES.get(case.target) in TAKES_RANK_ONE:
        yield "rank_one"


def moved_by(base: Tensor, delta: Tensor) -> Tensor:
    if base.is_floating_point() or base.is_complex():
        return base + delta
    return (base.long() + delta).to(base.dtype)


def _fits(kind: str, base: Tensor) -> bool:
    """Whether a value has a difference of a kind: a channel its axis, rank one rows of floating-point numbers."""
    if kind == "rank_one":
        return base.dim() > 0 and base.is_floating_point()
    return not kind.startswith("channel") or int(kind[7:]) < base.dim()


def outcomes(case: Case, kind: str, scale: float, dtype: torch.dtype) -> tuple[Any, list[tuple[Tensor, float]]]:
    """What the rule gives in ``dtype``; and the plain differences in float64, stacked, with their rounding error."""
    leaves, spec = pytree.tree_flatten((case.args, case.kwargs), is_leaf=lambda a: isinstance(a, Differs))
    operands, exact = [], []
    for leaf in leaves:
        if not isinstance(leaf, (Differs, Tensor)):
            operands.append(leaf)
            exact.append(leaf)
            continue
        base = cast(leaf.base if isinstance(leaf, Differs) else leaf, dtype)
        difference = None
        if isinstance(leaf, Differs):
            fits = kind if _fits(kind, base) else "dense"
            difference = cast_difference(draw(base.shape, fits, base, scale, leaf.seed), dtype)
        operands.append(Operand(Value(base), difference))
        exact.append((wide(base), None if difference is None else wide(difference.dense())))
    args, kwargs = pytree.tree_unflatten(operands, spec)
    plain = lambda leaf: leaf.base if isinstance(leaf, Operand) else leaf  # noqa: E731
    here = case.target(*pytree.tree_map(plain, args), **pytree.tree_map(plain, kwargs))
    call = Call(Node("tested", case.target, (), {}), (Value(here),))
    found = RULES.get(case.target, fallback)(call, *args, **kwargs)
    rows = [evaluate(case.target, exact, spec, p) for p in range(COUNT)]
    base = evaluate(case.target, exact, spec, None)
    changes = [torch.stack([change(row[k], b) for row in rows]) for k, b in enumerate(base)]
    rounding = [4e-16 * max(finite_size(row[k]) for row in (*rows, base)) for k in range(len(base))]
    return found, list(zip(changes, rounding, strict=True))


def finite_size(value: Tensor) -> float:
    size = value.to(torch.complex128).abs()
    return float(size[size.isfinite()].max()) if bool(size.isfinite().any()) else 0.0


def evaluate(target: Any, exact: list[Any], spec: Any, p: int | None) -> list[Tensor]:
    values = [
        (e[0] if p is None or e[1] is None else moved_by(e[0], e[1][p])) if isinstance(e, tuple) else e for e in exact
    ]
    args, kwargs = pytree.tree_unflatten([widen_dtype(v) for v in values], spec)
    return pytree.tree_leaves(target(*args, **kwargs))


def change(new: Tensor, base: Tensor) -> Tensor:
    if base.is_floating_point() or base.is_complex():
        return torch.where(new == base, 0, new - base)
    return new.long() - base.long()


def widen_dtype(value: Any) -> Any:
    return (
        torch.float64
        if value in (torch.float32, torch.float16, torch.bfloat16) and isinstance(value, torch.dtype)
        else value
    )


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def wide(tensor: Tensor) -> Tensor:
    return cast(tensor, torch.float64)


def cast_difference(difference: Difference, dtype: torch.dtype) -> Difference:
    if isinstance(difference, OneHot):
        return OneHot(difference.indices, cast(difference.values, dtype), difference.shape)
    if isinstance(difference, Channel):
        return difference.with_delta(cast(difference.delta, dtype))
    if isinstance(difference, RankOne):
        parts = {name: cast(getattr(difference, name), dtype) for name in ("coefficients", "directions", "rows")}
        return replace(difference, **parts)
    return Dense(cast(difference.delta, dtype))


def assert_rule(case: Case) -> None:
    """For every kind of difference: exact in float64, and in float32 at a tiny step."""
    for kind in kinds(case):
        found, expected = outcomes(case, kind, case.scale, torch.float64)
        compare(found, expected, 1e-12, f"{kind} in float64")
        if case.keeps and kind not in ("dense", "rank_one"):
            of_kind = OneHot if kind == "one_hot" else Channel
            parts = found if isinstance(found, tuple) else (found,)
            assert all(isinstance(f, of_kind) for f in parts), f"{kind} became {[type(f).__name__ for f in parts]}"
        if case.single:
            found, expected = outcomes(case, kind, 1e-6, torch.float32)
            compare(found, expected, 1e-5, f"{kind} in float32")


def compare(found: Any, expected: list[tuple[Tensor, float]], tolerance: float, what: str) -> None:
    parts = found if isinstance(found, tuple) else (found,)
    assert len(parts) == len(expected)
    for part, (e, rounding) in zip(parts, expected, strict=True):
        delta = torch.zeros_like(e) if part is None else part.dense()
        assert delta.shape == e.shape, f"{what}: shape {tuple(delta.shape)}, expected {tuple(e.shape)}"
        assert delta.is_complex() == e.is_complex(), f"{what}: {delta.dtype}, expected {e.dtype}"
        error, size = wide_number(delta.to(e.dtype) - e).abs(), wide_number(e).abs()
        # entry by entry, so that small changes count too
        allowed = tolerance * (size + 1e-2 * size.max()) + rounding if e.numel() else size
        worst = float((error / allowed.clamp(min=1e-300)).max()) if e.numel() else 0.0
        assert not bool(e.isnan().any()), f"{what}: the case is not a number"
        assert worst <= 1, f"{what}: off by {worst:.3g} times the tolerance"


def wide_number(value: Tensor) -> Tensor:
    return value if value.is_complex() else value.double()


def check_table(table: dict[str, Case]) -> None:
    wrong = {}
    for name, case in table.items():
        try:
            assert_rule(case)
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {str(error)[:300]}"
    assert not wrong, "\n".join(f"{name}: {message}" for name, message in wrong.items())
