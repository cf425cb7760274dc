"""Two checks of every program when it is made: that the graph is the program, and that the rules are the graph.

The graph is compared with the live program in the model's own dtype, at the parameters and at points near them, where
all of them have moved. Its rules are compared with plain runs of the graph, both in float64, where rounding cannot be
mistaken for a fault: for every parameter tensor, at the coordinates that matter most of a random few. Nothing of the
user's is run in another dtype, no module is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from deepzero.errors import GraphError, VerificationError, from_black_box
from deepzero.graph.capture import Node
from deepzero.graph.forward import Recomputation, Values, graph_inputs, held_bytes, run
from deepzero.graph.program import Cone, Program, compile_program, reads
from deepzero.graph.propagate import loss_differences
from deepzero.objective import NetworkObjective, Parameters, as_real, displaced, parameters_of
from deepzero.operator import standing_in
from deepzero.randomness import Draws, derive_seed
from deepzero.step_sizes import size_of

CANDIDATES = 8
"""Random coordinates of a parameter that are propagated; checked are the first and the one that matters most."""
MORE = 64
"""Candidates where none of the first moves the loss: tables of which a batch looks up a few rows."""
RELATIVE = 1e-6
"""Largest accepted error of a rule in float64, relative to the loss difference."""
WORKSPACE = 4
"""Bytes that one coordinate may take, in multiples of the base forward: a float64 convolution unfolds its input."""
NEAR = 1e-3
"""Distance of the points at which graph and program are compared, relative to the parameters."""


@dataclass(frozen=True)
class Check:
    """A check of a program's rules.

    Attributes:
        coordinates: loss differences that were compared.
        worst: largest error, relative to the loss difference.
        floor: smallest loss difference that could be told from the noise of the plain runs: where all differences are
            below it, the check finds nothing.
        silent: parameters of which no candidate moved the loss by more than the floor.
        program: largest difference of the losses of graph and live program, relative to the loss.
    """

    coordinates: int
    worst: float
    floor: float
    silent: tuple[str, ...]
    program: float

    def __str__(self) -> str:
        blind = f"; without effect on the loss: {', '.join(self.silent[:5])}" if self.silent else ""
        return (
            f"{self.coordinates} coordinates in float64, worst relative error {self.worst:.1e} (sharp above "
            f"{self.floor:.1e}); graph and program agree to {self.program:.1e}{blind}"
        )


def tolerance_of(objective: NetworkObjective) -> float:
    """Largest accepted difference of graph and program, relative to the loss: many roundings in the coarsest dtype."""
    coarsest = max(float(torch.finfo(p.dtype).eps) for p in parameters_of(objective).values())
    return 1000 * coarsest if coarsest < 1e-4 else 0.2


def compare_with_program(
    program: Program,
    objective: NetworkObjective,
    batch: tuple[Any, ...],
    seed: int,
    draws: Draws,
    base: Tensor,
    *,
    near: bool = True,
) -> float:
    """Compare the graph with the live program, at the parameters and, with ``near``, at two points around them.

    Returns:
        The largest difference of the two losses, relative to the loss.

    Raises:
        GraphError: they are not the same function.
    """
    parameters = parameters_of(objective)
    worst, accepted = 0.0, tolerance_of(objective)
    for trial in range(3 if near else 1):
        moved = displaced(parameters, derive_seed(seed, "verify", trial), NEAR) if trial else dict(parameters)
        with draws.answers.opened():
            live = objective.evaluate(moved, batch, seed=seed, draws=draws).loss if trial else base
        found = graph_loss(program, objective, batch, draws, moved if trial else None)
        apart = abs(float(found) - float(live)) / (1e-3 + abs(float(live)) + abs(float(base)))
        if not apart <= accepted and (bool(live.isfinite()) or bool(found.isfinite())):
            where = "near the parameters" if trial else "at the parameters"
            raise GraphError(
                f"the exported graph is not the program: {where} it has the loss {float(found):.9g}, the program "
                f"{float(live):.9g}"
            )
        worst = max(worst, apart if apart <= accepted else 0.0)
    return worst


def graph_loss(
    program: Program, objective: NetworkObjective, batch: tuple[Any, ...], draws: Draws, parameters: Parameters | None
) -> Tensor:
    """The graph's loss, averaged in float64."""
    values = run(
        program.graph, graph_inputs(program.graph, objective, batch, parameters=parameters), keep=(), draws=draws
    )
    loss: Tensor = values[program.graph.output].base
    return loss.double().mean()


@standing_in()  # rules are checked, not black boxes: these are not called
def verify(
    program: Program,
    objective: NetworkObjective,
    batch: tuple[Any, ...],
    sizes: Mapping[str, float],
    seed: int,
    draws: Draws,
    refused: Callable[[str, Exception], None] | None = None,
    *,
    room: float = math.inf,
) -> Check:
    """Compare propagated loss differences with those of plain runs of the graph, in float64.

    Args:
        program: the program.
        objective: holds parameters and buffers.
        batch: arguments of the program.
        sizes: step by parameter.
        seed: of the coordinates.
        draws: the step's random numbers.
        refused: called with a parameter whose rules raise, and the error; by default the error goes on.
        room: bytes of tensors that the check may hold; fewer coordinates are propagated at a time if it is little.

    Raises:
        VerificationError: a rule is wrong.
    """
    wide = _WideForward.of(program, objective, batch, draws, room)
    parameters = parameters_of(objective)
    floor = 30 * wide.noise()
    count, worst, silent = 0, 0.0, []
    for name, cone in wide.program.cones.items():
        if program.cones[name].reason or not parameters[name].numel():
            continue
        try:
            rows = wide.compare(cone, sizes[name], derive_seed(seed, "verify", name))
        except (VerificationError, MemoryError):
            raise
        except Exception as error:
            if refused is None or from_black_box(error):
                raise
            refused(name, error)
            continue
        wrong = [row for row in rows if not _agrees(row, floor)]
        if wrong:
            raise VerificationError(_disagreement(name, wrong))
        count += len(rows)
        sharp = [row for row in rows if abs(row[2]) > floor / RELATIVE]
        worst = max([worst, *(abs(f - e) / abs(e) for _, f, e in sharp)])
        if not any(abs(e) > floor for *_, e in rows):
            silent.append(name)
    return Check(count, worst, floor, tuple(silent), 0.0)


Row = tuple[int, float, float]
"""Flat index, propagated and plain loss difference."""


def _agrees(row: Row, floor: float) -> bool:
    _, found, expected = row
    if not (math.isfinite(found) and math.isfinite(expected)):
        return math.isfinite(found) == math.isfinite(expected)
    return abs(found - expected) <= floor + RELATIVE * abs(expected)


@dataclass(frozen=True)
class _WideForward:
    """A forward of a program's graph in float64.

    Attributes:
        program: the program, in float64.
        inputs: of its graph.
        values: what the graph computes from them, where rules or plain runs read it.
        draws: the step's random numbers.
        at_once: coordinates that are propagated at a time.
    """

    program: Program
    inputs: Mapping[Node, Any]
    values: Values
    draws: Draws
    at_once: int

    @classmethod
    def of(
        cls, program: Program, objective: NetworkObjective, batch: tuple[Any, ...], draws: Draws, room: float
    ) -> _WideForward:
        """Of a program at the parameters; ``room`` bounds the bytes of tensors."""
        wide = compile_program(program.graph.widened, parameters_of(objective), strict=False)
        kept = wide.kept | {node for cone in wide.cones.values() for node in reads(wide.graph, cone)}
        inputs = graph_inputs(wide.graph, objective, batch, dtype=torch.float64)
        values = run(wide.graph, inputs, keep=kept, draws=draws, wide=True)
        base_bytes = max(1, held_bytes(values))
        at_once = int(max(1, min(MORE, (room - base_bytes) // (WORKSPACE * base_bytes))))
        return cls(wide, inputs, values, draws, at_once)

    def compare(self, cone: Cone, size: float, seed: int) -> list[Row]:
        """Loss differences of a few coordinates of one parameter, both ways.

        At a step of a thousandth of the parameter, whatever the estimate's: rules are exact at any step, and the plain
        runs' rounding must not hide the difference. At the estimate's own, ``size``, where that one has no effect
        (losses that move in jumps).
        """
        if not cone.sources:
            return []
        source = self.inputs[cone.sources[0]]
        entries = source.numel() * (2 if source.is_complex() else 1)
        generator = torch.Generator().manual_seed(seed)
        chosen, found, step = torch.zeros(0), torch.zeros(0), size
        for count, step in ((CANDIDATES, NEAR * (size_of(source) or 1.0)), (MORE, size)):
            chosen = torch.randint(entries, (count,), generator=generator)
            found = self._propagated(cone, chosen, step)
            if bool(found.any()):
                break
        again = Recomputation(self.program.graph, cone.sources, self.values, self.draws, wide=True)
        base = self.values[self.program.graph.output].base.double().mean()
        picked = sorted({0, int(found.abs().nan_to_num(nan=math.inf).argmax())})
        return [
            (
                int(chosen[k]),
                float(found[k]),
                float(again.loss(dict.fromkeys(cone.sources, _moved(source, int(chosen[k]), step))) - base),
            )
            for k in picked
        ]

    def _propagated(self, cone: Cone, chosen: Int64[Tensor, " n"], step: float) -> Float64[Tensor, " n"]:
        output = self.program.graph.output
        parts = [loss_differences(cone, self.values, output, c, step).cpu() for c in torch.split(chosen, self.at_once)]
        for value in self.values.values():
            value.memo.clear()
        return torch.cat(parts)

    def noise(self) -> float:
        """Rounding noise of the plain runs: how far the loss moves with the last digits of the parameters."""
        graph, losses = self.program.graph, []
        generator = torch.Generator().manual_seed(0)
        for trial in range(3):
            nudged = dict(self.inputs)
            for node in graph.parameter_inputs():
                p = self.inputs[node]
                if trial and (p.is_floating_point() or p.is_complex()):
                    sign = torch.randint(0, 2, p.shape, generator=generator).to(p.device) * 2 - 1
                    nudged[node] = p * (1 + 4e-16 * sign)
            loss: Tensor = run(graph, nudged, keep=(), draws=self.draws, wide=True)[graph.output].base
            losses.append(float(loss.double().mean()))
        spread = max(losses) - min(losses)
        rounding = 1e-15 * (1 + abs(losses[0]))
        return max(spread if spread < 1e-6 * (1 + abs(losses[0])) else 0.0, rounding)


def _moved(source: Tensor, index: int, size: float) -> Tensor:
    """A copy with one entry moved."""
    moved = source.detach().clone(memory_format=torch.contiguous_format)
    flat = as_real(moved).view(-1)
    flat[index] += size
    return moved


def _disagreement(name: str, rows: list[Row]) -> str:
    lines = [f"  {name}[{index}]: propagated {found:.9e}, plain run {expected:.9e}" for index, found, expected in rows]
    return (
        "difference propagation disagrees with plain runs of the same graph in float64:\n" + "\n".join(lines) + "\n"
        "A difference rule is wrong: please report it, with the model. evaluator=dz.SequentialEvaluator() does not "
        "use rules"
    )
