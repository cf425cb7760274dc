"""Timeouts, retries and rate limits."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.randomness import derive_seed

REACTIONS = ("retry", "skip", "stop")
RESORTS = ("skip", "stop")


@dataclass(frozen=True)
class QueryPolicy:
    """The timeout, the retries and the limits of the queries of a black box, and the reaction to a failure.

    A query that times out or is lost with its worker is always made again, up to ``retries`` times. The base query (the
    loss at the parameters themselves) is never skipped: where a perturbed one would be, it stops. A skipped direction
    contributes nothing to the estimate: its loss differences count as 0 at all nodes of the stencil.

    Attributes:
        timeout: seconds that one call of the black box may take; then it is given up and made again elsewhere, and its
            answer is still welcome if it comes after all. None waits for ever.
        retries: how often a query is made again, whatever the reason.
        backoff: seconds before the first retry; doubled for each further one. The delay that is taken lies between
            half of that and all of it, drawn from ``seed``.
        backoff_limit: most seconds between two tries.
        in_flight: most calls in flight at any time; None for twice as many as the executor has workers. With a timeout
            or a limit on the rate there are never more than workers: every call starts when it is sent.
        per_second: most calls started in a second, evenly spaced; None for no limit.
        on_error: ``"retry"``, ``"skip"`` the direction, or ``"stop"`` with an error when the black box raises.
        on_nan: the same for an answer that is NaN or infinite.
        exhausted: ``"stop"`` or ``"skip"`` when the retries are used up.
        seed: seeds the delays.

    Example:
        >>> policy = QueryPolicy(timeout=30, per_second=10, on_nan="skip")
        >>> [round(policy.delay(attempt, place=0), 2) for attempt in (1, 2, 3)]
        [0.09, 0.19, 0.34]
    """

    timeout: float | None = None
    retries: int = 3
    backoff: float = 0.1
    backoff_limit: float = 30.0
    in_flight: int | None = None
    per_second: float | None = None
    on_error: str = "retry"
    on_nan: str = "stop"
    exhausted: str = "stop"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.timeout is not None:
            validation.positive("timeout", self.timeout, hint="60")
        if self.per_second is not None:
            validation.positive("per_second", self.per_second, hint="10")
        if self.in_flight is not None:
            validation.count("in_flight", self.in_flight)
        validation.count("retries", self.retries, minimum=0)
        _not_negative("backoff", self.backoff)
        _not_negative("backoff_limit", self.backoff_limit)
        validation.choice("on_error", self.on_error, REACTIONS)
        validation.choice("on_nan", self.on_nan, REACTIONS)
        validation.choice("exhausted", self.exhausted, RESORTS)

    def delay(self, attempt: int, *, place: int) -> float:
        """Seconds to wait before retry number ``attempt`` (from 1) of the query at ``place``: a pure function."""
        longest = min(math.ldexp(self.backoff, min(attempt - 1, 64)), self.backoff_limit)
        return longest * random.Random(derive_seed(self.seed, place, attempt)).uniform(0.5, 1.0)


class RateLimit:
    """Starts, evenly spaced: never more than ``per_second`` in any second."""

    def __init__(self, per_second: float | None) -> None:
        self._interval = 0.0 if per_second is None else 1 / per_second
        self._next = -math.inf

    def ready_at(self) -> float:
        """The time from which the next start is allowed."""
        return self._next

    def start(self, now: float) -> None:
        """Record a start."""
        self._next = now + self._interval


def _not_negative(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise InvalidInputError(f"{name} must be a finite number of seconds, 0 or more, got {value!r}")
