"""Dask: three worker processes on this machine, one of which dies in mid-step."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boxes
import pytest

import deepzero as dz

distributed = pytest.importorskip("distributed", reason="needs dask.distributed: pip install 'deepzero[dask]'")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(
            n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("batched", [None, 4])
@pytest.mark.parametrize("make", [dz.CGE, functools.partial(dz.RGE, queries=7)], ids=["CGE", "RGE"])
def test_dask_agrees_with_the_oracle(client: Any, make: Any, batched: int | None) -> None:
    fn = boxes.rough if batched is None else boxes.rough_stacked
    found = make(boxes.box(fn, batched), executor=client.get_executor(), stencil=dz.CENTRAL).estimate(1.5)
    assert boxes.same(found, make(boxes.box(), stencil=dz.CENTRAL).estimate(1.5))


def test_a_worker_that_dies_in_mid_step(client: Any, tmp_path: Path) -> None:
    """Dask gives its queries to another worker, which says that it lacks the parameters if it does."""
    at = float(boxes.values()["w"][0, 0]) + 0.5
    fn = functools.partial(boxes.dies_once, mark=str(tmp_path / "died"), at=at)
    found = boxes.estimate(dz.ExecutorEvaluator(client.get_executor()), boxes.box(fn))
    assert (tmp_path / "died").exists()
    assert boxes.same(found, boxes.estimate(dz.SequentialEvaluator(), boxes.box()))
