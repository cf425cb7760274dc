"""Checkpoints: safetensors for tensors, JSON for the rest, a checksum over both. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from deepzero.errors import CheckpointError
from deepzero.files import (
    json_value,
    sync_folder,
    temporary_name,
    tensor_bytes,
    tensors_in,
    to_json,
    write_file,
)

FORMAT = "deepzero checkpoint 1"
TENSORS = "tensors.safetensors"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on.

    Attributes:
        step: optimizer steps made.
        state: JSON-able values.
        tensors: by name.
    """

    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]

    def to_bytes(self) -> bytes:
        """The checkpoint for another process: 8 bytes of length, JSON, safetensors."""
        values = json.dumps({"step": self.step, "state": self.state}).encode()
        return len(values).to_bytes(8, "big") + values + safetensors.torch.save(self.tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """The inverse of :meth:`to_bytes`."""
        end = 8 + int.from_bytes(data[:8], "big")
        return cls(**json.loads(data[8:end]), tensors=safetensors.torch.load(data[end:]))


@dataclass(frozen=True)
class Restored:
    """The newest checkpoint that is whole, its path, and the reasons why newer ones were rejected."""

    checkpoint: Checkpoint
    path: Path
    rejected: list[str]


class CheckpointStore:
    """The last ``keep`` checkpoints of one run, each a folder ``step-00000120`` with two files.

    A checkpoint is written under a temporary name, synced, and renamed, so that it is whole or not there.

    Args:
        folder: of the checkpoints.
        run: identifies the run; checkpoints of another run are rejected.
        keep: number of checkpoints to keep.
        present: called with the step before a checkpoint is written; raises if the run's folder has gone.
        advice: the end of the message that there is no usable checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run: str,
        keep: int = 2,
        present: Callable[[int], None] = lambda _: None,
        advice: str = "start the run again with another --out",
    ) -> None:
        self.folder = folder
        self.run = run
        self.keep = keep
        self.present = present
        self.advice = advice

    def paths(self) -> list[Path]:
        """Folders of checkpoints, newest first, whole or not."""
        found = (path for path in self.folder.glob("step-*") if re.fullmatch(r"step-[0-9]{8,18}", path.name))
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then delete the ones that are too old, and unusable ones of later steps.

        Raises:
            CheckpointError: it could not be written (a full disk, say); the previous checkpoints are as they were.
            RunFolderError: the run's folder has gone.
        """
        final = self.folder / f"step-{checkpoint.step:08d}"
        temporary, aside = temporary_name(final), temporary_name(final)
        self.present(checkpoint.step)
        try:
            self._make_folder()
            for leftover in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
            self._write(temporary, checkpoint)
            if final.exists():
                final.rename(aside)
            temporary.rename(final)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if aside.exists() and not final.exists():
                aside.rename(final)
            self.present(checkpoint.step)
            raise self._unsaved(checkpoint.step, error) from error
        shutil.rmtree(aside, ignore_errors=True)
        paths = self.paths()
        place = paths.index(final)
        later, earlier = paths[:place], paths[place + 1 :]
        for path in later + earlier[self.keep - 1 :]:
            shutil.rmtree(path, ignore_errors=True)
        return final

    def load(self, unfit: Mapping[int, str] | None = None) -> Restored:
        """The newest checkpoint that is whole and of this run.

        Args:
            unfit: reasons why the checkpoints of some steps were of no use, though they are whole.

        Raises:
            CheckpointError: there is none; the message gives the fault of each.
        """
        rejected: list[str] = []
        for path in self.paths():
            try:
                checkpoint = read_checkpoint(path, run=self.run)
            except CheckpointError as error:
                rejected.append(str(error))
                continue
            if (reason := (unfit or {}).get(checkpoint.step)) is None:
                return Restored(checkpoint, path, rejected)
            rejected.append(f"{path}: {reason}")
        found = "".join(f"\n  {reason}" for reason in rejected) or " (the folder holds none)"
        raise CheckpointError(f"no usable checkpoint in {self.folder}:{found}\n{self.advice}")

    def _make_folder(self) -> None:
        """Make the folder of the checkpoints, but never the one of the run, which may just have been moved."""
        if not self.folder.exists():
            self.folder.mkdir()
            sync_folder(self.folder.parent)

    def _write(self, folder: Path, checkpoint: Checkpoint) -> None:
        folder.mkdir()
        tensors = safetensors.torch.save(checkpoint.tensors)
        record = {
            "format": FORMAT,
            "run": self.run,
            "step": checkpoint.step,
            "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
            "state": checkpoint.state,
        }
        write_file(folder / TENSORS, tensors)
        write_file(folder / STATE, to_json({**record, "sha256": _digest(record)}))
        sync_folder(folder)

    def _unsaved(self, step: int, error: OSError) -> CheckpointError:
        previous = self.paths()
        safe = f"the previous checkpoint {previous[0]} is intact: make room and" if previous else "make room and"
        return CheckpointError(
            f"the checkpoint of step {step} could not be written ({error}); {safe} continue with --resume"
        )


def read_checkpoint(folder: Path, *, run: str | None = None) -> Checkpoint:
    """Read and verify one checkpoint.

    Args:
        folder: holds the two files.
        run: the run that it must belong to, None for any.

    Raises:
        CheckpointError: it is truncated, corrupted, foreign, or of another run.
    """
    try:
        file = STATE
        record = json_value(folder / STATE)
        file = TENSORS
        data = tensor_bytes(folder / TENSORS)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {file}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{folder} is corrupted: {file}: {error}") from error
    _verify(folder, record, data, run)
    try:
        tensors = tensors_in(data)
    except ValueError as error:
        raise CheckpointError(f"{folder} does not hold safetensors: {error}") from error
    return Checkpoint(record["step"], record["state"], tensors)


def _verify(folder: Path, record: Any, data: bytes, run: str | None) -> None:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{folder} is not a checkpoint of this version of deepzero (expected format {FORMAT!r})")
    fields = (("step", int), ("state", dict), ("run", str), ("tensors_sha256", str))
    if wrong := [name for name, kind in fields if type(record.get(name)) is not kind]:
        raise CheckpointError(f"{folder} is corrupted: {STATE} has no usable {', '.join(wrong)}")
    expected = record.pop("sha256", None)
    if _digest(record) != expected:
        raise CheckpointError(f"{folder} is corrupted: the checksum of {STATE} does not match")
    if hashlib.sha256(data).hexdigest() != record["tensors_sha256"]:
        raise CheckpointError(f"{folder} is corrupted: the checksum of {TENSORS} ({len(data)} bytes) does not match")
    if run is not None and record["run"] != run:
        raise CheckpointError(f"{folder} belongs to another run")


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(record)).hexdigest()
