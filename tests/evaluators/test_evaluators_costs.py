"""The cost table: a step is its chunks, the last of which may not be full."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepzero.evaluators.costs import ChunkCost, CostTable, chunk_cost

FIXED, EACH = 0.5, 0.125


@given(st.integers(0, 40), st.integers(1, 12))
def test_the_seconds_of_queries_are_those_of_the_chunks_that_they_are_cut_into(count: int, chunk: int) -> None:
    """A begun chunk costs what a full one does beside its queries."""
    sizes = [min(chunk, count - start) for start in range(0, count, chunk)]
    assert ChunkCost(FIXED, EACH, chunk, 1).seconds(count) == sum(FIXED + EACH * size for size in sizes)


def test_a_step_is_the_base_forward_and_its_work_shared_by_the_workers() -> None:
    """Five queries in chunks of four are two chunks, and both nodes of a stencil take them."""
    table = CostTable(1.0, 2, {"a": ChunkCost(FIXED, EACH, 4, 1), "b": ChunkCost(0.0, 2.0, 1, 1)}, 1)
    a, b = 2 * FIXED + 5 * EACH, 3 * 2.0
    assert table.seconds_per_step({"a": 5, "b": 3}) == 1.0 + (a + b) / 2
    assert table.seconds_per_step({"a": 5, "b": 3}, nodes=2) == 1.0 + 2 * (a + b) / 2
    assert table.seconds_per_query() == {"a": (FIXED + 4 * EACH) / 4 / 2, "b": 1.0}
    assert CostTable.from_state_dict(table.state_dict()) == table


@pytest.mark.parametrize(("chunk", "fixed", "each"), [(8, FIXED, EACH), (1, 0.0, FIXED + EACH)])
def test_the_fit_gives_back_what_chunks_were_made_to_take(
    monkeypatch: pytest.MonkeyPatch, chunk: int, fixed: float, each: float
) -> None:
    """On a clock that only the chunks move; a chunk of one cannot tell the two parts apart."""
    now = [0.0]

    def run(indices: Tensor) -> None:
        now[0] += FIXED + EACH * len(indices)

    monkeypatch.setattr("deepzero.stopwatch.time.perf_counter", lambda: now[0])
    assert chunk_cost(run, torch.arange(20), chunk, 7, repeats=3) == ChunkCost(fixed, each, chunk, 7)
