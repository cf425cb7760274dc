"""The folder of one run: its record, checkpoints, metrics, summary, plot and weights."""

from __future__ import annotations

import errno
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Self

import safetensors.torch
from torch import Tensor

from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.files import (
    clear_leftovers,
    finite,
    flat,
    json_object,
    json_value,
    leftovers,
    make_folder,
    read_from,
    read_tensors,
    replace_file,
    to_json,
)
from deepzero.folder_lock import LOCK, HeldFolder, require_unused
from deepzero.text import did_you_mean
from deepzero.training.checkpoint import CheckpointStore

FORMAT = "deepzero run 1"
RECORD, SUMMARY = "run.json", "summary.json"
WEIGHTS, MODEL, PROGRAM = "model.safetensors", "model.json", "model.pt2"
RESULT = (WEIGHTS, MODEL, PROGRAM)
"""Files of a result that others go on with; its summary has their checksums."""
CHECKSUMS = "sha256"
RATIOS_FILE = "ratios.json"
"""The part of each layer that a step takes, as the tasks write it."""
COMMANDS = {"defense": "defend", "correction": "correct"}
"""Command that makes runs with such a part in their configuration; all others are of ``train``."""


STAGE = "stage"
"""The part of the configuration that a stage of a larger run has."""


class RunFolder:
    """A folder that holds one run and no other. Make one with :meth:`create` or :meth:`reopen`.

    Whoever works in it takes it (:meth:`take`; :meth:`create` does) and releases it at the end, best in a ``with``
    block: meanwhile every other process is refused. To read it nobody has to.

    Attributes:
        path: the folder.
        record: the content of ``run.json``: the ``config`` that the run was started with, and notes of the caller.
        stage_of: the run that uses what this one makes, and whose command is the one to type; None if it stands alone.
    """

    def __init__(self, path: Path, record: Mapping[str, Any], *, stage_of: RunFolder | None = None) -> None:
        self.path = path
        self.record = dict(record)
        self.stage_of = stage_of
        self._held: HeldFolder | None = None
        self._step = 0

    @staticmethod
    def require_free(path: Path, stage_of: RunFolder | None = None) -> None:
        """Raise :class:`RunFolderError` unless ``path`` is an empty folder or does not exist.

        ``stage_of`` is the run that it is to belong to, if any. A folder counts as empty if all it holds is a record
        that a killed process had not finished, and its lock.
        """
        _require_name(path)
        above = next((place for place in path.absolute().parents if place.exists()), None)
        if above is not None and not above.is_dir():
            raise RunFolderError(f"there can be no folder {path}, because {above} is a file; choose another --out")
        free = not path.exists() or (path.is_dir() and _is_free(path))
        require_unused(path)  # after the look: whoever has made it full since holds it
        if free:
            return
        RunFolder._refuse(path, stage_of)

    @staticmethod
    def _refuse(path: Path, stage_of: RunFolder | None) -> NoReturn:
        if stage_of is not None:
            raise RunFolderError(f"{path} holds no stage that can go on; {begun_again(path, stage_of)}")
        if (path / RECORD).exists():
            raise RunFolderError(
                f"{path} holds another run; continue that with --resume (in Python: resume=True), or choose another "
                "--out (out=...)"
            )
        if path.is_dir():
            raise RunFolderError(f"{path} is not an empty folder; choose another --out, such as {path / 'run'}")
        raise RunFolderError(f"{path} is a file, so it cannot be the folder of a run; choose another --out")

    @classmethod
    def create(
        cls, path: Path, *, config: Mapping[str, Any], notes: Mapping[str, Any], stage_of: RunFolder | None = None
    ) -> Self:
        """Start a run, or a stage of one, in a folder that is empty or does not exist, and take it.

        Raises:
            RunFolderError: the folder holds something, is in use, or cannot be written.
        """
        cls.require_free(path, stage_of)
        run = cls(path, json.loads(to_json({"format": FORMAT, "config": config, **notes})), stage_of=stage_of)
        with writing(path):
            try:
                make_folder(path)
            except FileNotFoundError as error:  # a file system in which none can be made
                raise RunFolderError(f"there can be no folder {path} ({error}); choose another --out") from error
            held = HeldFolder.take(path)
            try:
                if not _is_free(path):  # another process was quicker, and has ended
                    cls._refuse(path, stage_of)
                replace_file(path / RECORD, to_json(run.record))
                for unfinished in leftovers(path / RECORD):
                    unfinished.unlink(missing_ok=True)
            except BaseException:
                held.release()
                raise
        run._held = held
        return run

    @classmethod
    def reopen(cls, path: Path, *, config: Mapping[str, Any], stage_of: RunFolder | None = None) -> Self:
        """Open the folder of a run, or of a stage of one, that was started with the same ``config``.

        Raises:
            RunFolderError: it holds no run, or one with other settings; the message names them.
        """
        record = read_record(path, stage_of)
        started, current = flat(record["config"]), flat(json.loads(to_json(config)))
        changed = sorted(key for key in started.keys() | current.keys() if started.get(key) != current.get(key))
        if changed:
            listed = ", ".join(f"{key}: {started.get(key)!r} there, {current.get(key)!r} asked" for key in changed[:5])
            shared = stage_of is not None and stage_of.path not in path.parents
            raise RunFolderError(
                f"{path} holds a run with other settings ({listed}); resume with the settings it was started with, "
                f"or choose another {'--stages' if shared else '--out'}"
            )
        return cls(path, record, stage_of=stage_of)

    def take(self) -> None:
        """Work in the folder, as the only process; nothing where that is so already.

        Raises:
            RunFolderError: another process does; the message names it and says what to do.
        """
        if self._held is None:
            with writing(self.path):
                self._held = HeldFolder.take(self.path)
            with suppress(OSError):  # a folder that cannot be written
                clear_leftovers(self.path)
                clear_leftovers(self.path / "checkpoints")

    def release(self) -> None:
        """Let other processes work in the folder."""
        if self._held is not None:
            self._held.release()
            self._held = None

    @property
    def taken(self) -> bool:
        """True while this process works in the folder."""
        return self._held is not None

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def require_there(self, step: int | None = None) -> None:
        """Raise :class:`RunFolderError` if the folder that was taken was moved or deleted since.

        Args:
            step: of the training, for the message; by default that of the call before.
        """
        if self.stage_of is not None:
            self.stage_of.require_there(step)
        self._step = self._step if step is None else step
        if self._held is None or (self._held.is_there() and (self.path / RECORD).exists()):
            return
        when = f"while it was running (step {self._step})"
        if self.stage_of is not None:
            gone = self.path / RECORD if self._held.is_there() else f"the folder {self.path}"
            raise RunFolderError(
                f"{gone} of a stage was moved or deleted {when}; put it back as it was and type "
                f"{resumed_by(self.stage_of)}, or {begun_again(self.path, self.stage_of)}"
            )
        if self._held.is_there():
            raise RunFolderError(f"{self.path / RECORD} was deleted {when}; start the run again with another --out")
        if (place := self._held.moved_to()) is not None:
            raise RunFolderError(
                f"the folder {self.path} of this run was moved to {place} {when}; its last good checkpoint went with "
                f"it: continue the run there with --resume --out {shlex.quote(str(place))}"
            )
        raise RunFolderError(
            f"the folder {self.path} of this run was moved or deleted {when}, and its checkpoints with it; if you know "
            "where it is, continue the run there with --resume, else start it again"
        )

    def keep_input(self, name: str, content: bytes | Mapping[str, Any]) -> None:
        """Note something that the run depends on, by its checksum; from then on it must be the same.

        Args:
            name: of the file, or in words.
            content: the whole of it, as bytes or as a JSON-able value.

        Raises:
            RunFolderError: it is another one than before.
        """
        known: dict[str, str] = self.record.get("inputs", {})
        found = checksum(content)
        if known.get(name, found) != found:
            raise RunFolderError(
                f"{name} of the run in {self.path} is not what it was when the run began, and would change its result; "
                "put it back as it was, or start the run again with another --out"
            )
        if name not in known:
            self.record["inputs"] = {**known, name: found}
            self.require_there()
            with writing(self.path / RECORD):
                replace_file(self.path / RECORD, to_json(self.record))

    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        identity = hashlib.sha256(to_json(self.record["config"])).hexdigest()
        return CheckpointStore(
            self.path / "checkpoints",
            run=identity,
            present=self.require_there,
            advice=begun_again(self.path, self.stage_of),
        )

    @property
    def metrics(self) -> Path:
        """One JSON object a line: steps, epochs, the test."""
        return self.path / "metrics.jsonl"

    @property
    def weights(self) -> Path:
        """The selected weights of a run that has finished."""
        return self.path / WEIGHTS

    def read_summary(self) -> dict[str, Any] | None:
        """The result of a run that has finished, None before."""
        summary = self.read(SUMMARY)
        return None if summary is None else {key: value for key, value in summary.items() if key != CHECKSUMS}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the result, with the checksums of the files that belong to it: where it is, all of them are."""
        files = [self.path / name for name in RESULT]
        sums = {file.name: checksum(file.read_bytes()) for file in files if file.exists()}
        self.write(SUMMARY, {**summary, CHECKSUMS: sums})

    def require_as_written(self, *names: str) -> None:
        """Raise unless files of the result hold what the run wrote, as far as its summary has their checksums.

        Args:
            names: of the files; those that are not there are left out.

        Raises:
            RunFolderError: a file was damaged or changed.
        """
        sums = (self.read(SUMMARY) or {}).get(CHECKSUMS)
        for name in names:
            file, expected = self.path / name, sums.get(name) if isinstance(sums, Mapping) else None
            if expected is not None and file.is_file() and checksum(file.read_bytes()) != expected:
                raise RunFolderError(
                    f"{file} is not what the run wrote: it was damaged, or changed since; {self.written_again}, or, if "
                    f'you changed it, delete "{CHECKSUMS}" in {self.path / SUMMARY}'
                )

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run, None if it is not there."""
        path = self.path / name
        if not path.exists():
            return None
        again = self.written_again if path == self.path / SUMMARY else begun_again(self.path, self.stage_of)
        return json_object(path, advice=again)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file atomically; numbers that are not finite become null."""
        self.require_there()
        with writing(self.path / name):
            replace_file(self.path / name, to_json(finite(value)))

    def write_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the selected weights."""
        self.require_there()
        with writing(self.weights):
            replace_file(self.weights, safetensors.torch.save(dict(tensors)))

    def read_weights(self) -> dict[str, Tensor]:
        """The selected weights of a run that has finished, as it wrote them."""
        weights = read_tensors(self.weights, advice=self.written_again)
        self.require_as_written(WEIGHTS)
        return weights

    @property
    def written_again(self) -> str:
        """Advice for a result in the folder that cannot be read."""
        summary = shlex.quote(str(self.path / SUMMARY))
        return f"to have it written again, delete {summary} and type {resumed_by(self.stage_of or self)}"

    def discard_result(self) -> None:
        """Take away the summary of a run that goes on after it had finished."""
        with writing(self.path / SUMMARY):
            (self.path / SUMMARY).unlink(missing_ok=True)

    def write_plot(self, image: bytes) -> None:
        """Write the picture of the run."""
        self.require_there()
        with writing(self.path / "plot.png"):
            replace_file(self.path / "plot.png", image)


def checksum(content: bytes | Mapping[str, Any]) -> str:
    """SHA-256 of bytes, or of a JSON-able value, whatever spaces and order its file has."""
    return hashlib.sha256(content if isinstance(content, bytes) else to_json(finite(content))).hexdigest()


def _is_free(path: Path) -> bool:
    """True if a folder holds no more than what a process leaves that was killed before its record had its name."""
    return not set(path.iterdir()) - {*leftovers(path / RECORD), path / LOCK}


def read_record(path: Path, stage_of: RunFolder | None = None) -> dict[str, Any]:
    """The record of the run in ``path``: what it was started with; ``stage_of`` is the run that it is a stage of.

    Raises:
        RunFolderError: the folder holds no run; the message names the folder that was probably meant.
    """
    file, again = path / RECORD, begun_again(path, stage_of)
    if not file.is_file():
        raise RunFolderError(no_run(path))
    try:
        record = json_value(file)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{file} is damaged ({error}); {again}") from error
    if isinstance(record, dict) and record.get("format") != FORMAT:
        raise RunFolderError(
            f"{file} is not of this version of deepzero (expected format {FORMAT!r}, got {record.get('format')!r}); "
            f"use the version that wrote it, or {again}"
        )
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise RunFolderError(f"{file} is damaged: it has no configuration; {again}")
    return record


@contextmanager
def settings_from(path: Path) -> Iterator[None]:
    """A block that makes a configuration of the record in the folder ``path``: what it cannot be names the record.

    Raises:
        RunFolderError: a setting is missing, of another kind, or out of its domain.
    """
    with read_from(path / RECORD, advice="start the run again with another --out"):
        try:
            yield
        except InvalidInputError as error:
            raise RunFolderError(f"{path / RECORD}: {error}") from error


def command_of(record: Mapping[str, Any]) -> str:
    """The command that makes runs of this kind: one of :data:`COMMANDS`, or ``train``.

    Example:
        >>> command_of({"config": {"data": {"name": "digits"}}}), command_of({"config": {"defense": {}}})
        ('train', 'defend')
    """
    return next((command for part, command in COMMANDS.items() if part in record["config"]), "train")


def resumed_by(run: RunFolder) -> str:
    """The command with which a run goes on."""
    return f"deepzero {command_of(run.record)} --resume --out {shlex.quote(str(run.path))}"


def begun_again(path: Path, stage_of: RunFolder | None = None) -> str:
    """Advice for a folder that cannot be gone on with: of a run, or of a stage of one, which makes it again."""
    if stage_of is None:
        return "start the run again with another --out"
    return f"to have it made again, delete {shlex.quote(str(path))} and type {resumed_by(stage_of)}"


def continued_by(path: Path, record: Mapping[str, Any]) -> str:
    """The command that continues the run in a folder, or, for a stage, the run that it was made for, in words."""
    if STAGE not in record["config"]:
        return resumed_by(RunFolder(path, record))
    above = next((place for place in path.absolute().parents[:2] if (place / RECORD).is_file()), None)
    if above is None:
        return "deepzero defend --resume --out FOLDER, with the folder of a run that uses this stage"
    typed = next((place for place in path.parents if place.absolute() == above), above)
    return resumed_by(RunFolder(typed, read_record(above)))


def require_made_by(path: Path, record: Mapping[str, Any], command: str) -> None:
    """Raise :class:`RunFolderError` unless a run was made by a command."""
    if STAGE in record["config"]:
        raise RunFolderError(
            f"{path} is a stage, and no run by itself; to continue its run, type {continued_by(path, record)}"
        )
    made_by, folder = command_of(record), shlex.quote(str(path))
    if made_by != command:
        raise RunFolderError(
            f"the run in {path} was made by `deepzero {made_by}`, not by `deepzero {command}`; to continue it, type "
            f"deepzero {made_by} --resume --out {folder}, to look at it, deepzero report {folder}"
        )


def no_run(path: Path, runs: Sequence[str] | None = None) -> str:
    """The message that there is no run at a path, and which one may be meant.

    Args:
        path: of the folder.
        runs: folders in it that hold something of use, for its message; by default those of runs.
    """
    if path.is_file():
        inside = (path.parent / RECORD).is_file()
        return f"{path} is a file; name the folder of a run{f': {path.parent}' if inside else ', such as runs/NAME'}"
    if path.is_dir():
        runs = sorted(str(record.parent) for record in path.glob(f"*/{RECORD}")) if runs is None else runs
        if runs:
            more = ", ..." if len(runs) > 3 else ""
            return f"{path} holds no run itself, but holds {', '.join(runs[:3])}{more}; name one of them"
        return f"{path} holds no run (it has no {RECORD}); name the folder of one, such as runs/NAME"
    if set("*?[") & set(path.name):
        return f"{path} holds no run: a pattern in quotes is not expanded; type it without quotes"
    folders = [p.name for p in path.parent.glob("*") if p.is_dir()]
    guess = did_you_mean(path.name, folders, shown=path.parent.joinpath)
    return f"{path} holds no run, because there is no such folder{guess}; name the folder of a run, such as runs/NAME"


def _require_name(path: Path) -> None:
    """Raise if the name is one that no file system takes."""
    try:
        path.lstat()
        return
    except ValueError as error:
        cause = str(error)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            return  # what is wrong otherwise is found where the folder is made
        cause = str(error.strerror)
    raise RunFolderError(f"there can be no folder {str(path)!r:.80} ({cause}); choose another --out")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the file system into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT and not path.parent.exists():
            raise RunFolderError(
                f"{path} could not be written, because there is no folder {path.parent} any more: it was moved or "
                "deleted; continue in its new place"
            ) from error
        raise RunFolderError(
            f"{path} could not be written ({error}); the last checkpoint is intact: "
            "make room and continue with --resume"
        ) from error
