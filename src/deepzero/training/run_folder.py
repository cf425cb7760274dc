"""The folder of one run: its record, checkpoints, metrics, summary, plot and weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
from torch import Tensor

from deepzero.errors import RunFolderError
from deepzero.training.checkpoint import CheckpointStore
from deepzero.training.files import finite, flat, json_object, leftovers, replace_file, to_json

FORMAT = "deepzero run 1"
RECORD = "run.json"


class RunFolder:
    """A folder that holds one run and no other. Make one with :meth:`create` or :meth:`reopen`.

    Attributes:
        path: the folder.
        record: what the run was started with, as JSON-able values: its ``config`` and whatever else the caller noted.
    """

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path = path
        self.record = dict(record)

    @staticmethod
    def require_free(path: Path) -> None:
        """Raise :class:`RunFolderError` unless ``path`` is an empty folder or does not exist.

        A folder counts as empty if all it holds is a record that a killed process had not finished.
        """
        if not path.exists() or (path.is_dir() and not set(path.iterdir()) - set(leftovers(path / RECORD))):
            return
        if (path / RECORD).exists():
            raise RunFolderError(
                f"{path} holds another run; continue that with --resume (in Python: resume=True), or choose another "
                "--out (out=...)"
            )
        raise RunFolderError(f"{path} is not an empty folder; choose another --out")

    @classmethod
    def create(cls, path: Path, *, config: Mapping[str, Any], notes: Mapping[str, Any]) -> Self:
        """Start a run in a folder that is empty or does not exist.

        Raises:
            RunFolderError: the folder holds something, or cannot be written.
        """
        cls.require_free(path)
        record = json.loads(to_json({"format": FORMAT, "config": config, **notes}))
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            replace_file(path / RECORD, to_json(record))
            for unfinished in leftovers(path / RECORD):
                unfinished.unlink(missing_ok=True)
        return cls(path, record)

    @classmethod
    def reopen(cls, path: Path, *, config: Mapping[str, Any]) -> Self:
        """Open the folder of a run that was started with the same ``config``.

        Raises:
            RunFolderError: it holds no run, or one with other settings; the message names them.
        """
        record = read_record(path)
        started, asked = flat(record["config"]), flat(json.loads(to_json(config)))
        changed = sorted(key for key in started.keys() | asked.keys() if started.get(key) != asked.get(key))
        if changed:
            listed = ", ".join(f"{key}: {started.get(key)!r} there, {asked.get(key)!r} asked" for key in changed[:5])
            raise RunFolderError(
                f"{path} holds a run with other settings ({listed}); resume with the settings it was started with, "
                "or choose another --out"
            )
        return cls(path, record)

    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        identity = hashlib.sha256(to_json(self.record["config"])).hexdigest()
        return CheckpointStore(self.path / "checkpoints", run=identity)

    @property
    def metrics(self) -> Path:
        """One JSON object a line: steps, epochs, the test."""
        return self.path / "metrics.jsonl"

    @property
    def weights(self) -> Path:
        """The selected weights of a run that has finished."""
        return self.path / "model.safetensors"

    @property
    def summary(self) -> dict[str, Any] | None:
        """The result of a run that has finished, None before."""
        return self.read("summary.json")

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run, None if it is not there."""
        path = self.path / name
        if not path.exists():
            return None
        return json_object(path, advice="choose another --out")

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file atomically; numbers that are not finite become null."""
        with writing(self.path / name):
            replace_file(self.path / name, to_json(finite(value)))

    def write_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the selected weights."""
        with writing(self.weights):
            replace_file(self.weights, safetensors.torch.save(dict(tensors)))

    def read_weights(self) -> dict[str, Tensor]:
        """The selected weights of a run that has finished."""
        try:
            return safetensors.torch.load_file(self.weights)
        except (OSError, safetensors.SafetensorError) as error:
            raise RunFolderError(f"{self.weights} cannot be read: {error}; choose another --out") from error

    def discard_result(self) -> None:
        """Take away the summary of a run that goes on after it had finished."""
        with writing(self.path / "summary.json"):
            (self.path / "summary.json").unlink(missing_ok=True)

    def write_plot(self, image: bytes) -> None:
        """Write the picture of the run."""
        with writing(self.path / "plot.png"):
            replace_file(self.path / "plot.png", image)


def read_record(path: Path) -> dict[str, Any]:
    """What the run in ``path`` was started with.

    Raises:
        RunFolderError: the folder holds no run.
    """
    try:
        record = json.loads((path / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} holds no run to resume ({error}); leave out --resume to start one") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise RunFolderError(f"{path / RECORD} is not of this version of deepzero (expected format {FORMAT!r})")
    if not isinstance(record.get("config"), dict):
        raise RunFolderError(f"{path / RECORD} is damaged: it has no configuration; choose another --out")
    return record


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the file system into one clear error."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{path} could not be written ({error}); the last checkpoint is intact: "
            "make room and continue with --resume"
        ) from error
