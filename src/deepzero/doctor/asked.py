"""A black box under examination: every query is counted, timed and bounded, and none of them ends the examination."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepzero.errors import QueryBudgetError
from deepzero.objective import Evaluation, Objective, Parameters, owners_of, parameters_of
from deepzero.stopwatch import Stopwatch

NAMED = 3
"""Entries that a query's description names one by one."""


class Asked:
    """An objective that answers as another one does, and keeps what its answers cost.

    A query that raises an error is answered by NaN: the steps that the function can take are seen, and those that it
    cannot take are told.

    Args:
        objective: what is asked.
        limit: queries after which it refuses.

    Attributes:
        limit: likewise.
        queries: made so far.
        seconds: of each query.
        failures: what went wrong, with the query; the first query at each point of trouble, in words.
        drawn: global random number generators that a query drew from: ``python``, ``numpy``, ``torch``.
    """

    def __init__(self, objective: Objective, limit: int) -> None:
        self._objective, self.limit = objective, limit
        self.queries = 0
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self.drawn: set[str] = set()

    @property
    def left(self) -> int:
        """Queries that may still be made."""
        return self.limit - self.queries

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """The objective's."""
        return owners_of(self._objective).items()

    def commit(self, buffers: Mapping[str, Tensor]) -> None:
        """Nothing: an examination changes nothing."""

    def evaluate(self, parameters: Parameters, batch: tuple[Any, ...], *, seed: int) -> Evaluation:
        """One query; NaN if it fails."""
        if self.left <= 0:
            raise QueryBudgetError(f"the examination may make {self.limit:,} queries, and they are spent")
        self.queries += 1
        before, watch = _generators(), Stopwatch()
        try:
            answer = self._objective.evaluate(parameters, batch, seed=seed)
        except Exception as error:  # whatever it is: the function is the user's, and its error is told
            said = " ".join(str(error).split()) or "no message"
            self.failures.append(f"query {self.queries} ({self._where(parameters)}): {type(error).__name__}: {said}")
            answer = Evaluation(torch.tensor(float("nan"), dtype=torch.float64))
        self.seconds.append(watch.seconds())
        self.drawn |= {name for name, state in _generators().items() if state != before[name]}
        return answer

    def _where(self, parameters: Parameters) -> str:
        """Where a query lies, in words: the entries that were moved, and how far."""
        moved = []
        for name, base in parameters_of(self).items():
            change = (parameters[name].double() - base.double()).reshape(-1)
            entries = change.nonzero()[:, 0].tolist()[: NAMED + 1]
            moved += [f"{name}[{i}] moved by {float(change[i]):.3g}" for i in entries]
        if not moved:
            return "at the parameters as they are"
        return ", ".join(moved) if len(moved) <= NAMED else "many entries moved, " + ", ".join(moved[:1]) + " first"


def _generators() -> dict[str, Any]:
    """The states of the global generators, to be compared."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - looked at
    return {
        "python": random.getstate(),
        "numpy": (kind, bytes(keys), *rest),  # type: ignore[arg-type]
        "torch": bytes(torch.get_rng_state().numpy()),
    }
