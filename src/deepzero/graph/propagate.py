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
from deepzero.graph.differences import Difference, OneHot, entries
from deepzero.graph.forward import Values
from deepzero.graph.program import Cone, Step

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

    A loss of several entries is averaged over them in float64.
    """
    sources = {node: one_hot(values[node].base, indices, offset) for node in cone.sources}
    return propagated(cone, values, output, sources, len(indices))


def propagated(
    cone: Cone, values: Values, output: Node, sources: Mapping[Node, Difference], count: int
) -> Float64[Tensor, " p"]:
    """The loss differences that ``count`` differences of the sources of a cone lead to, without autograd."""
    live: dict[Node, Any] = dict(sources)
    with torch.no_grad():
        for step in cone.steps:
            advance(step, values, live)
            for node in step.frees:
                live.pop(node, None)
        change = live.get(output)
        base: Tensor = values[output].base
        if change is None:
            return torch.zeros(count, dtype=torch.float64, device=base.device)
        return entries(change).sum(1, dtype=torch.float64) / base.numel()


def one_hot(base: Tensor, indices: Int64[Tensor, " p"], offset: float) -> OneHot:
    """One entry moved; of complex values the real and the imaginary parts are entries, one after the other."""
    indices = indices.to(base.device)
    if base.is_complex():
        values = torch.where(indices % 2 == 0, offset, offset * 1j).to(base.dtype)
        return OneHot(indices // 2, values, base.shape)
    return OneHot(indices, torch.full(indices.shape, offset, dtype=base.dtype, device=base.device), base.shape)


def advance(step: Step, values: Values, live: dict[Node, Any]) -> None:
    """Add the difference of one step's node to those that are live, if it has one."""
    if any(node in live for node in step.inputs):
        outcome = _pick(step, live) if step.rule is None else _apply(step, values, live)
        if outcome is not None:
            live[step.node] = outcome


def _apply(step: Step, values: Values, live: dict[Node, Any]) -> Any:
    def operand(argument: Any) -> Any:
        if not isinstance(argument, Node):
            return argument
        value = values[argument]
        if isinstance(value.base, NUMBERS) and argument not in live:
            return value.base  # as if the program had it written out
        return Operand(value, live.get(argument))

    args, kwargs = fx.node.map_aggregate((step.args, step.kwargs), operand)
    call = Call(step.node, tuple(values[part] for part in step.parts), step.overwrite)
    outcome = step.rule(call, *args, **kwargs)  # type: ignore[misc]
    if isinstance(outcome, tuple) and all(o is None for o in outcome):
        return None
    return outcome


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
