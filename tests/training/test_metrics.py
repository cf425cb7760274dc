import io
import logging
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from rich.console import Console

from deepzero.errors import RunFolderError
from deepzero.training import JsonLines, ProgressBar, plot_run, read_metrics
from deepzero.training.progress import counting


def step(number: int, *, kind: str = "step", **values: Any) -> dict[str, Any]:
    return {"kind": kind, "step": number, "queries": 10 * number, "seconds": 0.5 * number, **values}


def training_step(number: int) -> dict[str, Any]:
    return step(number, epoch=0, loss=1 / number, learning_rate=0.1)


RECORDS = [
    *(training_step(i) for i in range(1, 5)),
    step(4, kind="epoch", epoch=0, training_loss=0.5, validation_loss=0.4, validation_accuracy=0.9),
    step(4, kind="test", test_accuracy=0.8, test_loss=0.6),
]


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    for record in RECORDS:
        sink.write(record)
    assert read_metrics(sink.path) == RECORDS  # readable while the run goes on
    assert sink.flush() == sink.path.stat().st_size
    sink.close()


def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path) -> None:
    """JSON has no NaN, and a run that has come to its end must not be lost for a test loss."""
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.write(step(1, kind="test", test_accuracy=0.8, test_loss=math.nan))
    sink.close()
    assert read_metrics(sink.path) == [step(1, kind="test", test_accuracy=0.8, test_loss=None)]


def test_a_resumed_file_is_cut_to_where_the_checkpoint_was_made(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.write(RECORDS[0])
    kept = sink.flush()
    sink.write(RECORDS[1])
    sink.close()
    resumed = JsonLines(sink.path, start=kept)
    resumed.write(RECORDS[2])
    resumed.close()
    assert read_metrics(sink.path) == [RECORDS[0], RECORDS[2]]


def test_a_line_that_a_power_cut_has_torn_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file is shorter than it was when the checkpoint was made."""
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    sink.write(RECORDS[0])
    sink.write(RECORDS[1])
    size = sink.flush()
    sink.close()
    os.truncate(path, size - 5)
    with caplog.at_level(logging.WARNING, logger="deepzero"):
        resumed = JsonLines(path, start=size)
    resumed.write(RECORDS[2])
    resumed.close()
    assert read_metrics(path) == [RECORDS[0], RECORDS[2]]
    assert [record.getMessage() for record in caplog.records] == [f"the last line of {path} was torn and is left out"]


def test_a_file_shorter_than_it_should_be_is_not_padded(tmp_path: Path) -> None:
    JsonLines(tmp_path / "metrics.jsonl", start=1000).close()
    assert (tmp_path / "metrics.jsonl").stat().st_size == 0


def test_a_path_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="could not be written"):
        JsonLines(tmp_path / "missing" / "metrics.jsonl")


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    console = Console(file=io.StringIO(), width=120)
    bar = ProgressBar(total=4, console=console, interval=3600)
    for record in RECORDS:
        bar.write(record)
    bar.close()
    lines = console.file.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 1/4", "step 4/4"]
    assert "20 queries/s" in lines[1]


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left() -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True, color_system=None)
    bar = ProgressBar(total=6, done=0, console=console)
    for record in RECORDS:
        bar.write(record)
    bar.write(training_step(5))
    bar.close()
    shown = console.file.getvalue()
    assert "20 queries/s" in shown
    assert "validation 90.0%" in shown
    assert re.search(r"5/6.* 0:00:\d\d left", shown)


def test_the_plot_is_a_png_and_leaves_pyplot_alone() -> None:
    before = pyplot.get_fignums()
    image = plot_run(RECORDS, title="digits")
    assert image.startswith(b"\x89PNG")
    assert len(image) > 10_000
    assert pyplot.get_fignums() == before


def test_a_run_without_validation_can_be_plotted() -> None:
    records = [training_step(1), step(1, kind="epoch", epoch=0, training_loss=1.0), RECORDS[-1]]
    assert plot_run(records, title="no validation").startswith(b"\x89PNG")


def test_what_is_counted_is_shown_as_a_bar_or_in_lines() -> None:
    lines = io.StringIO()
    with counting(Console(file=lines, width=60), "frames", interval=0.0) as tell:
        tell(1, 3)
        tell(3, 3)
    assert lines.getvalue().splitlines() == ["frames 1/3", "frames 3/3"]
    seldom = io.StringIO()
    with counting(Console(file=seldom, width=60), "frames", interval=3600) as tell:
        tell(1, 3)
        tell(3, 3)
    assert seldom.getvalue().splitlines() == ["frames 3/3"]
    bar = io.StringIO()
    with counting(Console(file=bar, width=60, force_terminal=True), "frames") as tell:
        tell(2, 3)
    assert "frames" in bar.getvalue()
    with counting(None, "frames") as tell:
        tell(1, 3)
