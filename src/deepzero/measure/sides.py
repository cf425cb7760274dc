"""The sides of a benchmark: the loops that people write, each in its fastest form, and difference propagation.

Every side states its extrapolation where it times only a part of the queries, and all of them must find the same loss
differences before they are timed. A loop that keeps the default memory format can be more than twice as slow as the
same loop in channels-last, so a comparison with one form that was fixed beforehand says little: each loop is tried in
all of its forms first, by the clock that times the sides later.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from deepzero.coordinates import Coordinates, StepContext
from deepzero.errors import VerificationError
from deepzero.estimator import CGE, Estimate
from deepzero.evaluators import PropagationEvaluator
from deepzero.measure.block_reuse import BlockReuseLoop
from deepzero.measure.cases import Problem, in_full_chunks, one_of_each, shuffled
from deepzero.measure.naive_loop import Form, NaiveLoop, eager_forms
from deepzero.measure.rounds import Timing
from deepzero.objective import NetworkObjective
from deepzero.randomness import derive_seed
from deepzero.stopwatch import Stopwatch, seconds_of, throughput

TRIAL_ROUNDS = 3
"""Most rounds of a trial; each form takes a turn in each."""
TRIAL_SECONDS = 0.02
"""Length of a turn of a trial; one that cannot make a query in it makes one."""
DROP = 1.5
"""A form this many times slower than the fastest of a round takes no further turn."""
LEFT_OUT = (
    "torch.compile is left out: compiling takes a minute or more for each network and batch shape, and gives the "
    "loop another program than the one whose function values are asked for"
)

COMPARED = 32
"""Most parameters of which a coordinate is compared."""
NOISE = 32 * torch.finfo(torch.float32).eps
"""Rounding of a float32 loss, relative to it: a sum over a few hundred roundings of either sign."""
RELATIVE = 2e-3
"""Rounding of a large difference, relative to the largest one."""


class Timed(Protocol):
    """Something that can be timed for a turn."""

    def time(self, seconds: float, turn: int) -> Timing:
        """A turn of about ``seconds``, whose number seeds the draw of a sample."""
        ...


@dataclass(frozen=True)
class FormTrial:
    """The speed of every form of a loop.

    Attributes:
        fastest: the form with the most queries a second.
        queries_per_second: median of a form's turns, by the form's name, the fastest first.
    """

    fastest: Form
    queries_per_second: dict[str, float]


def try_forms(make: Callable[[Form], Timed], candidates: list[Form]) -> FormTrial:
    """Let the forms take turns, and drop those that are far behind.

    Args:
        make: makes the loop in a given form.
        candidates: the forms.
    """
    running = {form: make(form) for form in candidates}
    rates: dict[Form, list[float]] = {form: [] for form in candidates}
    for turn in range(TRIAL_ROUNDS):
        for form, loop in running.items():
            rates[form].append(loop.time(TRIAL_SECONDS, turn).rate)
        best = max(rates[form][-1] for form in running)
        running = {form: loop for form, loop in running.items() if rates[form][-1] * DROP >= best}
    medians = {form: statistics.median(found) for form, found in rates.items()}
    order = sorted(medians, key=lambda form: -medians[form])
    return FormTrial(max(running, key=lambda form: medians[form]), {form.name: medians[form] for form in order})


class Side(ABC):
    """One way to answer the queries of an estimate.

    Attributes:
        name: its name in records.
        method: the queries that are timed, and the extrapolation to all of them, in words.
        problem: the network, batch and coordinates.
        trial: the forms it was tried in; None where it has no choice or the form was fixed.
    """

    name: str
    method: str
    problem: Problem
    trial: FormTrial | None

    @abstractmethod
    def time(self, seconds: float, turn: int) -> Timing:
        """A round of about ``seconds``, whose number seeds the draw of a sample."""


class Loop(Protocol):
    """Answers one query at a time; ``base`` is the loss at the parameters."""

    base: float

    def difference(self, name: str, index: int) -> float:
        """The loss with the entry of a flat index moved by the step, minus the base loss."""
        ...


AnyLoop = TypeVar("AnyLoop", bound=Loop)


class LoopSide(Side, Generic[AnyLoop]):
    """A loop, by default in the form that is fastest in a trial made now.

    Args:
        problem: network, batch and coordinates.
        form: of the forwards; without it all forms are tried.
        double: try the forms in float64 in place of float32.

    Attributes:
        form: of the forwards.
        loop: the loop in this form.
    """

    def __init__(self, problem: Problem, form: Form | None = None, *, double: bool = False) -> None:
        self.problem, self.trial = problem, None
        if form is None:
            forms = eager_forms(problem.batch[0].device, problem.model)
            self.trial = try_forms(partial(type(self), problem), [replace(one, double=double) for one in forms])
            form = self.trial.fastest
        if form.double:
            self.name, self.method = f"{self.name}_float64", f"in float64: {self.method}"
        self.form = form
        self.loop = self._make_loop()

    def answers(self, chosen: Coordinates) -> Float64[Tensor, " k"]:
        """The loss differences of some coordinates, in their order."""
        pairs = [(name, int(index)) for name, indices in chosen.items() for index in indices]
        return torch.tensor([self.loop.difference(*pair) for pair in pairs], dtype=torch.float64)

    @abstractmethod
    def _make_loop(self) -> AnyLoop:
        """The loop in the side's form."""


class Naive(LoopSide[NaiveLoop]):
    """One full forward per coordinate."""

    name = "naive"
    method = (
        "random coordinates of the whole set, one full forward each in train mode without autograd, in the form that "
        "was fastest in a trial at the start; every query costs the same, so the mean time of a query holds for all"
    )

    def _make_loop(self) -> NaiveLoop:
        return NaiveLoop(self.problem, self.form)

    def time(self, seconds: float, turn: int) -> Timing:
        """At least one query."""
        chosen = shuffled(self.problem.coordinates, derive_seed(self.problem.seed, self.name, turn))

        def query() -> int:
            self.loop.difference(*next(chosen))
            return 1

        query()  # wakes threads and caches up
        timed, queries = throughput(query, seconds), self.problem.queries
        return Timing(queries, queries * timed.seconds / timed.done, timed.done, timed.seconds)


class BlockReuse(LoopSide[BlockReuseLoop]):
    """One forward from the block of the moved entry on per coordinate."""

    name = "block_reuse"
    method = (
        "cached inputs of the blocks, in the form that was fastest in a trial at the start; queries of each block are "
        "timed in turn, and the mean times are weighted by how many coordinates the blocks hold; one base forward is "
        "added"
    )

    def _make_loop(self) -> BlockReuseLoop:
        return BlockReuseLoop(self.problem, self.form)

    def _by_block(self) -> list[Coordinates]:
        coordinates = self.problem.coordinates
        blocks: dict[int, list[str]] = {}
        for name in coordinates:
            blocks.setdefault(self.loop.block_of(name), []).append(name)
        return [Coordinates({n: coordinates[n] for n in names}) for _, names in sorted(blocks.items())]

    def time(self, seconds: float, turn: int) -> Timing:
        """At least one query of each block."""
        seed = derive_seed(self.problem.seed, self.name, turn)
        blocks = self._by_block()
        streams = [shuffled(block, derive_seed(seed, i)) for i, block in enumerate(blocks)]
        self.loop.refresh()  # wakes threads and caches up
        watch = Stopwatch()
        base = seconds_of(self.loop.refresh)
        totals, passes = [0.0] * len(streams), 0
        while passes == 0 or watch.seconds() < seconds:
            for i, stream in enumerate(streams):
                totals[i] += seconds_of(partial(self.loop.difference, *next(stream)))
            passes += 1
        whole = base + sum(b.count * t / passes for b, t in zip(blocks, totals, strict=True))
        return Timing(self.problem.queries, whole, 1 + passes * len(streams), base + sum(totals))


@dataclass
class _Settable:
    """A schedule whose coordinates are set from outside."""

    now: Coordinates

    def coordinates(self, context: StepContext) -> Coordinates:
        """The coordinates that were set last."""
        return self.now


class DeepZero(Side):
    """Coordinate-wise estimates by difference propagation, as ``dz.CGE`` makes them by default.

    Args:
        problem: network, batch and coordinates.
        whole_within: seconds that an estimate of all coordinates may take and be timed whole, however short the rounds.
            A part is timed with the fixed costs of a step (base values laid out for the rules), which the extrapolation
            counts as those of its queries: little in a long round, much in a short one.
        budget: memory budget in bytes; None for the default.
        storage: of dense differences on a GPU, ``torch.float16`` or None for float32.

    Attributes:
        evaluator: the propagation evaluator.
        objective: the network with its loss.
        setup_seconds: of a first estimate, of one coordinate: export, checks, memory of differences.
        costs: the measured cost table.
        chunks: coordinates of a full chunk, by parameter.
    """

    name = "deepzero"
    method = (
        "estimates of all coordinates, or, where these take longer than a round, of a random part of the chunks of "
        "each parameter's coordinates, drawn again each round; the time beyond the base forward is then scaled by the "
        "measured cost of all coordinates over that of the part"
    )

    def __init__(
        self,
        problem: Problem,
        *,
        whole_within: float = 0.0,
        budget: int | None = None,
        storage: torch.dtype | None = None,
    ) -> None:
        self.problem, self.trial = problem, None
        self.evaluator = PropagationEvaluator(memory_budget=budget, storage=storage)
        self._whole_within = whole_within
        self._schedule = _Settable(problem.coordinates)
        self._estimator = CGE(
            problem.model,
            loss=F.cross_entropy,
            step_size=problem.step_size,
            sparsity=self._schedule,
            evaluator=self.evaluator,
            seed=problem.seed,
        )
        self.objective = cast(NetworkObjective, self._estimator.objective)
        last = problem.coordinates.names[-1]
        watch = Stopwatch()
        self.estimate(Coordinates({last: problem.coordinates[last][:1]}))
        self.setup_seconds = watch.seconds()
        self.costs = self.evaluator.costs(self.objective, *problem.batch, offset=problem.step_size, repeats=2)
        self.chunks = {name: cost.chunk for name, cost in self.costs.parameters.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Coordinates of the whole set by parameter."""
        return {name: len(indices) for name, indices in self.problem.coordinates.items()}

    def estimate(self, chosen: Coordinates) -> Estimate:
        """An estimate on some coordinates."""
        self._schedule.now = chosen
        return self._estimator.estimate(*self.problem.batch)

    def answers(self, chosen: Coordinates) -> Float64[Tensor, " k"]:
        """The loss differences of some coordinates, in their order, from their slopes."""
        gradients = self.estimate(chosen).gradients
        slopes = [gradients[name].reshape(-1)[index.to(gradients[name].device)] for name, index in chosen.items()]
        return torch.cat(slopes).double().cpu() * self.problem.step_size

    def time(self, seconds: float, turn: int) -> Timing:
        """As many estimates as fit, at least one."""
        fraction, spent, queries = self.fraction(seconds), 0.0, 0
        whole: list[float] = []
        while not whole or spent * (len(whole) + 1) <= seconds * len(whole):
            seed = derive_seed(self.problem.seed, self.name, turn, len(whole))
            part = in_full_chunks(self.problem.coordinates, self.chunks, fraction, seed)
            watch = Stopwatch()
            estimate = self.estimate(part)
            took = watch.seconds()
            whole.append(self._extrapolated(took, part))
            spent, queries = spent + took, queries + estimate.queries
        return Timing(self.problem.queries, statistics.fmean(whole), queries, spent)

    def _extrapolated(self, spent: float, part: Coordinates) -> float:
        """Seconds of an estimate of all coordinates, from those of a part."""
        if part.count == self.problem.coordinates.count:
            return spent
        cost = self.costs.seconds_per_query()
        every = sum(count * cost[name] for name, count in self.counts.items())
        timed = sum(len(indices) * cost[name] for name, indices in part.items())
        return self.costs.base + max(spent - self.costs.base, 0.0) * every / timed

    def fraction(self, seconds: float) -> float:
        """The part of the coordinates that fits into ``seconds``, by the cost table."""
        predicted = self.costs.seconds_per_step(self.counts)
        if predicted <= max(seconds, self._whole_within):
            return 1.0
        return max(seconds - self.costs.base, 0.0) / (predicted - self.costs.base)


@dataclass(frozen=True)
class Agreement:
    """Distance of the sides' loss differences from those of the naive loop.

    Attributes:
        coordinates: coordinates compared, one of each of as many parameters.
        largest: largest absolute loss difference among them.
        tolerance: deviation that float32 rounding explains.
        deviation: largest deviation from the naive loop, by side.
    """

    coordinates: int
    largest: float
    tolerance: float
    deviation: dict[str, float]


def check_agreement(naive: Naive, others: Sequence[BlockReuse | DeepZero]) -> Agreement:
    """Compare loss differences on one coordinate of each of up to 32 parameters.

    Raises:
        VerificationError: they differ by more than the rounding of float32 explains.
    """
    problem = naive.problem
    chosen = one_of_each(problem.coordinates, COMPARED, problem.seed)
    expected = naive.answers(chosen)
    found = {side.name: side.answers(chosen) for side in others}
    largest = float(expected.abs().max())
    tolerance = NOISE * (1 + abs(naive.loop.base)) + RELATIVE * largest
    deviation = {side: float((answers - expected).abs().max()) for side, answers in found.items()}
    for side, worst in deviation.items():
        if not worst <= tolerance:
            raise VerificationError(
                f"{side} and the naive loop disagree on {problem.case.name}: loss differences deviate by {worst:.3g}, "
                f"float32 rounding explains {tolerance:.3g}; their speeds are not comparable (please report it)"
            )
    return Agreement(chosen.count, largest, tolerance, deviation)
