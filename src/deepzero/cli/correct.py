"""``deepzero correct``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from deepzero.cli.command import Output, tell_stopped
from deepzero.cli.options import (
    DONE,
    RECIPES_OWN,
    Folder,
    Json,
    MaxMinutes,
    Quiet,
    Real,
    Resume,
    Seed,
    Whole,
    require_folder_to_resume,
    require_used,
    seconds_of,
)
from deepzero.errors import InvalidInputError
from deepzero.text import duration

if TYPE_CHECKING:
    from deepzero.tasks.correction import CorrectionConfig

ROOT = Path("runs")


@dataclass(frozen=True)
class Correct:
    """Train a network that corrects a coarse flow solver after every step, while the solver can only be run.

    The solver is PhiFlow's (pip install 'deepzero[physics]'). Reference simulations are made once and kept. Ctrl-C or
    SIGTERM saves and exits with code 75; `deepzero correct --resume --out FOLDER` continues the run. `deepzero report
    FOLDER` then shows errors and pictures of the flow.
    """

    recipe: Positional[Annotated[str, arg(metavar="RECIPE")]] = "wake-small"
    """Name of a recipe (see `deepzero recipes`)."""
    method: Annotated[str | None, arg(metavar="METHOD", help_behavior_hint=RECIPES_OWN)] = None
    """One of: src, non, zo-sol-rge, zo-sol, opaque, opaque-emulator, fo-sol."""
    unroll: Whole = None
    """Steps of the solver in the objective."""
    steps: Whole = None
    """Steps of Adam, for methods that do not count solver calls."""
    budget: Whole = None
    """Solver calls, for methods that can only run the solver."""
    directions: Whole = None
    """Directions of a state and step, for opaque and opaque-emulator."""
    sparsity: Real = None
    """Share of the weights that a step of zo-sol leaves out."""
    ratios: Annotated[str | None, arg(metavar="WHICH", help_behavior_hint=RECIPES_OWN)] = None
    """Division of the coordinates of zo-sol among the layers: uniform, or zo-grasp."""
    learning_rate: Real = None
    """Learning rate of Adam."""
    seed: Seed = None
    data_dir: Folder = None
    """Folder of the reference simulations (default: $DEEPZERO_DATA/wake-flow, else data/wake-flow)."""
    out: Folder = None
    """Folder of the run (default: runs/correct-RECIPE-METHOD-seedN)."""
    resume: Resume = False
    max_minutes: MaxMinutes = None
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Print a forecast of the time, train, and print the result."""
        from deepzero.tasks.correction import METHODS, correct, settings_of  # noqa: PLC0415
        from deepzero.tasks.correction.correction_config import QUERYING, USED_BY  # noqa: PLC0415
        from deepzero.tasks.correction.correction_time import correction_seconds  # noqa: PLC0415

        console, max_seconds = output.console, seconds_of(self.max_minutes)
        if self.data_dir is not None and self.data_dir.is_file():
            raise InvalidInputError(
                f"simulations are kept in a folder, but {self.data_dir} is a file; choose another --data-dir"
            )
        require_folder_to_resume(self.resume, self.out)
        config = self._config(settings_of(self.out) if self.resume and self.out is not None else None)
        require_used(self, config.method, USED_BY)
        if self.steps is not None and config.budget is not None and config.method in QUERYING:
            raise InvalidInputError(
                f"--steps has no effect on --method {config.method}, which stops after a budget of {config.budget:,} "
                "solver calls; leave it out, or type another --budget"
            )
        if not self.resume:
            about = duration(correction_seconds(config, self.data_dir))
            console.print(f"{config.method}: {METHODS[config.method]}; about {about}", soft_wrap=True, highlight=False)
        trained = correct(
            config,
            out=self.out or ROOT / f"correct-{self.recipe}-{config.method}-seed{config.seed}",
            resume=self.resume,
            data_dir=self.data_dir,
            max_seconds=max_seconds,
            console=console,
        )
        folder = shlex.quote(str(trained.folder))
        if trained.summary is None:
            return tell_stopped(output, "correct", trained.folder, trained.stopped)
        output.result(_result(trained.summary), folder=trained.folder, stopped=None, summary=trained.summary)
        console.print(f"now `deepzero report {folder}`", soft_wrap=True)
        return DONE

    def _config(self, interrupted: CorrectionConfig | None) -> CorrectionConfig:
        """The recipe's configuration, or that of the run that goes on, with the settings that were given."""
        from deepzero.recipes.correction_recipes import RECIPES  # noqa: PLC0415

        changed = ("method", "unroll", "steps", "budget", "directions", "sparsity", "ratios", "learning_rate", "seed")
        settings: dict[str, Any] = {name: value for name in changed if (value := getattr(self, name)) is not None}
        return replace(interrupted or RECIPES.find(self.recipe).config(), **settings)


def _result(summary: dict[str, Any]) -> str:
    """The error beside the source's."""
    source = summary["source_mae"]
    if summary["mae"] is None or source is None:
        return "a test flow blew up"
    text = f"mean absolute error {summary['mae']:.4f}, of the solver alone {source:.4f}"
    text = f"{text} (ratio {summary['mae'] / source:.3f})"
    return f"{text}; {summary['solver_calls']:,} solver calls, {summary['skipped']:,} of them without an answer"
