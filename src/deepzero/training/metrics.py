"""Records of a run: the interface of a place that they go to, and the file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from deepzero.files import finite, json_lines
from deepzero.training.run_folder import writing

Record = Mapping[str, Any]


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


class JsonLines:
    """One JSON object a line, null for numbers that are not finite.

    A resumed run truncates the file to where its checkpoint was made.

    Args:
        path: the file.
        start: bytes to keep.
    """

    def __init__(self, path: Path, *, start: int = 0) -> None:
        self.path = path
        with writing(path):
            self._file = path.open("ab")
            self._file.truncate(min(start, self._file.tell()))

    def flush(self) -> int:
        """Hand everything to the system; the bytes written so far."""
        with writing(self.path):
            self._file.flush()
        return self._file.tell()

    def write(self, record: Record) -> None:
        """Append one line and hand it to the system, so that others can follow the run."""
        with writing(self.path):
            self._file.write(json.dumps(finite(record), allow_nan=False).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with writing(self.path):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a file of JSON lines.

    Raises:
        RunFolderError: it cannot be read, or a line is damaged.
    """
    return list(json_lines(path))
