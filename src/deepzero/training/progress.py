"""What a person sees while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBar:
    """A bar with queries a second and the time left; without a terminal, a line now and then.

    Args:
        total: steps of the run; None if that is not known.
        done: steps made before, by an interrupted run.
        console: where to show it.
        interval: least number of seconds between two lines without a terminal.
    """

    def __init__(
        self, *, total: int | None, done: int = 0, console: Console | None = None, interval: float = 10.0
    ) -> None:
        self.console = console or Console()
        self.total = total
        self._interval = interval
        self._start: tuple[float, int] | None = None
        self._said = float("-inf")
        self._validation = ""
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self.console.is_terminal:
            self._open(done)

    def _open(self, done: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, transient=True)
        self._task = self._bar.add_task("starting", total=self.total, completed=done)
        self._bar.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Show a record."""
        if "validation_accuracy" in record:
            self._validation = f", validation {record['validation_accuracy']:.1%}"
        elif record["kind"] == "step":
            self._show(record)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _show(self, record: Mapping[str, Any]) -> None:
        rate = self._rate(record["seconds"], record["queries"])
        text = f"epoch {record['epoch'] + 1}, loss {record['loss']:.3f}{self._validation}{rate}"
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], description=text)
        elif time.monotonic() - self._said >= self._interval or record["step"] == self.total:
            of = "" if self.total is None else f"/{self.total}"
            self.console.print(f"step {record['step']}{of}: {text}", highlight=False)
            self._said = time.monotonic()

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
        console: where to show it.
        what: is counted, in a word or two.
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
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        with Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True
        ) as progress:
            task = progress.add_task(what, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
    else:
        said = time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal said
            now = time.monotonic()
            if done == total or now - said >= interval:
                said = now
                console.print(f"{what} {done}/{total}", highlight=False)

        yield tell
