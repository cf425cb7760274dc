"""The engine: carries the differences of one chunk of perturbations through a cone to the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, fx

from deepzero.errors import GraphError
from deepzero.graph.calls import Call, Operand
from deepzero.graph.capture import Node
from deepzero.graph.differences import (
    Blocks,
    Dense,
    Difference,
    LowRank,
    OneHot,
    RankOne,
    Segment,
    SomeSamples,
    TooLargeError,
    entries,
)
from deepzero.graph.forward import Values, in_own_types
from deepzero.graph.host_numbers import placed
from deepzero.graph.program import Cone, Step
from deepzero.graph.rules import in_kind_for
from deepzero.graph.rules.by_sample import by_sample as samples_apart

NUMBERS = (bool, int, float, complex)
"""Types of a node's value that is no tensor."""


def loss_differences(
    cone: Cone,
    values: Values,
    output: Node,
    indices: Int64[Tensor, " p"],
    offset: float,
) -> Float64[Tensor, " p"]:
    """``l(theta + offset e_i) - l(theta)`` for flat ``indices`` i of one parameter.

    A loss of several entries is averaged over them in float64. Perturbations that turn out to take too much memory
    together are cut in halves: a function of the values alone, like all else.
    """
    sources: dict[Node, Difference] = {n: one_hot(values[n].base, indices, offset) for n in cone.sources}
    try:
        return propagated(cone, values, output, sources, len(indices))
    except TooLargeError:
        if len(indices) == 1:
            raise
        halves = indices.tensor_split(2)
        return torch.cat([loss_differences(cone, values, output, half, offset) for half in halves])


def propagated(
    cone: Cone, values: Values, output: Node, sources: Mapping[Node, Difference], count: int
) -> Float64[Tensor, " p"]:
    """The loss differences that ``count`` differences of the sources of a cone lead to, without autograd."""
    live: dict[Node, Any] = dict(sources)
    with torch.no_grad(), in_own_types():
        for step in cone.steps:
            advance(step, values, live)
            for node in step.frees:
                live.pop(node, None)
        return at_the_loss(live, values, output, count)


def at_the_loss(live: Mapping[Node, Any], values: Values, output: Node, count: int) -> Float64[Tensor, " p"]:
    """The loss differences at the end of a cone, averaged over the entries of the loss."""
    change = live.get(output)
    change = change.written_out() if isinstance(change, SomeSamples) else change
    base: Tensor = values[output].base
    if change is None:
        return torch.zeros(count, dtype=torch.float64, device=base.device)
    return entries(change).sum(1, dtype=torch.float64) / base.numel()


def one_hot(base: Tensor, indices: Int64[Tensor, " p"], offset: float) -> OneHot:
    """One entry moved; of complex values the real and the imaginary parts are entries, one after the other."""
    indices = placed(indices, base.device)
    if base.is_complex():
        values = torch.where(indices % 2 == 0, offset, offset * 1j).to(base.dtype)
        return OneHot(indices // 2, values, base.shape)
    return OneHot(indices, torch.full(indices.shape, offset, dtype=base.dtype, device=base.device), base.shape)


def advance(step: Step, values: Values, live: dict[Node, Any], *, by_sample: bool = True) -> None:
    """Add the difference of one step's node to those that are live, if it has one.

    A footprint, which holds for any batch, is that of all samples: without ``by_sample``.
    """
    if any(node in live for node in step.inputs):
        outcome = _pick(step, live) if step.rule is None else _apply(step, values, live, by_sample=by_sample)
        if outcome is not None:
            live[step.node] = outcome


def _apply(step: Step, values: Values, live: dict[Node, Any], *, by_sample: bool) -> Any:
    """The outcome of a rule."""

    def operand(argument: Any) -> Any:
        if not isinstance(argument, Node):
            return argument
        value = values[argument]
        if isinstance(value.base, NUMBERS) and argument not in live:
            return value.base  # as if the program had it written out
        difference = _difference(step, live, argument)
        return Operand(value, difference, argument in step.spends and _alone(argument, live))

    args, kwargs = fx.node.map_aggregate((step.args, step.kwargs), operand)
    call = Call(step.node, tuple(values[part] for part in step.parts), step.overwrite, by_sample)
    assert step.rule is not None
    if any(isinstance(live.get(node), SomeSamples) for node in step.inputs):
        outcome = samples_apart(step.rule, call, args, kwargs)
    else:
        outcome = step.rule(call, *args, **kwargs)
    if isinstance(outcome, tuple) and all(o is None for o in outcome):
        return None
    return outcome


def _alone(node: Node, live: Mapping[Node, Any]) -> bool:
    """True if the memory of a node's difference is its own, and holds no other difference that is live."""
    own = live.get(node)
    if not (isinstance(own, Dense) and own.owned):
        return False
    memory = own.delta.untyped_storage().data_ptr()
    return all(memory not in memory_of(other) for n, other in live.items() if n is not node)


def memory_of(outcome: Any) -> set[int]:
    """The addresses of the memory that holds a node's difference, or the differences of all its outputs."""
    parts = outcome if isinstance(outcome, tuple) else (outcome,)
    tensors = [t for part in parts if part is not None for t in vars(part).values() if isinstance(t, Tensor)]
    return {t.untyped_storage().data_ptr() for t in tensors}


def _difference(step: Step, live: dict[Node, Any], node: Node) -> Any:
    """The difference of a node, in a kind that the step's rule takes; what is written out for it is kept."""
    difference = live.get(node)
    if isinstance(difference, (RankOne, Segment, LowRank, Blocks)):
        difference = live[node] = in_kind_for(step.rule, difference)
    return difference


def _pick(step: Step, live: dict[Node, Any]) -> Difference | None:
    source, index = step.args
    outcome = live[source]
    if index >= len(outcome):
        raise GraphError(f"output {index} of {source.name} is used, but its rule follows only the first {len(outcome)}")
    return outcome[index]  # type: ignore[no-any-return]


def nbytes(outcome: Any) -> int:
    """Bytes of a node's difference, or of the differences of all its outputs."""
    parts = outcome if isinstance(outcome, tuple) else (outcome,)
    return sum(part.nbytes for part in parts if part is not None)
