"""The chunk plan: how many perturbations are propagated together.

The plan depends on shapes, the byte target and the coordinates, never on the number of workers or on a clock: each
chunk is computed by one thread, so the gradient has the same bits on 1, 2 or 64 workers and in a second run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from deepzero.errors import BudgetError
from deepzero.graph.forward import Values, held_bytes
from deepzero.graph.program import Program
from deepzero.graph.propagate import Meter, loss_differences

MEBI = 1 << 20
MAX_CHUNK = 512
WORKSPACE = 12
"""Temporaries of a rule, in multiples of its result: gelu and the fallback, which work in float64, hold the most."""

RECOMPUTED = 4
"""Divisor of the bytes of the base forward that gives those of a query that runs operations again."""

ALLOCATOR = 1.8
"""Memory that the process takes, in multiples of live tensors: what the C allocator keeps in its arenas for reuse."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a step takes; they depend on shapes alone.

    Attributes:
        held: the base forward, with all that rules derive from it.
        queries: one perturbation at its peak, by parameter.
        written: all differences that one perturbation writes on its way to the loss, by parameter; empty where it is
            not known, as after a resume.
    """

    held: int
    queries: dict[str, int]
    written: dict[str, int] = field(default_factory=dict)

    def weights(self) -> dict[str, float]:
        """A guess of what a query of each parameter costs, for as long as nothing has been measured."""
        return dict(self.written or self.queries)

    def state_dict(self) -> dict[str, Any]:
        """The part on which the chunk plan depends, as JSON-able values."""
        return {"held": self.held, "queries": dict(self.queries)}


class Tally:
    """Adds up what the propagation of one perturbation takes: a meter.

    Attributes:
        peak: bytes of live differences and temporaries, at most.
        written: bytes of all differences.
    """

    def __init__(self) -> None:
        self.peak = self.written = 0

    def __call__(self, live: int, newest: int) -> None:
        """Count one operation."""
        self.peak = max(self.peak, live + WORKSPACE * newest)
        self.written += newest


def footprint(program: Program, values: Values, offset: float) -> Footprint:
    """Read off a propagation of one coordinate of every parameter."""
    first, output = torch.zeros(1, dtype=torch.int64), program.graph.output
    again = held_bytes(values)
    tallies = {name: Tally() for name, cone in program.cones.items() if not cone.reason}
    for name, tally in tallies.items():
        loss_differences(program.cones[name], values, output, first, offset, tally)
    held = held_bytes(values)
    peaks = {name: max(tally.peak, 1) for name, tally in tallies.items()}
    written = {name: max(tallies[name].written, 1) if name in tallies else again for name in program.cones}
    return Footprint(held, {**peaks, **dict.fromkeys(program.recomputed, max(1, held // RECOMPUTED))}, written)


def joint_footprint(values: Values, one: Callable[[Meter], object], name: str) -> Footprint:
    """The same for directions in which all parameters move, from ``one``, a propagation of one of them."""
    tally = Tally()
    one(tally)
    return Footprint(held_bytes(values), {name: max(tally.peak, 1)}, {name: max(tally.written, 1)})


def chunk_sizes(foot: Footprint, *, target: int, budget: int, overhead: float = 1.0) -> dict[str, int]:
    """Perturbations per chunk for each parameter.

    Args:
        foot: bytes that a step takes.
        target: bytes that a chunk should take (what fits the cache).
        budget: bytes for everything.
        overhead: memory that the process takes, in multiples of live tensors.

    Raises:
        BudgetError: not even one perturbation at a time fits.
    """
    largest = max(foot.queries.values(), default=1)
    live = int(budget / overhead)
    if foot.held + largest > live:
        needed = math.ceil((foot.held + largest) * overhead)
        raise BudgetError(
            f"an estimate needs {needed / MEBI:.0f} MiB (the base forward holds {foot.held / MEBI:.0f} MiB of tensors, "
            f"one query {largest / MEBI:.0f}), more than the memory budget of {budget / MEBI:.0f} MiB; "
            f"give at least PropagationEvaluator(memory_budget={needed}) or use smaller batches"
        )
    cap = min(target, live - foot.held)
    return {name: max(1, min(MAX_CHUNK, cap // size)) for name, size in foot.queries.items()}


def workers_that_fit(
    foot: Footprint, sizes: Mapping[str, int], *, budget: int, most: int, overhead: float = 1.0
) -> int:
    """The number of chunks in flight that the budget allows; it never changes what a chunk holds."""
    return max(1, min(most, (int(budget / overhead) - foot.held) // _largest_chunk(foot, sizes)))


def in_flight(foot: Footprint, sizes: Mapping[str, int], workers: int) -> int:
    """Bytes of live tensors while ``workers`` chunks are in flight."""
    return foot.held + workers * _largest_chunk(foot, sizes)


def _largest_chunk(foot: Footprint, sizes: Mapping[str, int]) -> int:
    return max((size * foot.queries[name] for name, size in sizes.items()), default=1)
