"""The folder of a run that a team shares: rank 0 reads and writes it, and all ranks know its content."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import safetensors.torch
from torch import Tensor

from deepzero.environment import versions
from deepzero.team import Team
from deepzero.training.checkpoint import Checkpoint
from deepzero.training.run_folder import RunFolder

log = logging.getLogger("deepzero")


@dataclass
class SharedRun:
    """A run that is new or goes on. Make one with :meth:`open`, and use it in a ``with`` block.

    Rank 0 takes the folder when it opens a run that goes on, or starts a new one; the end of the block releases it.

    Attributes:
        path: the folder.
        team: the processes of the run.
        folder: on rank 0, once the run has been started; None elsewhere.
        summary: the result of a run that has finished; None before.
        files: the further JSON files that were named to :meth:`open` and are there, by name.
        stage_of: the run that it is a stage of; None if it stands alone.
    """

    path: Path
    team: Team
    folder: RunFolder | None = None
    summary: dict[str, Any] | None = None
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    stage_of: RunFolder | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        config: Mapping[str, Any],
        resume: bool,
        team: Team,
        files: Iterable[str] = (),
        stage_of: RunFolder | None = None,
    ) -> SharedRun:
        """Look at the folder of a run, and take it if there is a run to go on with; nothing else is changed.

        Args:
            path: of the folder.
            config: the settings that the run depends on.
            resume: True if it goes on.
            team: the processes of the run.
            files: names of JSON files to read, if they are there.
            stage_of: the run that it is a stage of, if any.

        Raises:
            RunFolderError: to be resumed, it holds no run with this ``config``; else, it is not free; or another
                process works in it; or a file is not what it was when the run began.
        """
        run = cls(path, team, stage_of=stage_of)

        def look() -> dict[str, Any]:
            if not resume:
                RunFolder.require_free(path, stage_of)
                return {"summary": None, "files": {}}
            run.folder = RunFolder.reopen(path, config=config, stage_of=stage_of)
            run.folder.take()
            found = {name: value for name in files if (value := run.folder.read(name)) is not None}
            summary = run.folder.read_summary()
            if summary is None:
                for name, value in found.items():
                    run.folder.keep_input(name, value)
            return {"summary": summary, "files": found}

        try:
            content = team.from_leader(look)
        except BaseException:
            run.release()
            raise
        run.summary, run.files = content["summary"], content["files"]
        return run

    def take(self) -> None:
        """Work in the folder, once it is there, as the only team.

        Raises:
            RunFolderError: another process does; the message names it and says what to do.
        """
        self.team.from_leader(lambda: None if self.folder is None else self.folder.take())

    def release(self) -> None:
        """Let other processes work in the folder."""
        if self.folder is not None:
            self.folder.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def start(
        self,
        *,
        config: Mapping[str, Any],
        notes: Mapping[str, Any],
        files: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Create the folder unless it is there, and keep JSON files in it, which stay what they are.

        Raises:
            RunFolderError: the folder is not free any more, or a file is not what it was when the run began.
        """

        def create() -> None:
            self.folder = self.folder or RunFolder.create(
                self.path, config=config, notes={**notes, "versions": versions()}, stage_of=self.stage_of
            )
            for name, value in (files or {}).items():
                self.folder.keep_input(name, value)
                self.folder.write(name, value)

        self.team.from_leader(create)

    def last_checkpoint(self, unfit: Mapping[int, str] | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole, on every rank; None if none was made yet.

        Args:
            unfit: reasons why the checkpoints of some steps were of no use.
        """

        def read() -> bytes:
            checkpoint = self._newest(unfit)
            return b"" if checkpoint is None else checkpoint.to_bytes()

        data = self.team.bytes_from_leader(read)
        return Checkpoint.from_bytes(data) if data else None

    def weights(self) -> dict[str, Tensor]:
        """The selected weights of a run that has finished, on every rank."""

        def read() -> bytes:
            assert self.folder is not None
            return safetensors.torch.save(self.folder.read_weights())

        return safetensors.torch.load(self.team.bytes_from_leader(read))

    def _newest(self, unfit: Mapping[int, str] | None) -> Checkpoint | None:
        assert self.folder is not None
        store = self.folder.checkpoints()
        if not store.paths():
            return None
        restored = store.load(unfit)
        if (before := self.folder.record.get("versions")) != versions():
            log.warning("this run was started under %s and goes on under %s: its bits may differ", before, versions())
        for reason in restored.rejected:
            log.warning("%s; falling back to %s", reason, restored.path)
        log.info("continuing from %s", restored.path)
        return restored.checkpoint
