"""Where measurements go: a file of JSON lines, TensorBoard, or both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from deepzero.errors import InvalidInputError
from deepzero.training.files import finite
from deepzero.training.run_folder import writing

Record = Mapping[str, Any]


class Sink(Protocol):
    """Takes records; each has a ``kind`` (``step``, ``epoch`` or ``test``), ``step``, ``queries`` and ``seconds``."""

    def write(self, record: Record) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """No more records will come."""
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

    @property
    def size(self) -> int:
        """Bytes written so far."""
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


class TensorBoard:
    """Curves for TensorBoard, one for each number of a record.

    Args:
        folder: where the event files go.
        start: step from which events of an interrupted run are to be dropped.

    Raises:
        InvalidInputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, *, start: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional
        except ImportError as error:
            raise InvalidInputError("TensorBoard is not installed; try pip install 'deepzero[tensorboard]'") from error
        self._writer = SummaryWriter(str(folder), purge_step=start or None)

    def write(self, record: Record) -> None:
        """Add a point to each curve."""
        for key, value in record.items():
            if key not in {"kind", "step"}:
                self._writer.add_scalar(f"{record['kind']}/{key}", value, record["step"])

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
