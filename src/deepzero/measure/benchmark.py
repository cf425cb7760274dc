"""One case of ``deepzero bench``: agreement, errors, floor, profile and memory, then rounds of all sides in turn."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from deepzero import validation
from deepzero.measure import cases
from deepzero.measure.block_reuse import splittable
from deepzero.measure.cases import Case, Problem, in_full_chunks
from deepzero.measure.floor import Ceilings, QueryWork, ceilings, query_work
from deepzero.measure.peak_memory import Memory, measure_memory
from deepzero.measure.rounds import Spread, Timing, by_side, in_turns, rates, ratio
from deepzero.measure.rule_profile import Profile, profile
from deepzero.measure.sides import Agreement, BlockReuse, DeepZero, FormTrial, Naive, Side, check_agreement
from deepzero.measure.slope_errors import SlopeErrors, slope_errors
from deepzero.stopwatch import Stopwatch

log = logging.getLogger(__name__)

MEMORY_SECONDS = 10.0
MIB = 1 << 20
NOISY = 0.05
"""Relative error from which a float32 loop's slopes count as noise, so that the loop in float64 is timed, too."""
LEAST_SECONDS = 0.3
"""Of a turn of a side, whatever the budget."""


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        batch: images or sequences of the batch; None for the case's own.
        sparsity: fraction of the weights that Smart-Ratio leaves out; None for the case's own.
        step_size: of the finite difference.
        threads: of torch, and so workers of deepzero.
        rounds: number of turns of each side.
        seconds_per_side: seconds that each side is timed in all rounds together, about; None for the case's own.
        seconds: of the whole case, with everything that is found out before the rounds, in place of
            ``seconds_per_side``; None for no budget.
        whole: time deepzero on all coordinates in every round, however long that takes.
        memory: measure the peak of memory at the default budget.
        budget_mib: a further budget, in MiB, at which memory is measured.
        seed: of everything that is drawn.
    """

    batch: int | None = None
    sparsity: float | None = None
    step_size: float = 5e-3
    threads: int = 2
    rounds: int = 5
    seconds_per_side: float | None = None
    seconds: float | None = None
    whole: bool = False
    memory: bool = True
    budget_mib: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        validation.count("seed", self.seed, minimum=0)
        validation.count("threads", self.threads)
        validation.count("rounds", self.rounds)
        if self.seconds_per_side is not None:
            validation.positive("seconds_per_side", self.seconds_per_side, hint="30")
        if self.seconds is not None:
            validation.positive("seconds", self.seconds, hint="600")
        if self.budget_mib is not None:
            validation.count("budget_mib", self.budget_mib)

    @property
    def problem(self) -> dict[str, Any]:
        """Keywords of :func:`deepzero.measure.problem`."""
        return {name: getattr(self, name) for name in ("batch", "sparsity", "step_size", "seed")}

    @property
    def budgets(self) -> list[int | None]:
        """Budgets in bytes at which memory is measured, the default as None."""
        default: list[int | None] = [None] if self.memory else []
        return default if self.budget_mib is None else [*default, self.budget_mib * MIB]


@dataclass(frozen=True)
class SideReport:
    """One side of a comparison.

    Attributes:
        method: the queries that were timed, and the extrapolation to all of them.
        queries_per_second: by round.
        timings: by round.
        trial: the forms that a loop was tried in, of which it took the fastest; None for deepzero.
    """

    method: str
    queries_per_second: Spread
    timings: tuple[Timing, ...]
    trial: FormTrial | None


@dataclass(frozen=True)
class CaseReport:
    """Everything measured on a case.

    Attributes:
        problem: the network, batch and coordinates.
        threads: of torch, and so workers of deepzero.
        sides: by name.
        ratios: queries per second of deepzero over those of a loop, as ``deepzero/naive``.
        agreement: of the loss differences of the sides.
        errors: of the slopes of deepzero and of the plain loops.
        ceilings: of one thread, measured in the same run.
        work: least work of a query.
        profile: shares of the time of deepzero.
        memory: at every budget.
        setup_seconds: of deepzero's first estimate, of one coordinate: export, checks, memory of differences.
    """

    problem: Problem
    threads: int
    sides: dict[str, SideReport]
    ratios: dict[str, Spread]
    agreement: Agreement
    errors: SlopeErrors
    ceilings: Ceilings
    work: QueryWork
    profile: Profile
    memory: tuple[Memory, ...]
    setup_seconds: float

    @property
    def floor_reached(self) -> Spread:
        """The floor of a query, as one thread has it, over the time of a worker that it took; 1 at the floor."""
        rates = self.sides[DeepZero.name].queries_per_second.rounds
        return Spread.of(self.work.seconds * rate / self.threads for rate in rates)


def run(name: str | Case, settings: Settings) -> CaseReport:
    """Measure a case; torch's thread count is as before afterwards.

    Raises:
        InvalidInputError: an argument is outside its domain.
        VerificationError: the sides do not compute the same numbers.
        BudgetError: a memory budget is too small for one query.
    """
    watch = Stopwatch()
    problem = cases.problem(name, **settings.problem)
    with _threads(1):
        machine = ceilings()
    with _threads(settings.threads):
        log.info("%s: %d queries; trying the forms of a loop, measuring costs", problem.case.name, problem.queries)
        deepzero = DeepZero(problem, whole_within=math.inf if settings.whole else 0.0)
        naive = Naive(problem)
        reuse = [BlockReuse(problem)] if splittable(problem.model) else []
        agreement = check_agreement(naive, [*reuse, deepzero])
        errors = slope_errors(problem, [naive, deepzero])
        double = [Naive(problem, double=True)] if errors.rounding[naive.name] > NOISY else []
        loops: list[Naive | BlockReuse] = [naive, *double, *reuse]
        for loop in loops:
            log.info("%s runs in its fastest form: %s", loop.name, loop.form.name)
        memory = tuple(_memory(deepzero, settings, budget) for budget in settings.budgets)
        breakdown, work = profile(problem, deepzero), query_work(problem, deepzero, machine)
        sides: list[Side] = [*loops, deepzero]
        timings = _take_turns(sides, settings.rounds, _turn(problem, settings, watch.seconds(), len(sides)))
    reports = {side.name: _side_report(side, timings[side.name]) for side in sides}
    deepzero_rates = rates(timings[deepzero.name])
    ratios = {f"deepzero/{loop.name}": ratio(deepzero_rates, rates(timings[loop.name])) for loop in loops}
    return CaseReport(
        problem=problem,
        threads=settings.threads,
        sides=reports,
        ratios=ratios,
        agreement=agreement,
        errors=errors,
        ceilings=machine,
        work=work,
        profile=breakdown,
        memory=memory,
        setup_seconds=deepzero.setup_seconds,
    )


def _turn(problem: Problem, settings: Settings, spent: float, sides: int) -> float:
    """Seconds of a turn of a side."""
    if settings.seconds is not None:
        return max((settings.seconds - spent) / sides / settings.rounds, LEAST_SECONDS)
    whole = problem.case.seconds if settings.seconds_per_side is None else settings.seconds_per_side
    return whole / settings.rounds


def _take_turns(sides: list[Side], rounds: int, seconds: float) -> dict[str, list[Timing]]:
    found = []
    for timings in in_turns({side.name: partial(side.time, seconds) for side in sides}, rounds):
        found.append(timings)
        speeds = ", ".join(f"{name} {timing.rate:,.1f}" for name, timing in timings.items())
        log.info("round %d of %d, queries per second: %s", len(found), rounds, speeds)
    return by_side(found)


def _side_report(side: Side, timings: list[Timing]) -> SideReport:
    return SideReport(side.method, Spread.of(rates(timings)), tuple(timings), side.trial)


def _memory(side: DeepZero, settings: Settings, budget: int | None) -> Memory:
    log.info("measuring memory at %s", "the default budget" if budget is None else f"{budget // MIB} MiB")
    most = MEMORY_SECONDS if settings.seconds is None else min(MEMORY_SECONDS, settings.seconds / 10)
    problem, fraction = side.problem, side.fraction(most)
    part = in_full_chunks(problem.coordinates, side.chunks, fraction, problem.seed, least=settings.threads)
    counts = {name: len(indices) for name, indices in part.items()}
    return measure_memory(counts, threads=settings.threads, budget=budget, name=problem.case.name, **settings.problem)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
