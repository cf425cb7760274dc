"""``deepzero compress``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from deepzero.cli.command import Output, tell_stopped
from deepzero.cli.options import (
    DONE,
    DataDir,
    Folder,
    Json,
    LearningRate,
    MaxMinutes,
    Queries,
    Quiet,
    Resume,
    Seed,
    Whole,
    require_folder_to_resume,
    seconds_of,
)

if TYPE_CHECKING:
    from deepzero.tasks.compression import CompressionConfig

ROOT = Path("runs")


@dataclass(frozen=True)
class Compress:
    """Train a network that gives its input back through a few numbers, from function values.

    Ctrl-C or SIGTERM saves and exits with code 75; `deepzero compress --resume --out FOLDER` continues the run.
    """

    recipe: Positional[Annotated[str, arg(metavar="RECIPE")]] = "digits"
    """Name of a recipe (see `deepzero recipes`)."""
    code: Whole = None
    """Numbers that an input is compressed to."""
    queries: Queries = None
    steps: Whole = None
    """Steps of Adam."""
    learning_rate: LearningRate = None
    seed: Seed = None
    data_dir: DataDir = None
    out: Folder = None
    """Folder of the run (default: runs/compress-RECIPE-seedN)."""
    resume: Resume = False
    max_minutes: MaxMinutes = None
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Train, and print the error beside that of a constant."""
        from deepzero.cli.recipe_choice import require_data_dir_used  # noqa: PLC0415 - with PyTorch
        from deepzero.tasks.compression import compress, settings_of  # noqa: PLC0415 - with PyTorch

        max_seconds = seconds_of(self.max_minutes)
        require_folder_to_resume(self.resume, self.out)
        config = self._config(settings_of(self.out) if self.resume and self.out is not None else None)
        require_data_dir_used(self.data_dir, config.data.name)
        trained = compress(
            config,
            out=self.out or ROOT / f"compress-{self.recipe}-seed{config.seed}",
            resume=self.resume,
            data_dir=self.data_dir,
            max_seconds=max_seconds,
            console=output.console,
        )
        if trained.summary is None:
            return tell_stopped(output, "compress", trained.folder, trained.stopped)
        summary = trained.summary
        output.result(
            f"test error {summary['test_error']:.4f}, of a constant {summary['mean_error']:.4f}; "
            f"{summary['queries']:,} queries; now `deepzero report {shlex.quote(str(trained.folder))}`",
            folder=trained.folder,
            stopped=None,
            summary=summary,
        )
        return DONE

    def _config(self, interrupted: CompressionConfig | None) -> CompressionConfig:
        """The recipe's configuration, or that of the run that goes on, with the settings that were given."""
        from deepzero.recipes.compression_recipes import RECIPES  # noqa: PLC0415 - with PyTorch

        changed = ("code", "queries", "steps", "learning_rate", "seed")
        settings: dict[str, Any] = {name: value for name in changed if (value := getattr(self, name)) is not None}
        return replace(interrupted or RECIPES.find(self.recipe).config(), **settings)
