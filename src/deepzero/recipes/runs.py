"""Folders of runs that were started from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepzero.errors import RunFolderError
from deepzero.recipes.catalogue import find
from deepzero.recipes.customize import customize
from deepzero.tasks.config import ClassificationConfig
from deepzero.team import Team, launch_name
from deepzero.training import read_record

ROOT = Path("runs")
DEFAULT = "digits"


@dataclass(frozen=True)
class Start:
    """A recipe, the settings changed in it, and the folder of its run.

    Attributes:
        recipe: name of the recipe.
        settings: arguments of :func:`deepzero.recipes.customize`; None stands for the recipe's own value.
        out: the folder of the run.
        resume: whether the run goes on.
    """

    recipe: str
    settings: Mapping[str, Any]
    out: Path
    resume: bool = False

    @property
    def config(self) -> ClassificationConfig:
        """The configuration of the run."""
        return customize(find(self.recipe).config(), **self.settings)

    @property
    def notes(self) -> dict[str, Any]:
        """What :func:`resumed` needs, for the record of the run."""
        return {"recipe": self.recipe, "settings": dict(self.settings), "launch": launch_name()}


def start_of_team(
    recipe: str | None,
    settings: Mapping[str, Any],
    out: Path | None,
    *,
    resume: bool,
    team: Team,
    root: Path = ROOT,
) -> Start:
    """What all processes of a team are to run, as rank 0 finds it: :func:`started`, or :func:`resumed`.

    A run that was begun by the same launch of ``torchrun`` goes on, asked to or not: the processes were started again
    after one of them had failed, or their number has changed.

    Raises:
        InvalidInputError: the recipe or a setting is unknown or out of its domain.
        RunFolderError: there is no run to resume.
        TeamError: on the other ranks, if rank 0 raised one of these.
    """

    def decide() -> dict[str, Any]:
        interrupted = None if resume else _of_launch(launch_name(), out, root)
        goes_on = resume or interrupted is not None
        start = (resumed if goes_on else started)(recipe, settings, interrupted or out, root=root)
        return {"recipe": start.recipe, "settings": start.settings, "out": str(start.out), "resume": goes_on}

    decided = team.from_leader(decide)
    return Start(**{**decided, "out": Path(decided["out"])})


def started(recipe: str | None, settings: Mapping[str, Any], out: Path | None, *, root: Path = ROOT) -> Start:
    """A new run, by default of digits, in ``out`` or in a folder of its own below ``root``.

    Raises:
        InvalidInputError: the recipe or a setting is unknown or out of its domain.
    """
    name, given = recipe or DEFAULT, _given(settings)
    config = customize(find(name).config(), **given)
    own = root / f"{name}-{config.estimator.method}-seed{config.seed}"
    return Start(name, given, out if out is not None else _free(own))


def resumed(recipe: str | None, settings: Mapping[str, Any], out: Path | None, *, root: Path = ROOT) -> Start:
    """The run in ``out``, by default the latest below ``root`` that has not finished, with the settings it has.

    A recipe or settings that are given too must agree with the run's own, which
    :func:`deepzero.tasks.classification.train` checks.

    Raises:
        RunFolderError: there is no such run.
    """
    path = out or _latest(root, recipe)
    record = read_record(path)
    if "recipe" not in record:
        raise RunFolderError(
            f"the run in {path} was not started from a recipe; resume it from Python, as it was started"
        )
    return Start(recipe or record["recipe"], {**record["settings"], **_given(settings)}, path, resume=True)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _free(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _of_launch(launch: str | None, out: Path | None, root: Path) -> Path | None:
    """The unfinished run that a launch has begun, in ``out`` or else anywhere below ``root``."""
    if launch is None:
        return None
    candidates = [out] if out is not None else [record.parent for record in root.glob("*/run.json")]
    begun = [path for path in candidates if (path / "run.json").exists() and not (path / "summary.json").exists()]
    return next((path for path in begun if read_record(path).get("launch") == launch), None)


def _latest(root: Path, recipe: str | None) -> Path:
    runs = [record.parent for record in root.glob("*/run.json") if not (record.parent / "summary.json").exists()]
    runs = [run for run in runs if recipe is None or read_record(run).get("recipe") == recipe]
    if not runs:
        what = f"unfinished run of {recipe}" if recipe else "unfinished run"
        raise RunFolderError(f"there is no {what} in {root}; name its folder with --out, or leave out --resume")
    return max(runs, key=lambda run: (run / "run.json").stat().st_mtime)
