"""Black boxes on any ``concurrent.futures`` executor: slow, unreliable or paid for, with nothing lost."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from deepzero.errors import InvalidInputError
from deepzero.evaluators.base import Measurement, StepQueries, require_finite_base
from deepzero.executors.dispatch import Clock, Dispatcher
from deepzero.executors.policy import QueryPolicy, RateLimit
from deepzero.executors.pool import ExecutorSource, Pool
from deepzero.executors.problem import problem_of
from deepzero.executors.queries import BASE, LossQuery, Query, listed_queries, step_identity
from deepzero.executors.query_journal import QueryJournal
from deepzero.executors.worker import Payload
from deepzero.objective import SendableObjective

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

Progress = Callable[[int, int], None]
"""Called with the queries answered and the queries in the step."""


class ExecutorEvaluator:
    """Answers the queries of a :class:`~deepzero.BlackBox` on the workers of an executor.

    Parameters and ``fn`` travel once a step and worker; a query is a displacement of some hundred bytes. Answers may
    come in any order: the numbers are those of :class:`~deepzero.SequentialEvaluator` bit for bit, as long as the black
    box gives the same loss for the same parameters. The base query runs beside the others.

    Args:
        executor: a thread or process pool, ``client.get_executor()`` of Dask, an ``MPIPoolExecutor``, or any other
            executor; or a function that makes one, so that a pool whose workers died or hang can be made again. What
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
        for name, given, kind in (("policy", policy, QueryPolicy), ("journal", journal, QueryJournal)):
            if given is not None and not isinstance(given, kind):
                raise InvalidInputError(
                    f"{name} must be a dz.{kind.__name__}, got {given!r:.80}; type {name}=dz.{kind.__name__}"
                    + ("(path)" if kind is QueryJournal else "(timeout=60)")
                )
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
        box = queries.objective
        if not isinstance(box, SendableObjective):
            raise InvalidInputError(
                "ExecutorEvaluator evaluates a dz.BlackBox(fn, params); for a network use the default evaluator "
                "(PropagationEvaluator), on several processes with torchrun"
            )
        if self.journal is not None:
            self.journal.answers_for(problem_of(box))
        steps = queries.rounded_steps()
        answers = _Answers(queries, self._listed(queries), self.journal, self._progress)
        self.replayed += answers.replay()
        if answers.missing():
            self._dispatch(box, answers)
        base = answers.base()
        require_finite_base(base)
        differences, skipped = answers.differences(base)
        self.skipped += skipped
        return Measurement(base, differences, steps=steps)

    def _listed(self, queries: StepQueries) -> list[LossQuery]:
        """Every query with its content key, if the arguments have one; a journal cannot do without."""
        identity: bytes | None = None
        try:
            identity = step_identity(queries.parameters(), queries.batch, queries.seed)
        except InvalidInputError:
            if self.journal is not None:
                raise
        return listed_queries(queries.perturbations, queries.offsets, identity)

    def _dispatch(self, box: SendableObjective, answers: _Answers) -> None:
        """Have the workers answer what is missing."""
        queries, function = answers.queries, box.worker_function()
        dispatcher = Dispatcher(
            self._pool,
            Payload.pack(function, queries.parameters(), queries.batch),
            policy=self.policy,
            rate=self._rate,
            accept=answers.accept,
            describe=answers.describe,
            clock=self._clock,
        )
        dispatcher.run(cut(answers.listed, function.batched or 1, answers.losses))

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


class _Answers:
    """The answers to the queries of a step by place; None: skipped.

    Args:
        queries: the step.
        listed: its queries by place.
        journal: where answers are recorded before they are used.
        progress: called with the queries answered and all of them.
    """

    def __init__(
        self,
        queries: StepQueries,
        listed: Sequence[LossQuery],
        journal: QueryJournal | None,
        progress: Progress | None,
    ) -> None:
        self.queries, self.listed = queries, listed
        self.losses: dict[int, float | None] = {}
        self._journal, self._progress = journal, progress

    def replay(self) -> int:
        """Take over what the journal knows; returns the number of these answers."""
        if self._journal is None:
            return 0
        known = self._journal.lookup(query.key for query in self.listed if query.key is not None)
        for query in self.listed:
            if query.key in known:
                loss = known[query.key]
                self.losses[query.place] = None if loss is None else float(loss)
        return len(self.losses)

    def missing(self) -> bool:
        """True while a query has no answer."""
        return any(query.place not in self.losses for query in self.listed)

    def accept(self, found: dict[int, float | None]) -> None:
        """Answers from the workers: on disk first."""
        if self._journal is not None:
            self._journal.record({str(self.listed[place].key): loss for place, loss in found.items()})
        self.losses.update(found)
        if self._progress is not None:
            self._progress(len(self.losses), len(self.listed))

    def describe(self, place: int) -> str:
        """A place in words, for messages."""
        if place == BASE:
            return "the base query"
        return self.queries.describe(*divmod(place - 1, len(self.queries.perturbations)))

    def base(self) -> Float64[Tensor, ""]:
        """The base loss."""
        return torch.tensor(self.losses[BASE], dtype=torch.float64)

    def differences(self, base: Float64[Tensor, ""]) -> tuple[Float64[Tensor, "J K"], int]:
        """Loss differences, 0 for directions of which a query was skipped, and the number of these directions."""
        rows, count = self.queries.shape
        losses = [self.losses[place] for place in range(1, rows * count + 1)]
        skipped = {i % count for i, loss in enumerate(losses) if loss is None}
        values = torch.tensor([0.0 if loss is None else loss for loss in losses], dtype=torch.float64)
        differences = values.reshape(rows, count) - base
        differences[:, sorted(skipped)] = 0.0
        return differences, len(skipped)


def cut(queries: Sequence[Query], size: int, known: Container[int]) -> Iterator[list[Query]]:
    """Stacks of at most ``size`` queries, the same whatever is answered already; the base query is one of its own."""
    stacks = [queries[:1], *(queries[start : start + size] for start in range(1, len(queries), size))]
    for stack in stacks:
        rest = [query for query in stack if query.place not in known]
        if rest:
            yield rest


class QueryProgress:
    """A bar with the queries answered in a step and the time left; goes away when the step is done.

    Args:
        console: where to show it.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> import deepzero as dz
        >>> with ThreadPoolExecutor(2) as pool:
        ...     evaluator = dz.ExecutorEvaluator(pool, progress=QueryProgress())
    """

    def __init__(self, *, console: Console | None = None) -> None:
        self._console = console
        self._bar: RichProgress | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` queries are answered."""
        if self._bar is None:
            self._bar = self._open(done, total)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        if done == total:
            self.close()

    def _open(self, done: int, total: int) -> RichProgress:
        from rich import progress  # noqa: PLC0415 - only where it is shown

        columns = (progress.TextColumn("queries"), progress.BarColumn(), progress.MofNCompleteColumn())
        times = progress.TimeElapsedColumn(), progress.TimeRemainingColumn()
        bar = progress.Progress(*columns, *times, console=self._console, transient=True)
        bar.add_task("queries", total=total, completed=done)
        bar.start()
        return bar

    def close(self) -> None:
        """Take the bar away, for example after an interrupted step."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
