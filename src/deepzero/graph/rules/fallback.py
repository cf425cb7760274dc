"""The rule for every operation without a rule of its own: evaluate at ``z + d`` and at ``z``, subtract.

Evaluated in float64, so that the subtraction costs no accuracy that float32 could see. Correct for any operation that
``torch.func.vmap`` can batch or that can be called once per perturbation; slower than a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero.errors import GraphError
from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, Difference, OneHot
from deepzero.graph.watch import note_fallback


def fallback(call: Call, *args: Any, **kwargs: Any) -> Outcome:
    """``f(z + d) - f(z)`` by two evaluations of ``f``."""
    note_fallback(call.node)
    leaves, spec = pytree.tree_flatten((args, kwargs), is_leaf=lambda a: isinstance(a, Operand))
    operands = [leaf for leaf in leaves if isinstance(leaf, Operand)]
    differing = [o for o in operands if o.difference is not None]
    if _is_pointwise(call) and len(differing) == 1 and _aligned(call, differing[0], operands):
        return _pointwise(call, differing[0], leaves, spec)
    return _general(call, leaves, spec)


def perturbed(base: Tensor, delta: Tensor) -> Tensor:
    """``z + d``; exact for integers and booleans, whose differences are integers."""
    if base.dtype == torch.bool:
        return (base.to(delta.dtype) + delta) != 0
    return base + delta


def widened(value: Any) -> Any:
    """Floating-point tensors in float64, everything else as it is."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _is_pointwise(call: Call) -> bool:
    return torch.Tag.pointwise in getattr(call.node.target, "tags", ())


def _aligned(call: Call, operand: Operand, operands: list[Operand]) -> bool:
    same = all(o is operand or o.base.dim() == 0 for o in operands)
    return same and isinstance(call.output.base, Tensor) and call.output.base.shape == operand.base.shape


def _pointwise(call: Call, operand: Operand, leaves: list[Any], spec: Any) -> Outcome:
    difference = operand.difference
    assert difference is not None
    base, delta = _entries(operand.base, difference)

    def at(value: Tensor) -> Tensor:
        new = [value if leaf is operand else _plain(leaf) for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(new, spec)
        value_there: Tensor = _widened_call(call.node.target, args, kwargs)
        return value_there

    change = _subtract(at(perturbed(widened(base), widened(delta))), at(base), call.output.base)
    if isinstance(difference, OneHot):
        return OneHot(difference.indices, change, difference.shape)
    return difference.with_delta(change) if isinstance(difference, Channel) else Dense(change)


def _entries(base: Tensor, difference: Difference) -> tuple[Tensor, Tensor]:
    if isinstance(difference, OneHot):
        return base.reshape(-1)[difference.indices], difference.values
    if isinstance(difference, Channel):
        return difference.of(base), difference.delta
    return base, difference.delta


def _plain(leaf: Any) -> Any:
    return leaf.base if isinstance(leaf, Operand) else leaf


def _widened_call(target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call in float64; in the arguments' own dtype if the operation has no float64 kernel."""
    wide_args, wide_kwargs = pytree.tree_map(widened, (args, kwargs))
    try:
        return target(*wide_args, **wide_kwargs)
    except (RuntimeError, NotImplementedError):
        return target(*args, **kwargs)


def _general(call: Call, leaves: list[Any], spec: Any) -> Outcome:
    """In float64; in the arguments' own dtype if the operation does not take float64."""
    try:
        return _evaluated(call, leaves, spec, widened)
    except Exception:
        try:
            return _evaluated(call, leaves, spec, lambda value: value)
        except Exception as error:
            raise GraphError(
                f"operation {call.node.name} ({call.node.target}) has no difference rule, and the fallback cannot "
                f"evaluate it: {error}; add a rule (see CONTRIBUTING) or use evaluator=dz.SequentialEvaluator()"
            ) from error


def _evaluated(call: Call, leaves: list[Any], spec: Any, cast: Callable[[Any], Any]) -> Outcome:
    moved: dict[int, Tensor] = {}
    for leaf in leaves:
        if isinstance(leaf, Operand) and leaf.difference is not None:
            moved[id(leaf)] = perturbed(cast(leaf.base), cast(leaf.difference.dense()))

    def at(*values: Tensor) -> Any:
        replacement = dict(zip(moved, values, strict=True))
        new = [replacement.get(id(leaf), cast(_plain(leaf))) for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(new, spec)
        return call.node.target(*args, **kwargs)

    bases = [cast(leaf.base) for leaf in leaves if id(leaf) in moved]
    flat_base, _ = pytree.tree_flatten(call.memo(f"fallback {bases[0].dtype}", lambda: at(*bases)))
    flat_new, out_spec = pytree.tree_flatten(_stacked(at, list(moved.values())))
    flat_like, _ = pytree.tree_flatten(call.output.base)
    changes = [Dense(_subtract(n, b, like)) for n, b, like in zip(flat_new, flat_base, flat_like, strict=True)]
    return changes[0] if out_spec.is_leaf() else tuple(changes)


def _stacked(at: Callable[..., Any], moved: list[Tensor]) -> Any:
    try:
        return torch.func.vmap(at)(*moved)
    except (RuntimeError, NotImplementedError, ValueError):
        rows = [at(*(m[p] for m in moved)) for p in range(len(moved[0]))]
        return pytree.tree_map(lambda *parts: torch.stack(parts), *rows)


def _subtract(new: Tensor, base: Tensor, like: Tensor) -> Tensor:
    if like.is_floating_point():
        return torch.where(new == base, 0, new - base).to(like.dtype)  # infinite entries may stay as they are
    return new.to(torch.int64) - base.to(torch.int64)
