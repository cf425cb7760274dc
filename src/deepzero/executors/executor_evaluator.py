"""Black boxes on any ``concurrent.futures`` executor: slow, unreliable or paid for, with nothing lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from deepzero.errors import InvalidInputError
from deepzero.evaluators.base import Measurement, StepQueries, require_finite_base
from deepzero.executors.dispatch import Step
from deepzero.executors.executor_calls import Clock
from deepzero.executors.journal import QueryJournal
from deepzero.executors.policy import QueryPolicy, RateLimit
from deepzero.executors.pool import ExecutorSource, Pool
from deepzero.executors.problem import problem_of
from deepzero.executors.queries import BASE, Query, listed_queries, step_identity
from deepzero.executors.worker import Payload
from deepzero.objective import BlackBox, parameters_of

Progress = Callable[[int, int], None]


class ExecutorEvaluator:
    """Answers the queries of a :class:`~deepzero.BlackBox` on the workers of an executor.

    Parameters and ``fn`` travel once a step and worker; a query is a displacement of some hundred bytes. Answers may
    come in any order: the numbers are those of :class:`~deepzero.SequentialEvaluator` bit for bit, as long as the black
    box gives the same loss for the same parameters. The base query runs beside the others.

    Args:
        executor: a thread or process pool, ``client.get_executor()`` of Dask, an ``MPIPoolExecutor``, or any other
            executor; or a function that makes one, so that a pool whose workers died or hang can be made anew. What
            that function made is shut down by :meth:`close`.
        policy: timeout, retries, limits, and what follows a failure.
        journal: answers are recorded here before they are used, and known ones are not asked for again.
        progress: called with the queries answered and the queries in the step, for example a
            :class:`~deepzero.executors.QueryProgress`.

    Attributes:
        skipped: directions skipped so far; each contributed 0.
        replayed: queries answered from the journal so far.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> import numpy as np, deepzero as dz
        >>> box = dz.BlackBox(lambda p: float(p["w"].sum()), {"w": np.zeros(3)})
        >>> with ThreadPoolExecutor(2) as pool:
        ...     zo = dz.CGE(box, evaluator=ExecutorEvaluator(pool), step_size=0.5)
        ...     zo.estimate().gradients["w"]
        tensor([1., 1., 1.], dtype=torch.float64)
    """

    def __init__(
        self,
        executor: ExecutorSource,
        *,
        policy: QueryPolicy | None = None,
        journal: QueryJournal | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.policy = QueryPolicy() if policy is None else policy
        self.journal = journal
        self.skipped = 0
        self.replayed = 0
        self._pool = Pool(executor)
        self._progress = progress
        self._rate = RateLimit(self.policy.per_second)
        self._clock = Clock()

    def workers(self) -> int | None:
        """Queries that run at the same time; None where the executor does not say."""
        return self._pool.workers()

    def measure(self, queries: StepQueries) -> Measurement:
        """Loss differences of all directions; a direction that was skipped has differences of 0.

        Raises:
            QueryError: a query failed for good, or the executor did.
            NonFiniteLossError: a loss was NaN or infinite, and the policy says to stop.
            JournalError: the journal cannot be written, or answers another problem.
        """
        objective, perturbations = queries.objective, queries.perturbations
        if not isinstance(objective, BlackBox):
            raise InvalidInputError(
                "ExecutorEvaluator evaluates a dz.BlackBox(fn, params); for a network use the default evaluator "
                "(PropagationEvaluator), on several processes with torchrun"
            )
        if self.journal is not None:
            self.journal.answers_for(problem_of(objective))
        steps = queries.rounded_steps()
        identity = self._identity(objective, queries.batch, queries.seed)
        listed = listed_queries(perturbations, queries.offsets, identity)
        answers = self._known(listed)
        if any(query.place not in answers for query in listed):
            self._query(objective, queries, listed, answers)
        base = torch.tensor(answers[BASE], dtype=torch.float64)
        require_finite_base(base)
        differences = self._differences(answers, base, *queries.shape)
        return Measurement(base, differences, steps=steps)

    def _identity(self, objective: BlackBox, batch: tuple[Any, ...], seed: int) -> bytes | None:
        try:
            return step_identity(parameters_of(objective), batch, seed)
        except InvalidInputError:
            if self.journal is not None:
                raise
            return None

    def _known(self, queries: Sequence[Query]) -> dict[int, float | None]:
        """Answers from the journal, by place."""
        if self.journal is None:
            return {}
        found = self.journal.lookup(query.key for query in queries if query.key is not None)
        known = {query.place: found[query.key] for query in queries if query.key in found}
        self.replayed += len(known)
        return {place: None if loss is None else float(loss) for place, loss in known.items()}

    def _query(
        self,
        objective: BlackBox,
        queries: StepQueries,
        listed: Sequence[Query],
        answers: dict[int, float | None],
    ) -> None:
        """Fill ``answers`` with what is missing."""

        def accept(found: dict[int, float | None]) -> None:
            if self.journal is not None:
                self.journal.record({str(listed[place].key): loss for place, loss in found.items()})
            answers.update(found)
            if self._progress is not None:
                self._progress(len(answers), len(listed))

        def describe(place: int) -> str:
            if place == BASE:
                return "the base query"
            return queries.describe(*divmod(place - 1, len(queries.perturbations)))

        function = objective.function()
        payload = Payload.pack(function, queries.parameters(), queries.batch)
        stacks = cut(listed, function.batched or 1, answers)
        Step(
            self._pool,
            payload,
            policy=self.policy,
            rate=self._rate,
            accept=accept,
            describe=describe,
            clock=self._clock,
        ).run(stacks)

    def _differences(self, answers: dict[int, float | None], base: Tensor, rows: int, count: int) -> Tensor:
        """``[rows, count]`` by place; the columns of skipped directions are 0."""
        losses = [answers[place] for place in range(1, rows * count + 1)]
        skipped = {i % count for i, loss in enumerate(losses) if loss is None}
        self.skipped += len(skipped)
        values = torch.tensor([0.0 if loss is None else loss for loss in losses], dtype=torch.float64)
        differences = values.reshape(rows, count) - base
        differences[:, sorted(skipped)] = 0.0
        return differences

    def close(self) -> None:
        """Shut down the executor, if a function was given that made it."""
        self._pool.close()

    def __enter__(self) -> ExecutorEvaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the numbers depend on the black box alone."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


def cut(queries: Sequence[Query], size: int, answered: dict[int, float | None]) -> Iterator[list[Query]]:
    """Stacks of at most ``size`` queries, cut alike whatever is answered already; the base query is one of its own."""
    stacks = [queries[:1], *(queries[start : start + size] for start in range(1, len(queries), size))]
    for stack in stacks:
        rest = [query for query in stack if query.place not in answered]
        if rest:
            yield rest
