"""The rules for operations without a closed form: evaluate at ``z + d`` and at ``z``, subtract.

Evaluated in float64 (complex128), so that the subtraction costs no accuracy that float32 could see. A pointwise
operation is evaluated at the entries that differ and nowhere else, which is as fast as a closed form
(:func:`evaluated`); any other is evaluated as a whole (:func:`fallback`), which is slower. Correct for any operation
that ``torch.func.vmap`` can batch or that can be called once per perturbation.

Legend: stacked: values where perturbed and where not, which broadcast: a dimension of perturbations is in front of the
former; shape: of the base output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Num, Shaped
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero.errors import GraphError
from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.capture import Node
from deepzero.graph.differences import Dense, difference_dtype
from deepzero.graph.rules.frames import Moving, jointly, perturbed


def fallback(call: Call, *args: Any, **kwargs: Any) -> Outcome:
    """``f(z + d) - f(z)`` by two evaluations of ``f``."""
    if torch.Tag.pointwise in getattr(call.node.target, "tags", ()) and isinstance(call.output.base, Tensor):
        return evaluated(call, *args, **kwargs)
    _note_fallback(call.node)
    leaves, spec = pytree.tree_flatten((args, kwargs), is_leaf=lambda a: isinstance(a, Operand))
    return _general(call, leaves, spec)


def evaluated(call: Call, *args: Any, **kwargs: Any) -> Outcome:
    """The rule of a pointwise operation: two evaluations at the entries that differ; the kind of difference is kept."""
    leaves, spec = pytree.tree_flatten((args, kwargs), is_leaf=lambda a: isinstance(a, Operand))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Operand)]

    def at(values: list[Any], cast: Callable[[Any], Any]) -> Tensor:
        remaining = iter(values)
        new = [next(remaining) if isinstance(leaf, Operand) else cast(leaf) for leaf in leaves]
        there, options = pytree.tree_unflatten(new, spec)
        value: Tensor = call.node.target(*there, **options)
        return value

    def change(*pairs: Moving) -> Tensor:
        try:
            return _change(at, pairs, widened, call.output.base)
        except (RuntimeError, NotImplementedError):  # no kernel for float64
            return _change(at, pairs, lambda value: value, call.output.base)

    return jointly(call.output.base.shape, tensors, change)


def _change(
    at: Callable[[list[Any], Callable[[Any], Any]], Tensor],
    pairs: tuple[Moving, ...],
    cast: Callable[[Any], Any],
    like: Shaped[Tensor, "*shape"],
) -> Num[Tensor, "*stacked"]:
    wide = [pair.map(cast) for pair in pairs]
    return _subtract(at([p.moved for p in wide], cast), at([p.base for p in wide], cast), like)


def widened(value: Any) -> Any:
    """Tensors and dtypes in float64 if they are real, in complex128 if complex; everything else as it is."""
    dtype = value.dtype if isinstance(value, Tensor) else value
    if not isinstance(dtype, torch.dtype) or not (dtype.is_floating_point or dtype.is_complex):
        return value
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return value.to(wide) if isinstance(value, Tensor) else wide


def _plain(leaf: Any) -> Any:
    return leaf.base if isinstance(leaf, Operand) else leaf


def _general(call: Call, leaves: list[Any], spec: Any) -> Outcome:
    """In float64; in the arguments' own dtype if the operation does not take float64."""
    try:
        return _evaluated(call, leaves, spec, widened, "wide")
    except Exception:
        try:
            return _evaluated(call, leaves, spec, lambda value: value, "as it is")
        except Exception as error:
            raise GraphError(
                f"operation {call.node.name} ({call.node.target}) has no difference rule, and the fallback cannot "
                f"evaluate it: {error}; add a rule (see CONTRIBUTING) or use evaluator=dz.SequentialEvaluator()"
            ) from error


def _evaluated(call: Call, leaves: list[Any], spec: Any, cast: Callable[[Any], Any], name: str) -> Outcome:
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
    flat_base, _ = pytree.tree_flatten(call.memo(f"fallback {name}", lambda: at(*bases)))
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


def _subtract(
    new: Shaped[Tensor, "*#stacked"], base: Shaped[Tensor, "*#stacked"], like: Shaped[Tensor, "*shape"]
) -> Num[Tensor, "*#stacked"]:
    """``new - base`` in the dtype of differences; infinite values that stay as they are do not differ."""
    dtype = difference_dtype(like.dtype)
    if dtype == torch.int64:
        return new.to(dtype) - base.to(dtype)
    return torch.where(new == base, 0, new - base).to(dtype)


# Watching ------------------------------------------------------------------------------------------------------------

_watches: list[dict[str, str]] = []


@contextmanager
def watch_fallbacks() -> Iterator[dict[str, str]]:
    """Operations that the fallback evaluates inside of the block, on any thread: name in the graph -> operation.

    Example:
        >>> import torch, torch.nn.functional as F, deepzero as dz
        >>> loss = lambda output, y: torch.logcumsumexp(output, 1).mean()
        >>> with watch_fallbacks() as seen:
        ...     _ = dz.CGE(torch.nn.Linear(3, 2), loss=loss).estimate(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> set(seen.values())
        {'aten.logcumsumexp.default'}
    """
    seen: dict[str, str] = {}
    _watches.append(seen)
    try:
        yield seen
    finally:
        _watches[:] = [watch for watch in _watches if watch is not seen]


def _note_fallback(node: Node) -> None:
    """Record an operation that the fallback evaluates in every open :func:`watch_fallbacks`."""
    for seen in _watches:
        seen[node.name] = str(node.target)
