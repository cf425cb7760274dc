"""What a person sees while a step's queries are answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class QueryProgress:
    """A bar with the queries answered in a step and the time left; goes away when the step is done.

    Args:
        console: where to show it.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> import deepzero as dz
        >>> with ThreadPoolExecutor(2) as pool:
        ...     evaluator = dz.ExecutorEvaluator(pool, progress=QueryProgress())
    """

    def __init__(self, *, console: Console | None = None) -> None:
        self._console = console
        self._bar: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` queries are answered."""
        if self._bar is None:
            self._bar = self._open(done, total)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        if done == total:
            self.close()

    def _open(self, done: int, total: int) -> Progress:
        from rich import progress  # noqa: PLC0415 - only where it is shown

        columns = (progress.TextColumn("queries"), progress.BarColumn(), progress.MofNCompleteColumn())
        times = progress.TimeElapsedColumn(), progress.TimeRemainingColumn()
        bar = progress.Progress(*columns, *times, console=self._console, transient=True)
        bar.add_task("queries", total=total, completed=done)
        bar.start()
        return bar

    def close(self) -> None:
        """Take the bar away, for example after an interrupted step."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
