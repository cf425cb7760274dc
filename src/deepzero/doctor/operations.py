"""Which operations have difference rules, which fall back, or why the model cannot be exported."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from deepzero.doctor.records import Operations
from deepzero.errors import DeepZeroError, InvalidInputError
from deepzero.evaluators import AutomaticEvaluator, Evaluator, PropagationEvaluator
from deepzero.graph.capture import is_getitem
from deepzero.graph.program import Program, Step
from deepzero.graph.rules import fallback
from deepzero.objective import NetworkObjective, parameters_of


def check_operations(
    evaluator: PropagationEvaluator,
    objective: NetworkObjective,
    batch: tuple[Any, ...],
    *,
    fell: Collection[str] = (),
) -> Operations:
    """Export the model and look at every operation between a parameter and the loss.

    Args:
        evaluator: holds the program.
        objective: the network.
        batch: ``x, y``.
        fell: names of the operations in the graph that have a rule and were seen to fall back, as
            :func:`~deepzero.graph.rules.fallback.watch_fallbacks` collects them.
    """
    try:
        program = evaluator.program(objective, batch)
    except InvalidInputError:
        raise
    except Exception as error:  # whatever it is, a report that names it helps more than a traceback
        return Operations({}, {}, problem=described(error))
    sizes = {name: p.numel() for name, p in parameters_of(objective).items()}
    behind = sum(sizes[name] for name, cone in program.cones.items() if any(_falls(s, fell) for s in cone.steps))
    ruled, fallen = _counted(program, fell)
    whole = sum(sizes.values())
    again = program.recomputed
    return Operations(
        ruled,
        fallen,
        behind_fallbacks=behind / whole,
        run_again=again,
        behind_run_again=sum(sizes[name] for name in again) / whole,
    )


def propagation_of(evaluator: Evaluator) -> PropagationEvaluator | None:
    """The evaluator that propagates differences, if one may."""
    if isinstance(evaluator, AutomaticEvaluator):
        return evaluator.propagation
    return evaluator if isinstance(evaluator, PropagationEvaluator) else None


def described(error: Exception) -> str:
    """What went wrong: the message of an error that was meant for the user, and of any other where it was raised."""
    if isinstance(error, DeepZeroError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split()) or "without a message"
    return (
        f"{type(error).__name__}: {said} (raised in {last.name}, {Path(last.filename).name} line {last.lineno}). This "
        "was not foreseen: please report it; meanwhile use evaluator=dz.SequentialEvaluator()"
    )


def _falls(step: Step, fell: Collection[str]) -> bool:
    return step.rule is fallback or any(part.name in fell for part in step.parts)


def _counted(program: Program, fell: Collection[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Operations that their rules serve and those that the fallback does, each with its number in the graph."""
    steps = {step.node: step for cone in program.cones.values() for step in cone.steps if step.rule is not None}
    ruled: Counter[str] = Counter()
    fallen: Counter[str] = Counter()
    for step in steps.values():
        for part in step.parts:
            if not is_getitem(part):
                falls = step.rule is fallback or part.name in fell
                (fallen if falls else ruled)[str(part.target)] += 1
    return dict(sorted(ruled.items())), dict(sorted(fallen.items()))
