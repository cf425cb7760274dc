"""One case from start to record: agreement, where the time goes, memory, then rounds of all sides in turn."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from deepzero import validation
from deepzero.measure.agreement import Agreement, check
from deepzero.measure.cases import Problem, problem
from deepzero.measure.forms import Trial
from deepzero.measure.peak_memory import Memory, measure_memory
from deepzero.measure.rounds import Spread, Timing, ratio
from deepzero.measure.rule_profile import Profile, profile
from deepzero.measure.sides import BlockReuse, DeepZero, Naive, Side
from deepzero.measure.timed_part import in_full_chunks

log = logging.getLogger(__name__)

MEMORY_SECONDS = 10.0
MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """How a case is measured.

    Attributes:
        batch: images of the batch.
        sparsity: fraction of the weights that Smart-Ratio leaves out; None for the case's own.
        step_size: of the finite difference.
        threads: of torch, and so workers of deepzero.
        rounds: how often the sides take turns.
        seconds_per_side: how long each side is timed in all rounds together, about; None for the case's own.
        whole: time deepzero on all coordinates in every round, however long that takes.
        memory: measure the peak of memory at the default budget.
        budget_mib: a further budget, in MiB, at which memory is measured.
        seed: of everything that is drawn.
    """

    batch: int = 128
    sparsity: float | None = None
    step_size: float = 5e-3
    threads: int = 2
    rounds: int = 5
    seconds_per_side: float | None = None
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
        if self.budget_mib is not None:
            validation.count("budget_mib", self.budget_mib)

    @property
    def problem(self) -> dict[str, Any]:
        """What defines the problem."""
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
        method: what was timed.
        queries_per_second: by round.
        timings: by round.
        trial: the forms that a loop was tried in, of which it took the fastest; None for deepzero.
    """

    method: str
    queries_per_second: Spread
    timings: tuple[Timing, ...]
    trial: Trial | None


@dataclass(frozen=True)
class CaseReport:
    """All that was measured on a case."""

    problem: Problem
    sides: dict[str, SideReport]
    ratios: dict[str, Spread]
    agreement: Agreement
    profile: Profile
    memory: tuple[Memory, ...]


def run(name: str, settings: Settings) -> CaseReport:
    """Measure a case; torch's thread count is as before afterwards.

    Raises:
        InvalidInputError: an argument is outside its domain.
        VerificationError: the sides do not compute the same numbers.
        BudgetError: a memory budget is too small for one query.
    """
    asked = problem(name, **settings.problem)
    with _threads(settings.threads):
        log.info("%s: %d queries an estimate; trying the forms of a loop, measuring costs", name, asked.queries)
        naive, reuse, deepzero = Naive(asked), BlockReuse(asked), DeepZero(asked, whole=settings.whole)
        for loop in (naive, reuse):
            log.info("%s runs in its fastest form: %s", loop.name, loop.loop.form.name)
        agreement = check(asked, naive, reuse, deepzero)
        memory = tuple(_memory(deepzero, settings, budget) for budget in settings.budgets)
        breakdown = profile(asked, deepzero)
        sides: list[Side] = [naive, reuse, deepzero]
        timings = _rounds(sides, settings.rounds, _seconds(asked, settings) / settings.rounds)
    reports = {side.name: _side_report(side, timings[side.name]) for side in sides}
    ratios = {f"deepzero/{s.name}": ratio(timings["deepzero"], timings[s.name]) for s in (naive, reuse)}
    return CaseReport(asked, reports, ratios, agreement, breakdown, memory)


def _seconds(asked: Problem, settings: Settings) -> float:
    return asked.case.seconds if settings.seconds_per_side is None else settings.seconds_per_side


def _rounds(sides: list[Side], rounds: int, seconds: float) -> dict[str, list[Timing]]:
    """A B C A B C ...: whatever else slows the machine down meets all sides."""
    timings: dict[str, list[Timing]] = {side.name: [] for side in sides}
    for turn in range(rounds):
        for side in sides:
            timings[side.name].append(side.time(seconds, turn))
        speeds = ", ".join(f"{name} {timed[-1].rate:,.1f}" for name, timed in timings.items())
        log.info("round %d of %d, queries per second: %s", turn + 1, rounds, speeds)
    return timings


def _side_report(side: Side, timings: list[Timing]) -> SideReport:
    return SideReport(side.method, Spread.of([t.rate for t in timings]), tuple(timings), side.trial)


def _memory(side: DeepZero, settings: Settings, budget: int | None) -> Memory:
    log.info("measuring memory at %s", "the default budget" if budget is None else f"{budget // MIB} MiB")
    asked = side.problem
    part = in_full_chunks(
        asked.coordinates, side.chunks, side.fraction(MEMORY_SECONDS), asked.seed, least=settings.threads
    )
    counts = {name: len(indices) for name, indices in part.items()}
    return measure_memory(counts, threads=settings.threads, budget=budget, name=asked.case.name, **settings.problem)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
