"""The chunk plan: how many perturbations are propagated together.

The plan depends on shapes, the byte target and the coordinates, never on the number of workers or on a clock: each
chunk is computed by one thread, so the gradient has the same bits on 1, 2 or 64 workers and in a second run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from deepzero.errors import BudgetError
from deepzero.graph.footprint import Footprint

MEBI = 1 << 20
MAX_CHUNK = 512
ALLOCATOR = 1.8
"""Memory that the process takes, in multiples of live tensors: what the C allocator keeps in its arenas for reuse."""


def chunk_sizes(foot: Footprint, *, target: int, budget: int, overhead: float = 1.0, few: int = 1) -> dict[str, int]:
    """Perturbations per chunk for each parameter.

    Args:
        foot: bytes that a step takes.
        target: bytes that a chunk should take (what fits the cache).
        budget: bytes for everything.
        overhead: memory that the process takes, in multiples of live tensors.
        few: perturbations that a chunk should have even beyond the target, so that the work between rules is shared;
            as far as a quarter of what the budget leaves goes, for the sake of other workers.

    Raises:
        BudgetError: not even one perturbation at a time fits.
    """
    largest = foot.shared + max(foot.queries.values(), default=1)
    live = int(budget / overhead)
    if foot.held + largest > live:
        needed = math.ceil((foot.held + largest) * overhead)
        raise BudgetError(
            f"an estimate needs {needed / MEBI:.0f} MiB (the base forward holds {foot.held / MEBI:.0f} MiB of tensors, "
            f"one query {largest / MEBI:.0f}), more than the memory budget of {budget / MEBI:.0f} MiB; "
            f"give at least PropagationEvaluator(memory_budget={needed}) or use smaller batches"
        )
    room = live - foot.held - foot.shared
    cap, roomy = min(target, room), room // 4
    return {
        name: max(1, min(MAX_CHUNK, max(cap // size, min(few, roomy // size)))) for name, size in foot.queries.items()
    }


def workers_that_fit(
    foot: Footprint, sizes: Mapping[str, int], *, budget: int, most: int, overhead: float = 1.0
) -> int:
    """The number of chunks in flight that the budget allows; it never changes what a chunk holds."""
    return max(1, min(most, (int(budget / overhead) - foot.held) // _largest_chunk(foot, sizes)))


def in_flight(foot: Footprint, sizes: Mapping[str, int], workers: int) -> int:
    """Bytes of live tensors while ``workers`` chunks are in flight."""
    return foot.held + workers * _largest_chunk(foot, sizes)


def _largest_chunk(foot: Footprint, sizes: Mapping[str, int]) -> int:
    return foot.shared + max((size * foot.queries[name] for name, size in sizes.items()), default=1)
