"""The interface of an evaluator: it answers all queries of one step, whatever way is fastest."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from deepzero.errors import NonFiniteLossError, RowError, VerificationError
from deepzero.objective import Objective
from deepzero.probes import Perturbations


@dataclass(frozen=True)
class Measurement:
    """The answers to one step's queries.

    Attributes:
        loss: base loss :math:`\\ell(\\theta)`, 0-dim float64.
        differences: ``[len(offsets), K]`` float64, :math:`\\ell(\\theta + t_j p_k) - \\ell(\\theta)`.
        buffers: the objective's buffers as the base query leaves them.
        steps: ``[len(offsets), K]`` float64, the steps really taken, where :math:`\\theta + t` was formed and so
            rounded; None: those asked for.
    """

    loss: Tensor
    differences: Tensor
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    steps: Tensor | None = None

    def taken(self, perturbations: Perturbations, offsets: Sequence[float]) -> Tensor:
        """The steps by which differences are divided, ``[len(offsets), K]`` float64."""
        return perturbations.nominal(offsets) if self.steps is None else self.steps


@dataclass(frozen=True)
class Job:
    """Queries that are answered together, in one piece, wherever that happens: their bits never depend on where.

    Attributes:
        row: which of the step's offsets.
        start: first direction.
        stop: one past the last direction.
        kind: jobs of one kind cost about the same a query: a parameter's name, for instance.
        weight: guess of the cost of one query, for as long as nothing has been measured.
        full: how many queries of its kind the step has.
    """

    row: int
    start: int
    stop: int
    kind: str = "query"
    weight: float = 1.0
    full: int = 0

    def __len__(self) -> int:
        return self.stop - self.start


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

    def assemble(
        self, jobs: Sequence[Job], parts: Sequence[Tensor], perturbations: Perturbations, offsets: Sequence[float]
    ) -> Measurement:
        """The measurement from the differences of all jobs, whoever found them."""
        shape = len(offsets), len(perturbations)
        differences = torch.zeros(shape, dtype=torch.float64, device=self.loss.device)
        for job, part in zip(jobs, parts, strict=True):
            differences[job.row, job.start : job.stop] = part
        return Measurement(self.loss, differences, self.buffers, self.steps)


class Evaluator(Protocol):
    """Computes loss differences. All evaluators give the same numbers up to rounding."""

    def measure(
        self,
        objective: Objective,
        batch: tuple[Any, ...],
        perturbations: Perturbations,
        offsets: Sequence[float],
        seed: int,
    ) -> Measurement:
        """Loss differences of all perturbations at all offsets :math:`t_j`; nothing is mutated."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to give the same bits, as JSON-able values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        ...


class DivisibleEvaluator(ABC):
    """An evaluator whose work can be divided: it says what there is to do, and whoever asks decides who does it."""

    @abstractmethod
    def prepare(
        self,
        objective: Objective,
        batch: tuple[Any, ...],
        perturbations: Perturbations,
        offsets: Sequence[float],
        seed: int,
    ) -> Preparation:
        """The base query, and all others as jobs, cut without regard to who will answer them."""

    def measure(
        self,
        objective: Objective,
        batch: tuple[Any, ...],
        perturbations: Perturbations,
        offsets: Sequence[float],
        seed: int,
    ) -> Measurement:
        """Loss differences of all jobs, answered here."""
        step = self.prepare(objective, batch, perturbations, offsets, seed)
        parts = [answer.differences for answer in step.answer(step.jobs)]
        step.release()
        return step.assemble(step.jobs, parts, perturbations, offsets)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to give the same bits, as JSON-able values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""


def require_finite_base(loss: Tensor) -> None:
    """Raise unless the base loss is a finite number, before any perturbed query is made."""
    if not loss.isfinite():
        raise NonFiniteLossError(
            f"the loss at the current parameters is {float(loss)}: no gradient can be estimated there; "
            "lower the learning rate, check the inputs, or run `deepzero doctor`"
        )


def require_repeatable(objective: Objective) -> None:
    """Raise if a network's program gave two losses at the same parameters, batch and random numbers."""
    if not getattr(objective, "repeatable", True):
        raise VerificationError(
            "the program is not a deterministic function of its parameters: twice the same parameters, batch and "
            "random numbers gave two losses. It may count its calls, read a clock or draw from a generator of its "
            "own, and so may a dz.Opaque inside of it; run `deepzero doctor`. To estimate from noisy losses all the "
            "same, evaluator=dz.SequentialEvaluator()"
        )


def timed_answer(difference: Callable[[Job], Tensor], job: Job) -> Answer:
    """The answer to a job; on a GPU the seconds are those of handing it over."""
    start = time.perf_counter()
    try:
        return Answer(difference(job), time.perf_counter() - start)
    except RowError as error:
        error.job = job
        raise
