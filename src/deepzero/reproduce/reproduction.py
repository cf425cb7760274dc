"""Reproductions: the cells of an experiment are run, each is kept, and tables and figures are made of them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from deepzero import validation
from deepzero.environment import hardware, versions
from deepzero.errors import InvalidInputError, NonFiniteLossError, RunFolderError
from deepzero.files import read_from
from deepzero.report import Document
from deepzero.report.folder_contents import results
from deepzero.reproduce.cells import Cell, Workplace
from deepzero.reproduce.experiment import Experiment, Scale
from deepzero.reproduce.presentation import Outcome, Outcomes
from deepzero.reproduce.reproduction_folder import CELLS, ReproductionFolder
from deepzero.text import duration
from deepzero.training.stop_request import StopRequest

DIVERGED = "diverged"

log = logging.getLogger("deepzero")


@dataclass(frozen=True, kw_only=True)
class Request:
    """An experiment, its size, and the part of it that is to be run.

    Attributes:
        experiment: the table or figure.
        scale: name of its size.
        epochs: passes over the images in place of the scale's.
        seeds: runs of each kind in place of the scale's.
        limit: training images in place of the scale's.
        only: labels that a cell must have, for a part of the experiment.
        share: (k, n): of all cells, every n-th from the k-th on (k from 1), so that n processes can work in one folder.
    """

    experiment: Experiment[Any]
    scale: str = "small"
    epochs: int | None = None
    seeds: int | None = None
    limit: int | None = None
    only: Mapping[str, str] = field(default_factory=dict)
    share: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        k, n = self.share
        if not 1 <= k <= n:
            raise InvalidInputError(f"a share is k/n with k from 1 to n, got {k}/{n}; try 1/2 and 2/2 in two processes")
        for name in ("epochs", "seeds", "limit"):
            if (value := getattr(self, name)) is not None:
                validation.count(name, value)
                self._require_effect(name, value)

    def _require_effect(self, name: str, value: int) -> None:
        """Refuse a change that changes no cell: the caption would tell of it."""
        own = self.experiment.scale(self.scale)
        changed = own.changed(**{name: value})
        idle = changed is not own and _contents(self.experiment, changed) == _contents(self.experiment, own)
        if idle or name not in own.options():
            raise InvalidInputError(
                f"{self.experiment.name} at the scale {self.scale!r} does not depend on {name}; leave {name} out"
            )

    @property
    def size(self) -> Scale:
        """The scale with its changes."""
        scale: Scale = self.experiment.scale(self.scale)
        return scale.changed(epochs=self.epochs, seeds=self.seeds, limit=self.limit)

    @cached_property
    def every(self) -> list[Cell]:
        """All cells of the experiment at this size, not only those of the part."""
        return list(self.experiment.cells(self.size))

    def cells(self) -> list[Cell]:
        """All cells with the labels in :attr:`only`, of all shares.

        Raises:
            InvalidInputError: there are none; the message names the labels there are.
        """
        only = self.only.items()
        chosen = [cell for cell in self.every if all(k in cell.labels and str(cell.labels[k]) == v for k, v in only)]
        if not chosen:
            labels: dict[str, dict[str, None]] = {}
            for cell in self.every:
                for key, value in cell.labels.items():
                    labels.setdefault(key, {})[str(value)] = None
            listed = "; ".join(f"{key}: {', '.join(values)}" for key, values in labels.items())
            raise InvalidInputError(f"no cell of {self.experiment.name} has these labels; there are: {listed}")
        return chosen

    def identity(self) -> dict[str, Any]:
        """The part of the request that all processes in one folder share."""
        return {"experiment": self.experiment.name, "scale": self.scale, "epochs": self.epochs, "limit": self.limit}


def _contents(experiment: Experiment[Any], scale: Scale) -> list[Any]:
    return [(cell.labels, cell.work.settings()) for cell in experiment.cells(scale)]


@dataclass(frozen=True)
class Reproduction:
    """The results of :func:`reproduce`.

    Attributes:
        document: tables, figures and cells, as far as they are finished.
        folder: folder of the cells, the document and the plots.
        missing: number of cells that are not finished.
        stopped: True if it was stopped before its share was done.
    """

    document: Document
    folder: Path
    missing: int
    stopped: bool


def reproduce(
    request: Request,
    *,
    out: str | Path,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    max_seconds: float | None = None,
    command: str | None = None,
    known: str | Path | None = None,
) -> Reproduction:
    """Run the cells that are not finished yet, and write ``results.json``, ``report.html`` and the plots.

    A cell that is finished is not run again, and a training run that was stopped goes on bit for bit: the same call
    continues an interrupted one. SIGINT, SIGTERM and ``max_seconds`` stop it with everything saved. A run that diverged
    is kept as such, named in the document, and left out of all means.

    Args:
        request: the experiment, its size and the part to run.
        out: the folder; a new one, or that of the same experiment at the same scale.
        data_dir: folder of the data set, see :func:`deepzero.data.load`.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        max_seconds: time limit.
        command: named in the document as the command that made it.
        known: a ``results.json`` of the same experiment, made elsewhere or earlier; its finished cells are taken over.

    Raises:
        InvalidInputError: an argument is out of its domain.
        DataNotFoundError: the data set is not there.
        RunFolderError: the folder holds something else, or cannot be written; or another process runs these cells; or
            ``known`` has no cell of these.

    Example:
        >>> import tempfile
        >>> from deepzero.reproduce import find
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     request = Request(experiment=find("fig2"), scale="smoke", only={"method": "FO"})
        ...     done = reproduce(request, out=folder)
        >>> done.document.tables[0].columns[:2]
        ['d', 'FO']
    """
    cells = request.cells()
    validation.device(device)
    elsewhere = None if known is None else _results(Path(known))
    stop = StopRequest(max_seconds=max_seconds, work="cell")
    place = Workplace(None if data_dir is None else Path(data_dir), device, stop)
    folder = ReproductionFolder.open(Path(out), request.identity())
    _require_same(request, folder)
    share = cells[request.share[0] - 1 :: request.share[1]]
    with folder.claim(share), place.stop:
        if elsewhere is not None:
            _take_over(request, folder, elsewhere, source=f"{known}")
        if request.scale == "paper":
            announce(request, folder, place)
        stopped = not _run(share, folder, place)
    return _assemble(request, folder, place, stopped=stopped, command=command)


def _require_same(request: Request, folder: ReproductionFolder) -> None:
    """Refuse a folder with a cell that is damaged or was run with other settings, before others are run."""
    for cell in request.every:
        if folder.has(cell):
            folder.record(cell)


def _results(known: Path) -> Document:
    try:
        return results(known)
    except RunFolderError as error:
        raise RunFolderError(f"{error}; known takes a results.json that deepzero reproduce wrote") from error


def _take_over(request: Request, folder: ReproductionFolder, document: Document, *, source: str) -> None:
    """Copy finished cells of a document; refuse a document that has none of these cells."""
    count = folder.take_over(request.every, document)
    if not any(map(folder.has, request.every)):
        raise RunFolderError(
            f"{source} has no cell of {request.experiment.name} at the scale {request.scale!r} with these settings; "
            "leave known out to run all cells"
        )
    log.info("%d cells taken over from %s", count, source)


def announce(request: Request, folder: ReproductionFolder, place: Workplace) -> None:
    """Log the expected time of the cells to run, unless stopped; one stands for those that differ in the seed."""
    unfinished = [cell for cell in request.cells() if not folder.has(cell)]
    forecasts = folder.forecasts()
    for cell in unfinished:
        if place.stop.reason is not None:
            return
        kind = _but_seed(cell)
        if kind not in forecasts:
            seconds = forecasts[kind] = cell.work.forecast(place)
            folder.keep_forecasts(forecasts)
            log.info("%s: %s each", kind, "short" if seconds is None else duration(seconds))
    total = sum(forecasts[_but_seed(cell)] or 0.0 for cell in unfinished)
    log.info("%d cells are left, about %s of work on this machine", len(unfinished), duration(total))


def _but_seed(cell: Cell) -> str:
    return ", ".join(f"{key}={value}" for key, value in cell.labels.items() if key != "seed")


def _run(cells: Sequence[Cell], folder: ReproductionFolder, place: Workplace) -> bool:
    """Run the cells in turn; False if it was stopped before the last."""
    for number, cell in enumerate(cells, start=1):
        if folder.has(cell):
            continue
        if place.stop.reason is not None:
            return False
        start = time.perf_counter()
        result = _result(cell, folder, place)
        if result is None:
            return False
        folder.keep(cell, result, device=place.device)
        time_text = duration(time.perf_counter() - start)
        log.info("[%d/%d] %s: %s%s", number, len(cells), cell.name, _headline(result), time_text)
    return True


def _result(cell: Cell, folder: ReproductionFolder, place: Workplace) -> dict[str, Any] | None:
    """The result of a cell; the reason, if it diverged; None if it was stopped."""
    try:
        result = cell.work.run(folder.cell(cell), place)
    except NonFiniteLossError as error:
        return {DIVERGED: str(error)}
    return result if all_finite(result) else {DIVERGED: "a number of its result is not finite"}


def all_finite(value: Any) -> bool:
    """True if all numbers in a JSON-able value are finite.

    >>> all_finite({"a": [1, 2.5, None]}), all_finite({"a": [1, float("nan")]})
    (True, False)
    """
    if isinstance(value, Mapping):
        return all(map(all_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _headline(result: Mapping[str, Any]) -> str:
    if DIVERGED in result:
        return "diverged, "
    return f"test accuracy {result['test_accuracy']:.2%}, " if "test_accuracy" in result else ""


def _assemble(
    request: Request, folder: ReproductionFolder, place: Workplace, *, stopped: bool, command: str | None
) -> Reproduction:
    cells = request.every
    records = {cell.name: folder.record(cell) for cell in cells if folder.has(cell)}
    diverged = [name for name, record in records.items() if DIVERGED in record["result"]]
    converged = (cell for cell in cells if cell.name in records and cell.name not in diverged)
    outcomes = Outcomes(Outcome(cell.labels, records[cell.name]["result"]) for cell in converged)
    with read_from(folder.path / CELLS, advice="delete the file of the cell that is damaged to run it again"):
        presentation = request.experiment.present(outcomes, request.size)
    document = Document(
        title=request.experiment.title,
        caption=request.size.caption,
        tables=presentation.tables,
        figures=presentation.figures,
        pictures=presentation.pictures,
        facts={
            "experiment": request.experiment.name,
            "scale": request.scale,
            **({} if command is None else {"command": command}),
            "cells": f"{len(records)} of {len(cells)} finished",
            **({DIVERGED: diverged} if diverged else {}),
            **_circumstances(records, place),
        },
        cells=list(records.values()),
    )
    folder.show(document)
    missing = sum(not folder.has(cell) for cell in request.cells())
    return Reproduction(document, folder.path, missing, stopped)


def _circumstances(records: Mapping[str, Mapping[str, Any]], place: Workplace) -> dict[str, Any]:
    """Date, versions and hardware of the newest cell; those of now if there is none."""
    now = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(torch.device(place.device)),
    }
    newest = max(records.values(), key=lambda record: str(record["date"]), default=now)
    return {name: newest[name] for name in now}
