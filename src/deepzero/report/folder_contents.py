"""The content of a folder: a training run, finished or not, or the results of a reproduction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors

from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.files import json_lines, json_object, read_from
from deepzero.report.figures import Document
from deepzero.training.checkpoint import TENSORS
from deepzero.training.run_folder import RATIOS_FILE, RECORD, RunFolder, continued_by, no_run, read_record

RESULTS = "results.json"
VALIDATION, TEST = "validation_", "test_"
NUMBERS = ("step", "queries", "seconds", "epoch")
"""Keys of a record under which there is always a number; under the others, but its kind, there is one or none."""

LARGE = 1e200
"""Magnitude of a number that no run comes to, and of which sums and squares would not be finite."""


@dataclass(frozen=True)
class RecordedRun:
    """A training run as far as it went.

    Attributes:
        path: its folder.
        record: of its start.
        records: the lines of ``metrics.jsonl`` that are whole.
        summary: its result; None if it has not finished.
        keep: layer-wise keep ratios, if it has them.
        shapes: shapes of the parameters by name, in the network's order; of a run of an earlier version, those of all
            stored tensors in the order of their names, none as long as no weights are stored.
    """

    path: Path
    record: Mapping[str, Any]
    records: list[dict[str, Any]]
    summary: Mapping[str, Any] | None
    keep: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def config(self) -> Mapping[str, Any]:
        """Its configuration."""
        config: Mapping[str, Any] = self.record["config"]
        return config

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """Records of single steps."""
        return self._of_kind("step")

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """Records of epochs."""
        return self._of_kind("epoch")

    @cached_property
    def validations(self) -> list[dict[str, Any]]:
        """Records of epochs at whose end the validation split was looked at."""
        return [record for record in self.epochs if any(key.startswith(VALIDATION) for key in record)]

    @property
    def measures(self) -> list[str]:
        """Names of the measures on the validation and test splits besides the loss, such as ``accuracy``."""
        keys = dict.fromkeys(key for record in self.validations + self.tests for key in record)
        names = [key.removeprefix(start) for key in keys for start in (VALIDATION, TEST) if key.startswith(start)]
        return [name for name in dict.fromkeys(names) if name != "loss"]

    def best(self, name: str) -> float | None:
        """The largest value so far of what is measured on the validation split."""
        return max((y for _, y in points(self.validations, "step", VALIDATION + name)), default=None)

    @cached_property
    def tests(self) -> list[dict[str, Any]]:
        """The record of the test, once it was made."""
        return self._of_kind("test")

    @property
    def start_up(self) -> float | None:
        """Seconds until the end of the first step: imports, data, export, compilation, scores, and the step itself."""
        return float(self.steps[0]["seconds"]) if self.steps else None

    def _of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record.get("kind") == kind]


def points(records: Iterable[Mapping[str, Any]], x: str, y: str, *, scale: float = 1.0) -> list[tuple[float, float]]:
    """Two entries of each record that has both; numbers that were not finite, which a file holds as null, are left out.

    >>> points([{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}, {"step": 3}], "step", "loss")
    [(1, 2.5)]
    """
    known = [record for record in records if record.get(x) is not None and record.get(y) is not None]
    return [(record[x], scale * record[y] if scale != 1 else record[y]) for record in known]


def how_to_continue(run: RecordedRun) -> str:
    """The end of the caption of a run that has not finished: the command that continues it."""
    return f"Unless it is still running, continue it with\n\n    {continued_by(run.path, run.record)}"


def surroundings(run: RecordedRun) -> dict[str, Any]:
    """The facts that runs of every kind have: settings, machine, versions."""
    summary = run.summary or {}
    return {
        "configuration": run.config,
        "hardware": summary.get("hardware", {}),
        "versions": summary.get("versions", run.record.get("versions", {})),
    }


def read(path: Path) -> RecordedRun | Document:
    """The run or the results in a folder.

    Raises:
        RunFolderError: it holds neither, or they cannot be read.
    """
    if (path / RESULTS).exists():
        return results(path / RESULTS)
    if (path / RECORD).exists():
        return _run(path)
    below = sorted(str(inner.parent) for name in (RECORD, RESULTS) for inner in path.glob(f"*/{name}"))
    if not path.is_dir() or below:
        raise RunFolderError(no_run(path, below))
    raise RunFolderError(
        f"{path} holds neither a run ({RECORD}) nor the results of a reproduction ({RESULTS}); name the folder of one, "
        "such as runs/NAME"
    )


def results(path: Path) -> Document:
    """The results in a file ``results.json``, or in a record that was made of one.

    Raises:
        RunFolderError: it holds none, or cannot be read.
    """
    try:
        return Document.from_dict(json_object(path))
    except InvalidInputError as error:
        raise RunFolderError(f"{path} cannot be shown: {error}") from error


def _run(path: Path) -> RecordedRun:
    record = read_record(path)
    folder = RunFolder(path, record)
    summary, ratios = folder.read_summary(), folder.read(RATIOS_FILE)
    with read_from(path / RATIOS_FILE, advice="delete it, and the page leaves the layers out"):
        keep = {name: float(share) for name, share in (ratios or {}).get("keep", {}).items()}
    with read_from(path / RECORD, advice="start the run again with another --out"):
        shapes = _shapes(path, record)
    return RecordedRun(path, record, metrics(path / "metrics.jsonl"), summary, keep, shapes)


def metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line that was cut off in the middle is left out.

    Raises:
        RunFolderError: a line is damaged.
    """
    records = list(json_lines(path)) if path.exists() else []
    for record in records:
        missing = [key for key in NUMBERS[:3] if key not in record]
        odd = [key for key, value in record.items() if key != "kind" and not _is_number(value, key)]
        if missing or odd:
            what = f"has no {missing[0]}" if missing else f"has the {odd[0]} {str(record[odd[0]])[:40]!r}"
            raise RunFolderError(
                f"{path} is damaged: a record {what}, where a number is expected; take that line out, and what it "
                "measured is left out"
            )
    return records


def _is_number(value: Any, key: str) -> bool:
    return (value is None and key not in NUMBERS) or (isinstance(value, int | float) and abs(value) < LARGE)


def _shapes(path: Path, record: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """From the record, else from the selected weights, else from the newest checkpoint whose weights can be read."""
    if "parameters" in record:
        return {name: tuple(shape) for name, shape in record["parameters"]}
    checkpoints = sorted((path / "checkpoints").glob(f"step-*/{TENSORS}"), reverse=True)
    sources: Iterable[tuple[Path, str]] = [(path / "model.safetensors", ""), *((c, "model/") for c in checkpoints)]
    for source, prefix in sources:
        try:
            return _shapes_in(source, prefix)
        except (OSError, safetensors.SafetensorError):
            continue
    return {}


def _shapes_in(path: Path, prefix: str) -> dict[str, tuple[int, ...]]:
    with safetensors.safe_open(path, framework="pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is no mapping
        return {name.removeprefix(prefix): tuple(tensors.get_slice(name).get_shape()) for name in names}
