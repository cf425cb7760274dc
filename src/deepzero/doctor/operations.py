"""The way of queries through a network: operations with difference rules, fallbacks, or why nothing is propagated."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deepzero.doctor.direction_samples import sample
from deepzero.errors import DeepZeroError, InvalidInputError
from deepzero.estimator import Estimator
from deepzero.evaluator_choice import NAMED
from deepzero.evaluators import Evaluator, PropagationEvaluator
from deepzero.graph.capture import is_getitem
from deepzero.graph.program import Program, Step
from deepzero.graph.rules import fallback
from deepzero.graph.rules.fallback import watch_fallbacks
from deepzero.objective import NetworkObjective, parameters_of
from deepzero.probes import Perturbations, coordinates_of
from deepzero.stencils import FORWARD

MOST_SAMPLES = 64
"""Directions of a first measurement, of a sweep, and of a check of gradients, unless there are more parameters."""


@dataclass(frozen=True)
class Operations:
    """The way of differences through the network.

    Attributes:
        rules: operations behind some parameter that a difference rule serves, with their number in the graph.
        fallbacks: operations behind some parameter that the generic fallback serves, with their number: they have no
            rule, or their rule does not cover the arguments that they have here.
        behind_fallbacks: part of the trainable coordinates with a fallback on their way to the loss.
        run_again: by parameter, why its queries run the operations behind it again instead of following differences.
        behind_run_again: part of the trainable coordinates for which that is so.
        problem: why differences cannot be propagated at all; None if they can.
        instead: the evaluator that answers all queries then, if the estimator itself changes over to it.
    """

    rules: dict[str, int]
    fallbacks: dict[str, int]
    behind_fallbacks: float = 0.0
    run_again: dict[str, str] = field(default_factory=dict)
    behind_run_again: float = 0.0
    problem: str | None = None
    instead: str | None = None


def check_propagation(zo: Estimator, batch: tuple[Any, ...], directions: Perturbations) -> Operations | None:
    """Look at the operations and make a first measurement.

    Args:
        zo: an estimator of a network.
        batch: the arguments of an estimate.
        directions: of the step; a few of them are measured.

    Returns:
        None where queries are answered by an evaluator that does not propagate. With a ``problem`` and nothing
        ``instead``, the estimator's evaluator cannot answer.
    """
    propagation = propagation_of(zo.evaluator)
    if propagation is None or not isinstance(zo.objective, NetworkObjective):
        return None
    automatic = propagation is not zo.evaluator
    if automatic and coordinates_of(directions) is None:
        _measure_few(zo, batch, directions)
        if evaluator_name(zo) != "propagation":
            return None
    found = check_operations(propagation, zo.objective, batch)
    if found.problem is not None and not automatic:
        return found
    try:
        with watch_fallbacks() as fell:
            _measure_few(zo, batch, directions)
    except InvalidInputError:
        raise
    except Exception as error:  # whatever it is, a report that names it helps more than a traceback
        return replace(found, problem=described(error))
    if found.problem is not None:
        return replace(found, instead=evaluator_name(zo))
    return check_operations(propagation, zo.objective, batch, fell=fell)


def _measure_few(zo: Estimator, batch: tuple[Any, ...], directions: Perturbations) -> None:
    few = sample(directions, max(MOST_SAMPLES, len(parameters_of(zo.objective))), zo.seed)
    zo.slopes(few, batch, stencil=FORWARD)


def evaluator_name(zo: Estimator) -> str:
    """The evaluator that answers: its name in ``evaluator=``, or that of its class."""
    taken = getattr(zo.evaluator, "taken", None)
    if taken is not None:
        return taken(zo.objective) or "automatic"
    return next((name for name, kind in NAMED.items() if type(zo.evaluator) is kind), type(zo.evaluator).__name__)


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
    """The evaluator that propagates differences: the one itself, or one that it may choose."""
    found = getattr(evaluator, "propagation", evaluator)
    return found if isinstance(found, PropagationEvaluator) else None


def described(error: Exception) -> str:
    """The message of an error; of one that was not meant for the user, also where it was raised."""
    if isinstance(error, DeepZeroError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split()) or "without a message"
    return (
        f"{type(error).__name__}: {message} (raised in {last.name}, {Path(last.filename).name} line {last.lineno}). "
        "This was not foreseen: please report it; meanwhile use evaluator=dz.SequentialEvaluator()"
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
