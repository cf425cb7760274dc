"""The sides that are timed against each other. Each says how it extrapolates when it times only a part."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch.nn.functional as F

from deepzero.coordinates import Coordinates, StepContext
from deepzero.estimator import CGE, Estimate
from deepzero.evaluators import PropagationEvaluator
from deepzero.measure.cases import Problem
from deepzero.measure.forms import Form, Trial, forms, trial
from deepzero.measure.plain_loops import BlockReuseLoop, NaiveLoop
from deepzero.measure.rounds import Timing
from deepzero.measure.timed_part import in_full_chunks, shuffled
from deepzero.objective import NetworkObjective
from deepzero.randomness import derive_seed
from deepzero.stopwatch import Stopwatch, pace, seconds_of


class Side(Protocol):
    """Something that answers the queries of an estimate."""

    name: str
    method: str
    """What is timed, and how the rest is extrapolated."""
    trial: Trial | None
    """The forms that it was tried in, if it had a choice."""

    def time(self, seconds: float, turn: int) -> Timing:
        """One round of about so many seconds; ``turn`` seeds what it samples."""
        ...


def _settled(form: Form | None, problem: Problem, make: Callable[[Form], Side]) -> tuple[Form, Trial | None]:
    """The form that was asked for; else the fastest, with the trial that found it."""
    if form is not None:
        return form, None
    found = trial(make, forms(problem.batch[0].device))
    return found.fastest, found


class Naive:
    """One full forward per coordinate.

    Args:
        problem: what is queried.
        form: how its forwards run; by default the form that is fastest in a trial made now.

    Attributes:
        trial: how fast each form was; None where the form was given.
    """

    name = "naive"
    method = (
        "random coordinates of the whole set, one full forward each in train mode without autograd, in the form that "
        "was fastest in a trial at the start; every query costs the same, so the mean time of a query holds for all"
    )

    def __init__(self, problem: Problem, form: Form | None = None) -> None:
        self.problem = problem
        form, self.trial = _settled(form, problem, partial(Naive, problem))
        self.loop = NaiveLoop(problem, form)

    def time(self, seconds: float, turn: int) -> Timing:
        """At least one query."""
        chosen = shuffled(self.problem.coordinates, derive_seed(self.problem.seed, self.name, turn))
        self.loop.difference(*next(chosen))  # wakes threads and caches up

        def query() -> int:
            self.loop.difference(*next(chosen))
            return 1

        timed, queries = pace(query, seconds), self.problem.queries
        return Timing(queries, queries * timed.seconds / timed.done, timed.done, timed.seconds)


class BlockReuse:
    """One forward from the perturbed block on per coordinate.

    Args:
        problem: what is queried.
        form: how its forwards run; by default the form that is fastest in a trial made now.

    Attributes:
        trial: how fast each form was; None where the form was given.
    """

    name = "block_reuse"
    method = (
        "cached inputs of the blocks, in the form that was fastest in a trial at the start; queries of each block are "
        "timed in turn, and the mean times are weighted by how many coordinates the blocks hold; one base forward is "
        "added"
    )

    def __init__(self, problem: Problem, form: Form | None = None) -> None:
        self.problem = problem
        form, self.trial = _settled(form, problem, partial(BlockReuse, problem))
        self.loop = BlockReuseLoop(problem, form)
        self._blocks = self._by_block()

    def _by_block(self) -> list[Coordinates]:
        coordinates = self.problem.coordinates
        blocks: dict[int, list[str]] = {}
        for name in coordinates:
            blocks.setdefault(self.loop.stage_of(name), []).append(name)
        return [Coordinates({n: coordinates[n] for n in names}) for _, names in sorted(blocks.items())]

    def time(self, seconds: float, turn: int) -> Timing:
        """At least one query of each block."""
        seed = derive_seed(self.problem.seed, self.name, turn)
        streams = [shuffled(block, derive_seed(seed, i)) for i, block in enumerate(self._blocks)]
        self.loop.refresh()  # wakes threads and caches up
        watch = Stopwatch()
        base = seconds_of(self.loop.refresh)
        totals, passes = [0.0] * len(streams), 0
        while passes == 0 or watch.seconds() < seconds:
            for i, stream in enumerate(streams):
                totals[i] += seconds_of(partial(self.loop.difference, *next(stream)))
            passes += 1
        whole = base + sum(b.count * t / passes for b, t in zip(self._blocks, totals, strict=True))
        return Timing(self.problem.queries, whole, 1 + passes * len(streams), base + sum(totals))


@dataclass
class _Chosen:
    """A schedule that is told what to query next."""

    now: Coordinates

    def coordinates(self, context: StepContext) -> Coordinates:
        """The set it was last told."""
        return self.now


class DeepZero:
    """Coordinate-wise estimates by difference propagation, as ``dz.CGE`` makes them by default.

    Attributes:
        costs: the measured cost table.
    """

    name = "deepzero"
    method = (
        "estimates of all coordinates, or, where these take longer than a round, of a random part of the chunks of "
        "each parameter's coordinates, drawn anew each round; the time beyond the base forward is then scaled by the "
        "measured cost of all coordinates over that of the part"
    )

    def __init__(self, problem: Problem, *, whole: bool = False, budget: int | None = None) -> None:
        self.problem = problem
        self.evaluator = PropagationEvaluator() if budget is None else PropagationEvaluator(memory_budget=budget)
        self._whole = whole
        self.trial: Trial | None = None
        self._chosen = _Chosen(problem.coordinates)
        self.estimator = CGE(
            problem.model,
            loss=F.cross_entropy,
            step_size=problem.step_size,
            sparsity=self._chosen,
            evaluator=self.evaluator,
            seed=problem.seed,
        )
        self.objective = cast(NetworkObjective, self.estimator.objective)
        self.costs = self.evaluator.costs(self.objective, *problem.batch, offset=problem.step_size, repeats=2)
        self.chunks = {name: cost.chunk for name, cost in self.costs.parameters.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Coordinates of the whole set by parameter."""
        return {name: len(indices) for name, indices in self.problem.coordinates.items()}

    def estimate(self, chosen: Coordinates) -> Estimate:
        """An estimate on some coordinates."""
        self._chosen.now = chosen
        return self.estimator.estimate(*self.problem.batch)

    def time(self, seconds: float, turn: int) -> Timing:
        """As many estimates as fit, at least one."""
        fraction, spent, timed = self.fraction(seconds), 0.0, 0
        whole: list[float] = []
        while not whole or spent * (len(whole) + 1) <= seconds * len(whole):
            seed = derive_seed(self.problem.seed, self.name, turn, len(whole))
            part = in_full_chunks(self.problem.coordinates, self.chunks, fraction, seed)
            watch = Stopwatch()
            estimate = self.estimate(part)
            took = watch.seconds()
            whole.append(self._extrapolated(took, part))
            spent, timed = spent + took, timed + estimate.queries
        return Timing(self.problem.queries, statistics.fmean(whole), timed, spent)

    def _extrapolated(self, spent: float, part: Coordinates) -> float:
        """Seconds of an estimate of all coordinates, from those of a part."""
        if part.count == self.problem.coordinates.count:
            return spent
        cost = self.costs.seconds_per_query()
        every = sum(count * cost[name] for name, count in self.counts.items())
        timed = sum(len(indices) * cost[name] for name, indices in part.items())
        return self.costs.base + max(spent - self.costs.base, 0.0) * every / timed

    def fraction(self, seconds: float) -> float:
        """The part of the coordinates that fits into so many seconds, by the cost table."""
        predicted = self.costs.seconds_per_step(self.counts)
        if self._whole or predicted <= seconds:
            return 1.0
        return max(seconds - self.costs.base, 0.0) / (predicted - self.costs.base)
