"""A profile of difference propagation: a pass of its own, in which every rule is timed.

One chunk of each parameter is propagated on one thread, and its times are weighted by the number of its coordinates.
The passes that are compared with other sides are never profiled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepzero.evaluators.workers import parallel_map
from deepzero.graph.capture import is_getitem
from deepzero.graph.forward import Values
from deepzero.graph.program import Cone, Program, Step
from deepzero.graph.propagate import loss_differences
from deepzero.measure.cases import Problem
from deepzero.measure.sides import DeepZero
from deepzero.stopwatch import StageStopwatch, seconds_of

OTHER = "other"
"""Time between the rules."""


@dataclass(frozen=True)
class ParameterTime:
    """Time of the queries of one parameter, alone on one thread.

    Attributes:
        name: the parameter.
        queries: coordinates of the whole set.
        chunk: coordinates that are propagated together.
        microseconds: of one query.
        share: of the time of all queries.
    """

    name: str
    queries: int
    chunk: int
    microseconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Shares of the time of all queries.

    Attributes:
        parameters: in the order of the network.
        rules: share of each rule by the operations that it answers for, the largest first; ``other`` is between rules.
    """

    parameters: tuple[ParameterTime, ...]
    rules: dict[str, float]


def profile(problem: Problem, side: DeepZero) -> Profile:
    """Profile one chunk of each parameter."""
    program = side.evaluator.program(side.objective, problem.batch)
    values = side.evaluator.base_values(program, side.objective, problem.batch, problem.seed)

    def measure(name: str) -> tuple[float, dict[str, float]]:
        indices = problem.coordinates[name][: side.chunks[name]]
        return _one_chunk(program, values, name, indices, problem.step_size)

    names = problem.coordinates.names
    measured = dict(zip(names, parallel_map(measure, names, 1, torch.device("cpu")), strict=True))
    return _weighted(problem, side.chunks, measured)


def operations(step: Step) -> str:
    """The operations that a step stands for, as PyTorch calls them.

    Where one rule answers for several, as for a batch norm with the activation behind it, they are joined by a plus.
    """
    names = [str(getattr(node.target, "overloadpacket", node.target)) for node in step.parts if not is_getitem(node)]
    return " + ".join(name.removeprefix("aten.") for name in names)


def _one_chunk(
    program: Program, values: Values, name: str, indices: Tensor, offset: float
) -> tuple[float, dict[str, float]]:
    """Seconds per query, and those inside each rule; the first run fills memos and is not counted."""
    cone = program.cones[name]
    watch = StageStopwatch(operations(step) for step in cone.steps if step.rule is not None)
    propagate = partial(loss_differences, _timed(cone, watch), values, program.graph.output, indices, offset)
    propagate()
    first = dict(watch.seconds)
    total = seconds_of(propagate)
    return total / len(indices), {rule: (watch.seconds[rule] - first[rule]) / len(indices) for rule in first}


def _timed(cone: Cone, watch: StageStopwatch) -> Cone:
    """The cone with a stopwatch around every rule."""

    def timed(step: Step) -> Step:
        return step if step.rule is None else replace(step, rule=_TimedRule(step.rule, operations(step), watch))

    return replace(cone, steps=tuple(timed(step) for step in cone.steps))


@dataclass(frozen=True, eq=False)
class _TimedRule:
    """A rule that is timed. In a set of rules it counts as the rule, so that it gets the same kinds of difference."""

    rule: Callable[..., Any]
    name: str
    watch: StageStopwatch

    def __hash__(self) -> int:
        return hash(self.rule)

    def __eq__(self, other: object) -> bool:
        return self.rule is other

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.watch(self.name):
            return self.rule(*args, **kwargs)


def _weighted(problem: Problem, chunks: dict[str, int], measured: dict[str, tuple[float, dict[str, float]]]) -> Profile:
    counts = {name: len(indices) for name, indices in problem.coordinates.items()}
    total = sum(counts[name] * seconds for name, (seconds, _) in measured.items())
    rules: dict[str, float] = defaultdict(float)
    for name, (_, spent) in measured.items():
        for rule, seconds in spent.items():
            rules[rule] += counts[name] * seconds / total
    rules[OTHER] = 1 - sum(rules.values())
    parameters = tuple(
        ParameterTime(
            name, counts[name], min(chunks[name], counts[name]), 1e6 * seconds, counts[name] * seconds / total
        )
        for name, (seconds, _) in measured.items()
    )
    return Profile(parameters, dict(sorted(rules.items(), key=lambda item: -item[1])))
