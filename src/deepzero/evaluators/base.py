"""The interface of an evaluator: it answers all queries of one step.

Shapes: ``J`` offsets along each of ``K`` directions.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero.errors import NonFiniteLossError, RowError, VerificationError
from deepzero.objective import Objective, Parameters, keywords, parameters_of
from deepzero.probes import Perturbations, coordinates_of

JOINT = "all parameters"
"""Kind of the queries in whose directions all parameters move."""


@dataclass(frozen=True)
class StepQueries:
    """The queries of one step: :math:`\\ell(\\theta + t_j p_k)` for every offset and direction, and the base loss.

    Attributes:
        objective: what is queried, at its current parameters :math:`\\theta`.
        batch: the arguments of the estimate.
        perturbations: the :math:`K` directions :math:`p_k`.
        offsets: the :math:`J` offsets :math:`t_j` along each of them.
        seed: of whatever the objective draws; all queries of a step see the same random numbers.

    Example:
        >>> import numpy as np, deepzero as dz
        >>> zo = dz.CGE(dz.BlackBox(lambda x: float(x.sum()), np.zeros(3)))
        >>> queries = zo.step_queries(zo.directions(), [0.5, -0.5])
        >>> queries.shape, queries.describe(1, 2)
        ((2, 3), 'x[2] moved by -0.5')
    """

    objective: Objective
    batch: tuple[Any, ...]
    perturbations: Perturbations
    offsets: Sequence[float]
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(J, K)``: offsets and directions."""
        return len(self.offsets), len(self.perturbations)

    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters :math:`\\theta`, live, by name."""
        return parameters_of(self.objective)

    def moved(self, parameters: Parameters, row: int, k: int) -> dict[str, Tensor]:
        """:math:`\\theta + t_j p_k` for offset number ``row`` and direction number ``k``."""
        return self.perturbations.displace(parameters, k, self.offsets[row])

    def nominal_steps(self) -> Tensor:
        """Steps as they are in exact arithmetic, ``[J, K]`` float64."""
        return self.perturbations.nominal(self.offsets)

    def rounded_steps(self) -> Tensor:
        """Steps that rounding leaves of :math:`\\theta + t`, ``[J, K]`` float64.

        Raises:
            InvalidInputError: a step vanishes in the rounding of a parameter.
        """
        return self.perturbations.taken(self.parameters(), self.offsets)

    def describe(self, row: int, k: int) -> str:
        """One query in words, for messages."""
        return f"{self.perturbations.describe(k)} moved by {self.offsets[row]:g}"


@dataclass(frozen=True)
class Measurement:
    """The answers to one step's queries.

    Attributes:
        loss: base loss :math:`\\ell(\\theta)`, 0-dim float64.
        differences: ``[J, K]`` float64, :math:`\\ell(\\theta + t_j p_k) - \\ell(\\theta)`.
        buffers: the objective's buffers as the base query leaves them.
        steps: ``[J, K]`` float64, the steps really taken, where :math:`\\theta + t` was formed and so rounded; None:
            the nominal ones.
    """

    loss: Tensor
    differences: Tensor
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    steps: Tensor | None = None

    def taken(self, queries: StepQueries) -> Tensor:
        """The steps by which differences are divided, ``[J, K]`` float64."""
        return queries.nominal_steps() if self.steps is None else self.steps


@dataclass(frozen=True)
class Job:
    """Queries that are answered together, in one piece, wherever that happens: their bits never depend on where.

    Attributes:
        row: number of the offset.
        start: first direction.
        stop: one past the last direction.
        kind: jobs of one kind cost about the same a query; along coordinates it is the parameter's name.
        weight: guess of the cost of one query, for as long as nothing has been measured.
        first: first direction of this kind.
        full: number of directions of this kind in the step.
    """

    row: int
    start: int
    stop: int
    kind: str = "query"
    weight: float = 1.0
    first: int = 0
    full: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def directions(self) -> range:
        """Numbers of the job's directions."""
        return range(self.start, self.stop)


def cut(queries: StepQueries, sizes: Mapping[str, int] | int, weights: Mapping[str, float] | None = None) -> list[Job]:
    """All queries of a step as jobs, offset by offset; coordinates of one parameter together.

    Args:
        queries: the step.
        sizes: most directions of a job; one number, or by parameter along coordinates and for :data:`JOINT` otherwise.
        weights: by the same names, a guess of what a query costs; default 1.

    Example:
        >>> import numpy as np, deepzero as dz
        >>> zo = dz.CGE(dz.BlackBox(lambda p: 0.0, {"a": np.zeros(3), "b": np.zeros(2)}))
        >>> jobs = cut(zo.step_queries(zo.directions(), [1e-3]), {"a": 2, "b": 2})
        >>> [(job.kind, job.start, job.stop) for job in jobs]
        [('a', 0, 2), ('a', 2, 3), ('b', 3, 5)]
    """
    kinds = directions_by_kind(queries.perturbations)
    if isinstance(sizes, int):
        sizes = dict.fromkeys(kinds, sizes)
    return [
        Job(
            row,
            start,
            min(start + sizes[kind], directions.stop),
            kind,
            1.0 if weights is None else weights[kind],
            first=directions.start,
            full=len(directions),
        )
        for row in range(len(queries.offsets))
        for kind, directions in kinds.items()
        for start in range(directions.start, directions.stop, sizes[kind])
    ]


def directions_by_kind(perturbations: Perturbations) -> dict[str, range]:
    """Directions whose queries cost about the same: coordinates by parameter, all others together."""
    coordinates = coordinates_of(perturbations)
    if coordinates is None:
        return {JOINT: range(len(perturbations))}
    kinds, start = {}, 0
    for name, index in coordinates.items():
        kinds[name] = range(start, start + len(index))
        start += len(index)
    return kinds


@dataclass(frozen=True)
class Answer:
    """The loss differences of one job, float64 ``[len(job)]``, and the seconds that it took."""

    differences: Tensor
    seconds: float


@dataclass(frozen=True)
class Preparation:
    """One step after its base query, as jobs that can be answered in any order and by any process.

    Attributes:
        loss: base loss, 0-dim float64.
        buffers: the objective's buffers as the base query leaves them.
        jobs: all of the step's queries.
        answer: answers some of the jobs, in their order.
        release: frees what the preparation holds; nothing can be answered after it.
        steps: the steps really taken; None: those asked for.
    """

    loss: Tensor
    buffers: Mapping[str, Tensor]
    jobs: list[Job]
    answer: Callable[[Sequence[Job]], list[Answer]]
    release: Callable[[], None] = lambda: None
    steps: Tensor | None = None

    def assemble(self, queries: StepQueries, parts: Sequence[Tensor]) -> Measurement:
        """The measurement from the differences ``[len(job)]`` of all jobs in their order, from whatever process."""
        differences = torch.zeros(queries.shape, dtype=torch.float64, device=self.loss.device)
        for job, part in zip(self.jobs, parts, strict=True):
            differences[job.row, job.start : job.stop] = part
        return Measurement(self.loss, differences, self.buffers, self.steps)


class Evaluator(Protocol):
    """Computes loss differences. All evaluators give the same numbers up to rounding."""

    def measure(self, queries: StepQueries) -> Measurement:
        """Loss differences of all perturbations at all offsets :math:`t_j`; nothing is mutated."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs to give the same bits, as JSON-able values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        ...


class DivisibleEvaluator(ABC):
    """An evaluator whose work can be divided: it lists the jobs of a step; its caller decides who answers which."""

    @abstractmethod
    def prepare(self, queries: StepQueries) -> Preparation:
        """The base query, and all others as jobs, cut the same whoever will answer them."""

    def measure(self, queries: StepQueries) -> Measurement:
        """Loss differences of all jobs, answered here."""
        step = self.prepare(queries)
        parts = [answer.differences for answer in step.answer(step.jobs)]
        step.release()
        return step.assemble(queries, parts)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs to give the same bits, as JSON-able values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""


def require_finite_base(loss: Tensor, queries: tuple[Parameters, tuple[Any, ...]] = ({}, ())) -> None:
    """Raise unless the base loss is a finite number, before any perturbed query is made.

    Args:
        loss: the base loss.
        queries: the parameters and the batch at which it was asked for, where the error looks for the cause.
    """
    if not loss.isfinite():
        raise NonFiniteLossError(
            f"the loss at the current parameters is {float(loss)}: no gradient can be estimated there; "
            f"{_cause_of_no_loss(*queries)}"
        )


def _cause_of_no_loss(parameters: Parameters, batch: tuple[Any, ...]) -> str:
    """The cause of a loss that is no number, if batch or parameters show it, and what to do."""
    for name, value in parameters.items():
        if not bool(value.isfinite().all()):
            return f"parameter {name} holds NaN or infinity already: go back to earlier values, lower the learning rate"
    for leaf in pytree.tree_leaves((tuple(batch), keywords(batch))):
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_nested:
            if not leaf.numel():
                return f"the batch holds nothing (a tensor of shape {tuple(leaf.shape)}): leave empty batches out"
            if bool((leaf.isnan() | leaf.eq(torch.inf)).any()):
                return f"the batch holds NaN or infinity (in a tensor of shape {tuple(leaf.shape)}): clean the data"
    return "lower the learning rate, check the inputs, or run `deepzero doctor`"


def require_repeatable(objective: Objective) -> None:
    """Raise if a network's program gave two losses at the same parameters, batch and random numbers."""
    if not getattr(objective, "repeatable", True):
        raise VerificationError(
            "the program is not a deterministic function of its parameters: twice the same parameters, batch and "
            "random numbers gave two losses. It may count its calls, read a clock or draw from a generator of its "
            "own, and so may a dz.Opaque inside of it; run `deepzero doctor`. To estimate from noisy losses all the "
            "same, evaluator=dz.SequentialEvaluator()"
        )


def in_turn(difference: Callable[[Job], Tensor], jobs: Sequence[Job]) -> list[Answer]:
    """Answers to jobs, one after another."""
    return [timed_answer(difference, job) for job in jobs]


def timed_answer(difference: Callable[[Job], Tensor], job: Job) -> Answer:
    """The answer to a job; on a GPU the seconds are those of handing it over."""
    start = time.perf_counter()
    try:
        return Answer(difference(job), time.perf_counter() - start)
    except RowError as error:
        error.job = job
        raise
