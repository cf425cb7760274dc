"""``deepzero defend`` and ``deepzero certify``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from tyro.conf import Positional, arg

from deepzero.cli.command import Output, tell_stopped
from deepzero.cli.options import (
    DONE,
    RECIPES_OWN,
    STOPPED,
    DataDir,
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

if TYPE_CHECKING:
    from deepzero.tasks.defense import Certified, DefenseConfig

ROOT = Path("runs")


@dataclass(frozen=True)
class Defend:
    """Train a denoiser in front of a classifier that can only be queried, so that the pair is certifiably robust.

    Ctrl-C or SIGTERM finishes the step, saves and exits with code 75; `deepzero defend --resume --out FOLDER` continues
    the run. `deepzero certify FOLDER` then says on which balls around the test images the pair is certain.
    """

    recipe: Positional[Annotated[str, arg(metavar="RECIPE")]] = "digits"
    """Name of a recipe (see `deepzero recipes`)."""
    method: Annotated[str | None, arg(metavar="METHOD", help_behavior_hint=RECIPES_OWN)] = None
    """One of: smoothing, denoiser, fo-ds, zo-ds, zo-ae-ds, zo-ae-ds-cge, deepzero, distilled, opaque."""
    classifier: Annotated[str | None, arg(metavar="FILE|URL", help_behavior_hint="(default: one of our own)")] = None
    """An ONNX file, or the address of a service, that takes images in [0, 1] and gives a score for each class."""
    sigma: Real = None
    """Standard deviation of the noise, for pixels in [0, 1]."""
    budget: Whole = None
    """Queries of the classifier in the finetuning."""
    directions: Whole = None
    """Directions of a sample, or coordinates of a step."""
    loss: Annotated[str | None, arg(metavar="LOSS", help_behavior_hint=RECIPES_OWN)] = None
    """Loss of the finetuning: stability (the classifier's own labels) or classification (the true ones)."""
    finetuned: Annotated[str | None, arg(metavar="WHICH", help_behavior_hint=RECIPES_OWN)] = None
    """Part that method deepzero finetunes: last-layer, or zo-grasp (all convolutions, in the ratios of ZO-GraSP)."""
    learning_rate: Real = None
    """Peak learning rate of the finetuning."""
    seed: Seed = None
    data_dir: DataDir = None
    out: Folder = None
    """Folder of the run (default: runs/defend-RECIPE-METHOD-seedN)."""
    stages: Folder = None
    """Folder of the classifier and the pretrained denoiser, for several runs to share (default: in the run)."""
    resume: Resume = False
    max_minutes: MaxMinutes = None
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Train, and print the result."""
        from deepzero.cli.recipe_choice import require_data_dir_used  # noqa: PLC0415
        from deepzero.tasks.defense import METHODS, defend  # noqa: PLC0415 - with PyTorch
        from deepzero.tasks.defense.defense_config import USED_BY  # noqa: PLC0415

        max_seconds = seconds_of(self.max_minutes)
        config, classifier = self._settings()
        require_used(self, config.method, USED_BY)
        require_data_dir_used(self.data_dir, config.data.name)
        out = self.out or ROOT / f"defend-{self.recipe}-{config.method}-seed{config.seed}"
        trained = defend(
            config,
            out=out,
            resume=self.resume,
            classifier=classifier,
            stages=self.stages,
            data_dir=self.data_dir,
            max_seconds=max_seconds,
            console=output.console,
        )
        if trained.summary is None:
            return tell_stopped(output, "defend", trained.folder, trained.stopped)
        output.result(
            f"{config.method} ({METHODS[config.method]}): {trained.summary['queries']:,} queries in "
            f"{trained.summary['seconds']:,.0f} s; now `deepzero certify {shlex.quote(str(trained.folder))}`",
            folder=trained.folder,
            stopped=None,
            summary=trained.summary,
        )
        return DONE

    def _settings(self) -> tuple[DefenseConfig, str | None]:
        """The configuration and the classifier of the run."""
        from deepzero.recipes.defense_recipes import RECIPES, with_method  # noqa: PLC0415
        from deepzero.tasks.defense import settings_of  # noqa: PLC0415

        require_folder_to_resume(self.resume, self.out)
        config, classifier = RECIPES.find(self.recipe).config(), self.classifier
        if self.resume and self.out is not None:
            config, classifier = settings_of(self.out)
        if self.method is not None and not self.resume:
            config = with_method(config, self.method)
        changed = ("method", "sigma", "budget", "directions", "loss", "finetuned", "seed")
        settings: dict[str, Any] = {name: value for name in changed if (value := getattr(self, name)) is not None}
        config = replace(config, **settings)
        if self.learning_rate is not None:
            config = replace(config, finetuning=replace(config.finetuning, learning_rate=self.learning_rate))
        return config, classifier


@dataclass(frozen=True)
class Certify:
    """Certify the pair of denoiser and classifier of a run by randomized smoothing; goes on where it was stopped."""

    folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Folder of a run of `deepzero defend`."""
    images: Annotated[int, arg(metavar="N")] = 100
    """Test images, evenly spaced."""
    trials: Annotated[int, arg(metavar="N")] = 10_000
    """Noisy samples of an image."""
    alpha: Annotated[float, arg(metavar="X")] = 0.001
    """Chance that a certificate is wrong."""
    radii: Annotated[tuple[float, ...] | None, arg(metavar="R", help_behavior_hint="(default: 0 to 3 sigma)")] = None
    """Radii of the table."""
    data_dir: Folder = None
    """Folder of the data set."""
    max_minutes: MaxMinutes = None
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Certify, and print the table."""
        from deepzero.cli.recipe_choice import require_data_dir_used  # noqa: PLC0415 - with PyTorch
        from deepzero.tasks.defense import CertifyConfig, certify, settings_of  # noqa: PLC0415
        from deepzero.training.progress import counting  # noqa: PLC0415

        max_seconds = seconds_of(self.max_minutes)
        require_data_dir_used(self.data_dir, settings_of(self.folder)[0].data.name)
        config = CertifyConfig(images=self.images, trials=self.trials, alpha=self.alpha, radii=self.radii)
        with counting(output.console, "images") as count:
            found = certify(
                self.folder,
                config,
                data_dir=self.data_dir,
                max_seconds=max_seconds,
                progress=lambda done, total, _left: count(done, total),
            )
        if found.result is None:
            output.result(f"stopped by {found.stopped}; the same command goes on", stopped=found.stopped)
            return STOPPED
        output.result(table_of(found), stopped=None, **found.result)
        return DONE


def table_of(found: Certified) -> Table:
    """Certified accuracy by radius."""
    assert found.result is not None
    table = Table(title=f"certified accuracy, sigma {found.result['sigma']:g}")
    for radius in found.result["radii"]:
        table.add_column(f"r = {radius:g}", justify="right")
    table.add_row(*(f"{accuracy:.1%}" for accuracy in found.result["certified_accuracy"]))
    return table
