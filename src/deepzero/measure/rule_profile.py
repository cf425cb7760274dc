"""Where the time of difference propagation goes: a pass of its own, in which every rule is timed.

One chunk of each parameter is propagated on one thread, and its times are weighted by the number of its coordinates.
The passes that are compared with other sides are never profiled.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deepzero.evaluators.workers import parallel_map
from deepzero.graph.forward import Values
from deepzero.graph.program import Cone, Program, Step
from deepzero.graph.propagate import loss_differences
from deepzero.measure.cases import Problem
from deepzero.measure.sides import DeepZero


@dataclass(frozen=True)
class ParameterTime:
    """What the queries of one parameter take, alone on one thread.

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
        rules: rule -> share, the largest first; ``other`` is what happens between rules.
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


def _one_chunk(
    program: Program, values: Values, name: str, indices: Tensor, offset: float
) -> tuple[float, dict[str, float]]:
    """Seconds per query, and those inside each rule; the first run fills memos and is not counted."""
    spent: dict[str, float] = defaultdict(float)
    cone = _instrumented(program.cones[name], spent)

    def propagate() -> None:
        loss_differences(cone, values, program.graph.output, indices, offset)

    propagate()
    spent.clear()
    start = time.perf_counter()
    propagate()
    total = time.perf_counter() - start
    return total / len(indices), {rule: seconds / len(indices) for rule, seconds in spent.items()}


def _instrumented(cone: Cone, spent: dict[str, float]) -> Cone:
    def timed(step: Step) -> Step:
        return step if step.rule is None else replace(step, rule=_stopwatch(step.rule, spent))

    return replace(cone, steps=tuple(timed(step) for step in cone.steps))


def _stopwatch(rule: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return rule(*args, **kwargs)
        finally:
            spent[rule.__name__] += time.perf_counter() - start

    return timed


def _weighted(problem: Problem, chunks: dict[str, int], measured: dict[str, tuple[float, dict[str, float]]]) -> Profile:
    counts = {name: len(indices) for name, indices in problem.coordinates.items()}
    total = sum(counts[name] * seconds for name, (seconds, _) in measured.items())
    rules: dict[str, float] = defaultdict(float)
    for name, (_, spent) in measured.items():
        for rule, seconds in spent.items():
            rules[rule] += counts[name] * seconds / total
    rules["other"] = 1 - sum(rules.values())
    parameters = tuple(
        ParameterTime(
            name, counts[name], min(chunks[name], counts[name]), 1e6 * seconds, counts[name] * seconds / total
        )
        for name, (seconds, _) in measured.items()
    )
    return Profile(parameters, dict(sorted(rules.items(), key=lambda item: -item[1])))
