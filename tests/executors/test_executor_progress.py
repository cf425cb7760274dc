"""The bar: queries answered, and the time left."""

from __future__ import annotations

import io

import boxes
import pytest
from rich.console import Console

import deepzero as dz
from deepzero.errors import QueryError
from deepzero.executors import QueryProgress


def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def test_the_bar_counts_and_goes_away() -> None:
    screen = console()
    progress = QueryProgress(console=screen)
    evaluator = boxes.evaluator(boxes.FakeExecutor(1), progress=progress)
    for _ in range(2):
        boxes.estimate(evaluator, boxes.box())
        assert progress._bar is None
    assert "/14" in screen.file.getvalue()


def test_the_bar_can_be_taken_away_after_an_error() -> None:
    progress = QueryProgress(console=console())
    faulty = boxes.box(boxes.Faulty({5: ConnectionError("gone")}))
    evaluator = boxes.evaluator(boxes.FakeExecutor(1), progress=progress, policy=dz.QueryPolicy(on_error="stop"))
    with pytest.raises(QueryError):
        boxes.estimate(evaluator, faulty)
    assert progress._bar is not None
    progress.close()
    progress.close()
    assert progress._bar is None
