"""Records of a run: the interface of a place that they go to, and the file of JSON lines."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from deepzero.files import finite, json_lines
from deepzero.training.run_folder import writing

Record = Mapping[str, Any]

log = logging.getLogger("deepzero")


class Sink(Protocol):
    """A place for measurements: a file, a logger, a display. Ready-made ones write JSON lines or to known loggers.

    It receives every record, in the order of the steps. A record has a ``kind`` (``step`` for a training step,
    ``epoch`` for the end of an epoch, ``test``), the optimizer ``step``, the ``queries`` and ``seconds`` so far, and by
    name the numbers of its kind, such as ``loss``.

    A run that is resumed after it was killed writes again the records that came after its last checkpoint: a sink that
    keeps them drops those it has.

    Example:
        >>> class Lowest:
        ...     "Keeps the lowest training loss."
        ...
        ...     def __init__(self):
        ...         self.loss = float("inf")
        ...
        ...     def write(self, record):
        ...         if record["kind"] == "step":
        ...             self.loss = min(self.loss, record["loss"])
        ...
        ...     def close(self):
        ...         print(f"lowest loss {self.loss}")
        >>> sink: Sink = Lowest()
        >>> for step, loss in enumerate([2.5, 0.5, 1.5], start=1):
        ...     sink.write({"kind": "step", "step": step, "queries": 100 * step, "seconds": 0.1, "loss": loss})
        >>> sink.close()
        lowest loss 0.5
    """

    def write(self, record: Record) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """No more records will come: called once, also when the run ends in an error."""
        ...


LONGEST = 1 << 20
"""Bytes of a line, at most."""


class JsonLines:
    """One JSON object a line, null for numbers that are not finite.

    A resumed run truncates the file to where its checkpoint was made, and to whole lines.

    Args:
        path: the file.
        start: bytes to keep.
        present: called with the step before a line is written; raises if the run's folder has gone.
    """

    def __init__(self, path: Path, *, start: int = 0, present: Callable[[int], None] = lambda _: None) -> None:
        self.path = path
        self._present = present
        with writing(path):
            self._file = path.open("a+b")
            self._file.truncate(_whole_lines(self._file, min(start, self._file.tell())))

    def flush(self) -> int:
        """Write everything down to the disk; the bytes written so far."""
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def write(self, record: Record) -> None:
        """Append one line and hand it to the system, so that others can follow the run."""
        self._present(record.get("step", 0))
        with writing(self.path):
            self._file.write(json.dumps(finite(record), allow_nan=False).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with writing(self.path):
            self._file.close()


def _whole_lines(file: BinaryIO, size: int) -> int:
    """The bytes of the whole lines among the first ones of a file; a line that a power cut has torn is left out."""
    file.seek(max(0, size - LONGEST))
    tail = file.read(size - file.tell())
    whole = size - len(tail) + tail.rfind(b"\n") + 1 if size else 0
    if whole < size:
        log.warning("the last line of %s was torn and is left out", file.name)
    return whole


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a file of JSON lines.

    Raises:
        RunFolderError: it cannot be read, or a line is damaged.
    """
    return list(json_lines(path))
