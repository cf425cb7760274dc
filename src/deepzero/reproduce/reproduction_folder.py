"""The folder of a reproduction: its identity, its cells, and the documents made of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import torch

from deepzero.environment import hardware, versions
from deepzero.errors import RunFolderError
from deepzero.files import json_object, make_folder, read_from, replace_file, to_json
from deepzero.folder_lock import FileLock
from deepzero.report import Document
from deepzero.report.html import page
from deepzero.report.svg import draw
from deepzero.reproduce.cells import Cell
from deepzero.training.run_folder import writing

FORMAT = "deepzero reproduction 1"
RECORD, RESULTS, REPORT, CELLS = "reproduction.json", "results.json", "report.html", "cells"
FORECASTS = "forecasts.json"


class ReproductionFolder:
    """A folder of one experiment at one scale. Make one with :meth:`open`.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any]) -> Self:
        """A new folder, or one that was opened with the same identity before.

        Raises:
            RunFolderError: it holds something else, or cannot be written.
        """
        record = {"format": FORMAT, **identity}
        if (path / RECORD).exists():
            there = json_object(path / RECORD, advice="choose another --out")
            changed = [f"{k}: {there.get(k)!r} there, {v!r} asked" for k, v in record.items() if there.get(k) != v]
            if changed:
                raise RunFolderError(f"{path} holds another reproduction ({', '.join(changed)}); choose another --out")
        elif path.exists() and not _is_free(path):
            raise RunFolderError(f"{path} is not an empty folder; choose another --out")
        with writing(path):
            make_folder(path / CELLS)
            if not (path / RECORD).exists():
                replace_file(path / RECORD, to_json(record))
        return cls(path)

    @contextmanager
    def claim(self, cells: Iterable[Cell]) -> Iterator[None]:
        """A block in which this process alone runs the unfinished ones among some cells; others may run other cells.

        Raises:
            RunFolderError: another process runs one of them; the message names it and says what to do.
        """
        with ExitStack() as stack:
            for cell in cells:
                lock = FileLock(self.path / CELLS / f".{cell.name}.lock")
                with writing(self.path):
                    if not self.has(cell) and not lock.acquire():
                        raise RunFolderError(
                            f"the cell {cell.name} of {self.path} is in use by {lock.holder()}; {lock.advice()}; to "
                            "divide the cells of a reproduction among processes, give each a --share of its own"
                        )
                stack.callback(lock.release)
            yield

    def cell(self, cell: Cell) -> Path:
        """The folder of the files of a cell."""
        return self.path / CELLS / cell.name

    def has(self, cell: Cell) -> bool:
        """True if a cell is finished."""
        return self._result(cell).exists()

    def record(self, cell: Cell) -> dict[str, Any]:
        """A finished cell: labels, settings, result and where it was run.

        Raises:
            RunFolderError: it was run with other settings, or cannot be read.
        """
        again = "delete it to run the cell again"
        record = json_object(self._result(cell), advice=again)
        if not isinstance(record.get("result"), dict) or not isinstance(record.get("date"), str):
            raise RunFolderError(f"{self._result(cell)} is damaged: it has no result, or no date; {again}")
        if _without_none(record.get("settings")) != _stored_settings(cell):
            raise RunFolderError(
                f"{self._result(cell)} was run with other settings, by another version of deepzero or on another "
                "machine; choose another --out, or delete the file to run the cell again"
            )
        return record

    def keep(self, cell: Cell, result: Mapping[str, Any], *, device: str) -> None:
        """Write down a finished cell; the checkpoints of its run go."""
        record = {
            "labels": dict(cell.labels),
            "settings": cell.work.settings(),
            "result": result,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "hardware": hardware(torch.device(device)),
        }
        self._write(cell, record)
        shutil.rmtree(self.cell(cell) / "checkpoints", ignore_errors=True)

    def take_over(self, cells: Iterable[Cell], document: Document) -> int:
        """Copy the finished cells that a document holds with the same settings; return their number."""
        count = 0
        for cell in cells:
            key = dict(cell.labels), _stored_settings(cell)
            same = (r for r in document.cells if (r.get("labels"), _without_none(r.get("settings"))) == key)
            record = next(same, None)
            if record is not None and not self.has(cell):
                self._write(cell, record)
                count += 1
        return count

    def _write(self, cell: Cell, record: Mapping[str, Any]) -> None:
        with writing(self._result(cell)):
            replace_file(self._result(cell), to_json(record))

    def forecasts(self) -> dict[str, float | None]:
        """Expected seconds of kinds of cells on this machine."""
        path = self.path / FORECASTS
        again = "delete it to time the cells again"
        found = json_object(path, advice=again) if path.exists() else {}
        with read_from(path, advice=again):
            return {kind: None if seconds is None else float(seconds) for kind, seconds in found.items()}

    def keep_forecasts(self, seconds: Mapping[str, float | None]) -> None:
        """Write them down, so that nothing is timed twice."""
        with writing(self.path):
            replace_file(self.path / FORECASTS, to_json(seconds))

    def show(self, document: Document) -> None:
        """Write ``results.json``, ``report.html`` and one SVG file for each figure."""
        with writing(self.path):
            replace_file(self.path / RESULTS, to_json(document.as_dict()))
            replace_file(self.path / REPORT, page([document], title=document.title).encode())
            for number, figure in enumerate(document.figures, start=1):
                replace_file(self.path / f"figure-{number}.svg", draw(figure).encode())

    def _result(self, cell: Cell) -> Path:
        return self.path / CELLS / f"{cell.name}.json"


def _is_free(path: Path) -> bool:
    """True if a folder holds nothing, or only the record that another process is about to write."""
    return path.is_dir() and all(entry.name.startswith(f".{RECORD}") for entry in path.iterdir())


def _stored_settings(cell: Cell) -> Any:
    """The settings of a cell as they come back from a file."""
    return _without_none(json.loads(to_json(cell.work.settings())))


def _without_none(settings: Any) -> Any:
    """Settings without those that are None: an option that came later is not in older records."""
    if isinstance(settings, dict):
        return {name: _without_none(value) for name, value in settings.items() if value is not None}
    return settings
