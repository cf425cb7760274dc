"""The folder of a run as a team sees it: rank 0 reads and writes it, and all ranks know what it holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from deepzero.tasks.selection import Ratios
from deepzero.team import Team
from deepzero.training.checkpoint import Checkpoint
from deepzero.training.environment import versions
from deepzero.training.run_folder import RunFolder

RATIOS = "ratios.json"

log = logging.getLogger("deepzero")


@dataclass
class SharedRun:
    """A run that is new or goes on. Make one with :meth:`open`.

    Attributes:
        path: the folder.
        team: the processes of the run.
        folder: on rank 0, once the run has been started; None elsewhere.
        ratios: the layer-wise ratios that were found at the start; None before.
        summary: the result of a run that has finished; None before.
    """

    path: Path
    team: Team
    folder: RunFolder | None = None
    ratios: Ratios | None = None
    summary: dict[str, Any] | None = None

    @classmethod
    def open(cls, path: Path, *, config: Mapping[str, Any], resume: bool, team: Team) -> SharedRun:
        """Look at the folder of a run, and change nothing.

        Raises:
            RunFolderError: to be resumed, it holds no run with this ``config``; else, it is not free.
        """
        run = cls(path, team)

        def look() -> dict[str, Any]:
            if not resume:
                RunFolder.require_free(path)
                return {"ratios": None, "summary": None}
            run.folder = RunFolder.reopen(path, config=config)
            return {"ratios": run.folder.read(RATIOS), "summary": run.folder.summary}

        held = team.from_leader(look)
        run.ratios = None if held["ratios"] is None else Ratios(**held["ratios"])
        run.summary = held["summary"]
        return run

    def start(self, *, config: Mapping[str, Any], notes: Mapping[str, Any], ratios: Ratios) -> None:
        """Create the folder unless it is there, and keep the ratios in it."""

        def create() -> None:
            self.folder = self.folder or RunFolder.create(
                self.path, config=config, notes={**notes, "versions": versions()}
            )
            self.folder.write(RATIOS, {"keep": ratios.keep, "queries": ratios.queries})

        self.team.from_leader(create)

    def last_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, on every rank; None if none was made yet."""

        def read() -> bytes:
            checkpoint = self._newest()
            return b"" if checkpoint is None else checkpoint.to_bytes()

        data = self.team.bytes_from_leader(read)
        return Checkpoint.from_bytes(data) if data else None

    def weights(self) -> dict[str, Tensor]:
        """The selected weights of a run that has finished, on every rank."""

        def read() -> bytes:
            assert self.folder is not None
            return safetensors.torch.save(self.folder.read_weights())

        return safetensors.torch.load(self.team.bytes_from_leader(read))

    def _newest(self) -> Checkpoint | None:
        assert self.folder is not None
        store = self.folder.checkpoints()
        if not store.paths():
            return None
        restored = store.load()
        if (before := self.folder.record.get("versions")) != versions():
            log.warning("this run was started under %s and goes on under %s: its bits may differ", before, versions())
        for reason in restored.rejected:
            log.warning("%s; falling back to %s", reason, restored.path)
        log.info("continuing from %s", restored.path)
        return restored.checkpoint
