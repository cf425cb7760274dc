"""Two checks of every program when it is made: that the graph is the program, and that the rules are the graph.

The graph is compared with the live program in the model's own dtype, at the parameters and at points near them, where
all of them have moved. Its rules are compared with plain runs of the graph, both in float64, where rounding cannot be
mistaken for a fault: for every parameter tensor, at a random few of its coordinates (:mod:`deepzero.graph.rule_check`).
Nothing of the user's is run in another dtype, no module is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepzero.errors import GraphError, VerificationError, from_black_box
from deepzero.graph.forward import graph_inputs, run
from deepzero.graph.program import Cone, Program
from deepzero.graph.rule_check import MORE, Comparison, RuleCheck
from deepzero.graph.wide_forward import WideForward
from deepzero.objective import NetworkObjective, Parameters, displaced, parameters_of
from deepzero.operator import standing_in
from deepzero.randomness import Draws, derive_seed

NEAR = 1e-3
"""Distance of the points at which graph and program are compared, relative to the parameters."""


@dataclass(frozen=True)
class Check:
    """A check of a program's rules.

    Attributes:
        coordinates: coordinates whose differences were compared, at the loss or where the way to it had been checked.
        worst: largest error, relative to the difference.
        floor: smallest loss difference that could be told from the noise of the plain runs: where all differences are
            below it, the check finds nothing.
        silent: parameters of which no candidate made a difference above the noise where it was compared.
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
    worst, accepted = 0.0, tolerance_of(objective)
    for trial in range(3 if near else 1):
        if trial:
            found, live = losses_near(program, objective, batch, seed, draws, trial=trial)
        else:
            found, live = graph_loss(program, objective, batch, draws, None), base
        apart = abs(float(found) - float(live)) / (1e-3 + abs(float(live)) + abs(float(base)))
        if not apart <= accepted and (bool(live.isfinite()) or bool(found.isfinite())):
            where = "near the parameters" if trial else "at the parameters"
            raise GraphError(
                f"the exported graph is not the program: {where} it has the loss {float(found):.9g}, the program "
                f"{float(live):.9g}"
            )
        worst = max(worst, apart if apart <= accepted else 0.0)
    return worst


def losses_near(
    program: Program, objective: NetworkObjective, batch: tuple[Any, ...], seed: int, draws: Draws, *, trial: int = 1
) -> tuple[Tensor, Tensor]:
    """The losses of the graph and of the live program at a point near the parameters, where all of them have moved."""
    moved = displaced(parameters_of(objective), derive_seed(seed, "verify", trial), NEAR)
    with draws.answers.opened():
        live = objective.evaluate(moved, batch, seed=seed, draws=draws).loss
    return graph_loss(program, objective, batch, draws, moved), live


def hides_factors(parameters: Parameters) -> bool:
    """True if a tensor of parameters is all zero: what the program multiplies it by does not show in the loss.

    So are the last layers of many networks at their start, the second factors of low-rank adapters, and the gains of
    residual branches. A bias is added, and hides nothing.
    """
    factors = [p for name, p in parameters.items() if p.numel() and "bias" not in name.rpartition(".")[2]]
    return bool(factors) and not bool(torch.stack([p.any() for p in factors]).all())


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
    """Compare propagated differences with those of plain runs of the graph, in float64.

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
    wide = WideForward.of(program, objective, batch, draws, room=room, most=MORE)
    check, parameters = RuleCheck(wide), parameters_of(objective)
    count, worst, silent = 0, 0.0, []
    for cone in _nearest_first(wide.program):
        name = cone.parameter
        if program.cones[name].reason or not parameters[name].numel():
            continue
        try:
            compared = check.compare(cone, sizes[name], derive_seed(seed, "verify", name))
        except (VerificationError, MemoryError):
            raise
        except Exception as error:
            if refused is None or from_black_box(error):
                raise
            refused(name, error)
            continue
        wrong = [one for one in compared if not one.agrees]
        if wrong:
            raise VerificationError(_disagreement(name, wrong))
        count += len({one.index for one in compared})
        worst = max([worst, *(one.error / one.size for one in compared if one.sharp)])
        if not any(one.size > one.floor for one in compared):
            silent.append(name)
    return Check(count, worst, wide.floor, tuple(silent), 0.0)


def _nearest_first(program: Program) -> list[Cone]:
    """The cones of the parameters, those that begin nearest to the loss first."""
    place = {node: i for i, node in enumerate(program.graph.nodes)}
    begins = {name: place[cone.steps[0].node] if cone.steps else math.inf for name, cone in program.cones.items()}
    return sorted(program.cones.values(), key=lambda cone: begins[cone.parameter], reverse=True)


def _disagreement(name: str, wrong: list[Comparison]) -> str:
    lines = [f"  {name}{one}" for one in wrong]
    return (
        "difference propagation disagrees with plain runs of the same graph in float64:\n" + "\n".join(lines) + "\n"
        "A difference rule is wrong: please report it, with the model. evaluator=dz.SequentialEvaluator() does not "
        "use rules"
    )
