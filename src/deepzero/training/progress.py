"""Progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column


class Pace:
    """The time left, from the work done since the first call: what comes before it, the start-up, does not count.

    Example:
        >>> pace = Pace(total=100)
        >>> pace.left(10, seconds=60.0), pace.left(20, seconds=62.0)
        ('', '0:00:16 left')

    Args:
        total: all there is to do; None if that is not known.
    """

    def __init__(self, total: int | None) -> None:
        self.total = total
        self._first: tuple[int, float] | None = None

    def left(self, done: int, seconds: float) -> str:
        """The time left in words, or nothing where it cannot be known.

        Args:
            done: of all there is to do.
            seconds: since any beginning.
        """
        if self._first is None or done < self._first[0]:
            self._first = done, seconds
        before, start = self._first
        if self.total is None or done <= before or done >= self.total:
            return ""
        remaining = (self.total - done) * (seconds - start) / (done - before)
        return f"{timedelta(seconds=round(remaining))} left"


def _bar(console: Console) -> Progress:
    """A bar whose count and time left are always whole, however narrow the screen; the words behind them are cut."""
    return Progress(
        BarColumn(bar_width=max(4, min(40, console.width // 5))),
        TextColumn("{task.completed}/{task.total}", table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1), markup=False),
        console=console,
        transient=True,
        expand=True,
    )


def console_for(progress: bool | Console | None) -> Console | None:
    """The console to show the progress of a run on.

    Args:
        progress: a console, or True for one on standard error; None for that only if it is a terminal or a notebook.

    Returns:
        None if nothing is to be shown.
    """
    if isinstance(progress, Console):
        return progress
    console = Console(stderr=True)
    shows = console.is_terminal or console.is_jupyter if progress is None else progress
    return console if shows else None


class ProgressBar:
    """A bar with the time left, loss and queries a second; without a terminal, a line now and then.

    Args:
        total: steps of the run; None if that is not known.
        done: steps made before, by an interrupted run.
        console: to show it on.
        interval: least number of seconds between two lines without a terminal.
    """

    def __init__(
        self, *, total: int | None, done: int = 0, console: Console | None = None, interval: float = 10.0
    ) -> None:
        self.console = console or Console()
        self.total = total
        self._pace = Pace(total)
        self._interval = interval
        self._start: tuple[float, int] | None = None
        self._line_time = float("-inf")
        self._validation = ""
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if self.console.is_terminal:
            self._progress = _bar(self.console)
            self._task = self._progress.add_task("first step", total=total, completed=done, left="")
            self._progress.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Show a record."""
        if "validation_accuracy" in record:
            self._validation = f", validation {record['validation_accuracy']:.1%}"
        elif "validation_loss" in record:
            self._validation = f", validation {record['validation_loss']:.4g}"
        elif record["kind"] == "step":
            self._show(record)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()

    def _show(self, record: Mapping[str, Any]) -> None:
        rate = self._rate(record["seconds"], record["queries"])
        left = self._pace.left(record["step"], record["seconds"])
        text = f"epoch {record['epoch'] + 1}, loss {record['loss']:.4g}{self._validation}{rate}"
        if self._progress is not None:
            self._progress.update(self._task, completed=record["step"], description=text, left=left)
        elif time.monotonic() - self._line_time >= self._interval or record["step"] == self.total:
            of = "" if self.total is None else f"/{self.total}"
            where = f"step {record['step']}{of}" + (f", {left}" if left else "")
            self.console.print(f"{where}: {text}", highlight=False)
            self._line_time = time.monotonic()

    def _rate(self, seconds: float, queries: int) -> str:
        """Queries a second since the first record: the start-up does not count."""
        if self._start is None:
            self._start = (seconds, queries)
        elapsed = seconds - self._start[0]
        return f", {(queries - self._start[1]) / elapsed:,.0f} queries/s" if elapsed > 0 else ""


@contextmanager
def counting(console: Console | None, what: str, *, interval: float = 10.0) -> Iterator[Callable[[int, int], None]]:
    """A bar for anything that is counted; without a terminal, a line now and then; without a console, nothing.

    Args:
        console: to show it on.
        what: the things that are counted, in a word or two.
        interval: least number of seconds between two lines without a terminal.

    Yields:
        A function of what is done and of all there is to do.

    Example:
        >>> with counting(Console(width=60), "steps", interval=0.0) as tell:
        ...     tell(5, 5)
        steps 5/5
    """
    if console is None:
        yield lambda _done, _total: None
        return
    start, pace = time.monotonic(), Pace(0)

    def left_of(done: int, total: int) -> str:
        pace.total = total
        return pace.left(done, time.monotonic() - start)

    if console.is_terminal:
        with _bar(console) as progress:
            task = progress.add_task(what, total=None, left="")
            yield lambda done, total: progress.update(task, completed=done, total=total, left=left_of(done, total))
    else:
        line_time = start

        def tell(done: int, total: int) -> None:
            nonlocal line_time
            left, now = left_of(done, total), time.monotonic()
            if done == total or now - line_time >= interval:
                line_time = now
                console.print(f"{what} {done}/{total}" + (f", {left}" if left else ""), highlight=False)

        yield tell
