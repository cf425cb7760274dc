"""A black box under examination: every query is counted, timed and bounded, and none of them ends the examination."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepzero.errors import QueryBudgetError
from deepzero.objective import BlackBox, Evaluation, Objective, Parameters, owners_of, parameters_of
from deepzero.stopwatch import Stopwatch

NAMED_ENTRIES = 3
"""Entries that a query's description names one by one."""


@dataclass(frozen=True)
class QueryCheck:
    """The queries of a black box: number, seconds, noise, failures.

    Attributes:
        queries: made by the examination.
        max_queries: it might have made.
        seconds: median of a query.
        fastest: of all queries but the first.
        slowest: likewise.
        first: seconds of the first query, which may load or compile what the others find ready.
        repeats: queries at the same point behind the noise.
        noise_uncertainty: relative standard deviation of the noise that was found, :math:`1/\\sqrt{2(n-1)}`.
        rounding: standard deviation of the noise between points that are close together, in units of the loss; None
            where queries at the same point differ already.
        drawn: global random number generators that queries draw from: ``numpy``, ``python``, ``torch``.
        reseeded: True if seeding them before each query makes the answers repeat; None where they repeat anyway.
        drift: by how much the loss at the parameters as they are had changed after all other queries, where it should
            not have; None where it is noisy anyway.
        sendable: why the function cannot be sent to other processes; empty if it can.
        failures: queries that raised an error, in words.
    """

    queries: int
    max_queries: int
    seconds: float
    fastest: float
    slowest: float
    first: float
    repeats: int
    noise_uncertainty: float
    rounding: float | None
    drawn: tuple[str, ...]
    reseeded: bool | None
    drift: float | None
    sendable: str
    failures: tuple[str, ...]


class MeteredObjective:
    """An objective that answers as another one does, and keeps count of its queries.

    A query that raises an error is answered by NaN: the steps that the function can take are seen, and those that it
    cannot take are reported.

    Args:
        objective: what is queried.
        limit: queries after which it refuses.

    Attributes:
        objective: likewise.
        limit: likewise.
        queries: made so far.
        seconds: of each query.
        failures: what went wrong, with the query; the first query at each point of trouble, in words.
        drawn: global random number generators that a query drew from: ``python``, ``numpy``, ``torch``.
    """

    def __init__(self, objective: Objective, limit: int) -> None:
        self.objective, self.limit = objective, limit
        self.queries = 0
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self.drawn: set[str] = set()

    @property
    def remaining(self) -> int:
        """Queries that may still be made."""
        return self.limit - self.queries

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """The objective's."""
        return owners_of(self.objective).items()

    def commit(self, buffers: Mapping[str, Tensor]) -> None:
        """Nothing: an examination changes nothing."""

    def evaluate(self, parameters: Parameters, batch: tuple[Any, ...], *, seed: int) -> Evaluation:
        """One query; NaN if it fails."""
        if self.remaining <= 0:
            raise QueryBudgetError(f"the examination may make {self.limit:,} queries, and they are spent")
        self.queries += 1
        before, watch = _generators(), Stopwatch()
        try:
            answer = self.objective.evaluate(parameters, batch, seed=seed)
        except Exception as error:  # whatever it is: the function is the user's, and its error is reported
            message = " ".join(str(error).split()) or "no message"
            place = self._place(parameters)
            self.failures.append(f"query {self.queries} ({place}): {type(error).__name__}: {message}")
            answer = Evaluation(torch.tensor(float("nan"), dtype=torch.float64))
        self.seconds.append(watch.seconds())
        self.drawn |= {name for name, state in _generators().items() if state != before[name]}
        return answer

    def _place(self, parameters: Parameters) -> str:
        """A query's place in words: the entries that were moved, and how far."""
        moved = []
        for name, base in parameters_of(self).items():
            change = (parameters[name].double() - base.double()).reshape(-1)
            entries = change.nonzero()[:, 0].tolist()[: NAMED_ENTRIES + 1]
            moved += [f"{name}[{i}] moved by {float(change[i]):.3g}" for i in entries]
        if not moved:
            return "at the parameters as they are"
        return ", ".join(moved) if len(moved) <= NAMED_ENTRIES else f"many entries moved, {moved[0]} first"

    def check(
        self,
        repeats: int,
        *,
        rounding: float | None = None,
        reseeded: bool | None = None,
        drift: float | None = None,
    ) -> QueryCheck:
        """The queries until now, with findings of the examination beside them: see :class:`QueryCheck`."""
        times = self.seconds[1:]
        return QueryCheck(
            queries=self.queries,
            max_queries=self.limit,
            seconds=statistics.median(times),
            fastest=min(times),
            slowest=max(times),
            first=self.seconds[0],
            repeats=repeats,
            noise_uncertainty=1 / math.sqrt(2 * (repeats - 1)),
            rounding=rounding,
            drawn=tuple(sorted(self.drawn)),
            reseeded=reseeded,
            drift=drift if drift is not None and math.isfinite(drift) else None,
            sendable=_sendable(self.objective),
            failures=tuple(self.failures),
        )


def _generators() -> dict[str, Any]:
    """The states of the global generators, to be compared."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - looked at
    return {
        "python": random.getstate(),
        "numpy": (kind, bytes(keys), *rest),  # type: ignore[arg-type]
        "torch": bytes(torch.get_rng_state().numpy()),
    }


def _sendable(objective: Objective) -> str:
    """Why the function of a black box cannot be sent to another process; empty if it can; others are never sent."""
    if not isinstance(objective, BlackBox):
        return ""
    try:
        ForkingPickler.dumps(objective.worker_function())
    except Exception as error:  # pickling runs code of the user's
        return " ".join(str(error).split())
    return ""
