"""The time left is always there to be read, however narrow the screen and however long the rest."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from deepzero.training.progress import Pace, ProgressBar, console_for, counting


def record(step: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": step,
        "seconds": seconds,
        "queries": 10**9 * step,
        "epoch": 99,
        "loss": 1e9 / 3,
        **more,
    }


def drawn(bar: ProgressBar) -> str:
    """What stands on the screen, without the codes of a terminal."""
    assert bar._progress is not None
    bar.close()
    paper = Console(file=io.StringIO(), width=bar.console.width)
    with paper.capture() as shown:
        paper.print(bar._progress.get_renderable())
    return shown.get()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_bar_shows_step_and_time_left_at_any_width(width: int) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    bar = ProgressBar(total=1_000_000, console=screen)
    bar.write(record(1, 5.0))
    bar.write({"kind": "epoch", "validation_accuracy": 0.987})
    bar.write(record(501, 55.0))
    (line,) = drawn(bar).splitlines()
    assert len(line) <= width
    assert "501/1000000" in line
    assert "1 day, 3:45:50 left" in line


def test_before_the_first_step_the_bar_says_what_is_awaited() -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    bar = ProgressBar(total=100, console=screen)
    shown = drawn(bar)
    assert "0/100" in shown
    assert "first step" in shown


def test_lines_without_a_terminal_show_it_too() -> None:
    said = io.StringIO()
    bar = ProgressBar(total=100, console=Console(file=said, width=200), interval=0.0)
    for step in (1, 2, 51, 100):
        bar.write(record(step, 10.0 + step))
    assert [line.partition(":")[0] for line in said.getvalue().splitlines()] == [
        "step 1/100",
        "step 2/100, 0",  # 0:01:38 left
        "step 51/100, 0",
        "step 100/100",
    ]
    assert "step 2/100, 0:01:38 left: epoch 100, loss" in said.getvalue()
    assert "step 51/100, 0:00:49 left" in said.getvalue()


def test_the_start_up_is_no_part_of_the_pace() -> None:
    pace = Pace(total=20)
    assert pace.left(11, seconds=3600.0) == ""  # a resumed run, whose clock has run before
    assert pace.left(12, seconds=3602.0) == "0:00:16 left"
    assert pace.left(20, seconds=3618.0) == ""


def test_what_is_counted_has_a_time_left() -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    with counting(screen, "reference simulations, step", interval=0.0) as tell:
        tell(1, 1000)
    said = io.StringIO()
    with counting(Console(file=said, width=80), "simulations", interval=0.0) as tell:
        tell(1, 3)
        tell(2, 3)
        tell(3, 3)
    first, second, third = said.getvalue().splitlines()
    assert (first, third) == ("simulations 1/3", "simulations 3/3")
    assert second.startswith("simulations 2/3, 0:00:0")
    assert second.endswith(" left")


def test_progress_is_shown_where_it_is_wished() -> None:
    console = Console(file=io.StringIO())
    assert console_for(console) is console
    assert console_for(progress=False) is None
    assert console_for(progress=None) is None  # the tests' standard error is no terminal
    shown = console_for(progress=True)
    assert shown is not None
    assert shown.stderr
