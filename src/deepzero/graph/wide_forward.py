"""A forward of a program's graph in float64, with the rounding noise of its values: what rules are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepzero.graph.capture import Graph, Node
from deepzero.graph.forward import Recomputation, Values, graph_inputs, held_bytes, run
from deepzero.graph.program import Cone, Program, compile_program, reads
from deepzero.objective import NetworkObjective, as_real, parameters_of
from deepzero.randomness import Draws

WORKSPACE = 4
"""Bytes that one coordinate may take, in multiples of the base forward: a float64 convolution unfolds its input."""
ROUNDING = 1e-15
"""Least noise of a value, relative to its largest entry; of a loss, relative to it plus one."""
JUMP = 1e-6
"""Least relative change, by the last digits of the parameters, that is no rounding but a jump."""
MARGIN = 30
"""Smallest difference of the loss that can be told from noise, in multiples of the noise."""
MARGIN_AT_NODES = 100
"""The same of nodes, of whose entries the noisiest counts."""
EVEN = 3e-10
"""Largest floor of a node, in multiples of its typical entry, at which differences are compared there."""
NUDGE = 4e-16
"""Relative change of the parameters by their last digits."""


@dataclass(frozen=True)
class WideForward:
    """A forward of a program's graph in float64.

    Attributes:
        program: the program, in float64.
        inputs: of its graph.
        values: what the graph computes from them, where rules or plain runs read it.
        draws: the step's random numbers.
        at_once: coordinates that there is room for at a time, ``most`` at the most.
        floor: smallest loss difference that can be told from the noise of plain runs.
        floors: the same of the entries of nodes, 0 of integers. Left out are those whose values are not all finite, or
            jump, or are of such different sizes that noise in the large ones could hide the small ones.
    """

    program: Program
    inputs: Mapping[Node, Any]
    values: Values
    draws: Draws
    at_once: int
    floor: float
    floors: Mapping[Node, float]

    @classmethod
    def of(
        cls,
        program: Program,
        objective: NetworkObjective,
        batch: tuple[Any, ...],
        draws: Draws,
        *,
        room: float,
        most: int,
    ) -> WideForward:
        """Of a program at the parameters; ``room`` bounds the bytes of tensors."""
        wide = compile_program(program.graph.widened, parameters_of(objective), strict=False)
        kept = wide.kept | {node for cone in wide.cones.values() for node in reads(wide.graph, cone)}
        inputs = graph_inputs(wide.graph, objective, batch, dtype=torch.float64)
        values = run(wide.graph, inputs, keep=kept, draws=draws, wide=True)
        base_bytes = max(1, held_bytes(values))
        at_once = int(max(1, min(most, (room - base_bytes) // (WORKSPACE * base_bytes))))
        noise, spreads = _noise(wide.graph, inputs, values, draws)
        floors = {node: MARGIN_AT_NODES * spread for node, spread in spreads.items()}
        even = {node: floor for node, floor in floors.items() if 0 < floor <= EVEN * _typical(values[node].base)}
        exact = {node: 0.0 for node, value in values.items() if _counts(value.base)}
        return cls(wide, inputs, values, draws, at_once, MARGIN * noise, even | exact)

    def base_loss(self) -> Tensor:
        """The loss at the parameters."""
        base: Tensor = self.values[self.program.graph.output].base
        return base.double().mean()

    def plain(self, cone: Cone) -> PlainRuns:
        """Plain runs of what lies behind a parameter."""
        return PlainRuns(
            cone.sources,
            self.inputs[cone.sources[0]],
            Recomputation(self.program.graph, cone.sources, self.values, self.draws, wide=True),
            self.values,
            self.base_loss(),
        )


@dataclass(frozen=True)
class PlainRuns:
    """Runs of the operations behind a parameter in which one of its entries has moved.

    Attributes:
        sources: the graph inputs that hold it.
        value: the parameter.
        operations: behind it.
        values: at the parameters.
        loss: there.
    """

    sources: tuple[Node, ...]
    value: Tensor
    operations: Recomputation
    values: Values
    loss: Tensor

    def differences(self, index: int, step: float, nodes: Set[Node]) -> dict[Node, Tensor]:
        """The differences of some nodes, of those that depend on the parameter; no more is run."""
        there = self.operations.values(self._moved(index, step), nodes)
        return {node: _apart(value, self.values[node].base) for node, value in there.items()}

    def loss_difference(self, index: int, step: float) -> float:
        """The difference of the loss."""
        return float(self.operations.loss(self._moved(index, step)) - self.loss)

    def _moved(self, index: int, step: float) -> dict[Node, Tensor]:
        moved = self.value.detach().clone(memory_format=torch.contiguous_format)
        as_real(moved).view(-1)[index] += step
        return dict.fromkeys(self.sources, moved)


def _apart(value: Tensor, base: Tensor) -> Tensor:
    return value - base if value.is_floating_point() or value.is_complex() else value.double() - base.double()


def _noise(graph: Graph, inputs: Mapping[Node, Any], values: Values, draws: Draws) -> tuple[float, dict[Node, float]]:
    """Rounding noise of plain runs: how far loss and nodes move with the last digits of the parameters."""
    base: Tensor = values[graph.output].base
    losses = [float(base.double().mean())]
    generator = torch.Generator().manual_seed(0)

    def watch(node: Node, value: Any) -> None:
        if node in largest:
            apart = float((value - values[node].base).abs().max())
            spreads[node] = max(spreads[node], apart if apart < JUMP * largest[node] else math.inf)

    largest = {node: float(v.base.abs().max()) for node, v in values.items() if _comparable(v.base)}
    spreads = {node: ROUNDING * size for node, size in largest.items()}
    for _ in range(2):
        nudged = dict(inputs)
        for node in graph.parameter_inputs():
            p = inputs[node]
            if p.is_floating_point() or p.is_complex():
                sign = torch.randint(0, 2, p.shape, generator=generator).to(p.device, torch.float64) * 2 - 1
                nudged[node] = p * (1 + NUDGE * sign)
        loss: Tensor = run(graph, nudged, keep=(), draws=draws, wide=True, watch=watch)[graph.output].base
        losses.append(float(loss.double().mean()))
    spread, size = max(losses) - min(losses), 1 + abs(losses[0])
    return max(spread if spread < JUMP * size else 0.0, ROUNDING * size), spreads


def _comparable(value: Any) -> bool:
    """True for a tensor of real or complex numbers in full precision, all of them finite."""
    wide = isinstance(value, Tensor) and value.dtype in (torch.float64, torch.complex128)
    return wide and value.numel() > 0 and bool(value.isfinite().all())


def _counts(value: Any) -> bool:
    """True for a tensor of integers or truth values."""
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def _typical(value: Tensor) -> float:
    """A mean of the sizes of entries that are not 0, in which small ones count most: ``mean(|z|^(-1/2))^-2``."""
    sizes = value.abs().double()
    there = sizes > 0
    roots = torch.where(there, sizes, torch.inf).pow_(-0.5).sum() / there.sum()
    return float(roots.pow(-2)) if bool(there.any()) else 0.0
