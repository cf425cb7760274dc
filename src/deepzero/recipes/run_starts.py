"""Folders of runs that were started from a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepzero.errors import RunFolderError
from deepzero.recipes.classification_recipes import DEFAULT, find
from deepzero.recipes.configurations import customize
from deepzero.tasks.classification import ClassificationConfig, from_record
from deepzero.team import Team, launch_name
from deepzero.training import read_record, require_made_by
from deepzero.training.run_folder import settings_from

ROOT = Path("runs")


@dataclass(frozen=True)
class Start:
    """A run to start or to go on with, and its folder.

    Attributes:
        recipe: its name.
        config: all that the result depends on.
        settings: arguments of :func:`deepzero.recipes.customize` that change the recipe's own.
        out: the folder of the run.
        resume: the run goes on.
    """

    recipe: str
    config: ClassificationConfig
    settings: Mapping[str, Any]
    out: Path
    resume: bool = False

    @property
    def notes(self) -> dict[str, Any]:
        """Values that the record of the run keeps beside the configuration."""
        return {"recipe": self.recipe, "settings": dict(self.settings), "launch": launch_name()}


Base = Callable[[], tuple[str, ClassificationConfig]]
"""Makes the configuration before settings are changed, with its name."""


def start_of_team(
    base: Base | None,
    settings: Mapping[str, Any],
    out: Path | None,
    *,
    resume: bool,
    team: Team,
    root: Path = ROOT,
) -> Start:
    """The run of all processes of a team, as rank 0 finds it: :func:`started`, or :func:`resumed`.

    A run that was begun by the same launch of ``torchrun`` goes on, even without ``resume``: the processes were started
    again after one of them had failed, or their number has changed.

    Raises:
        InvalidInputError: the recipe or a setting is unknown or out of its domain.
        RunFolderError: there is no run to resume.
        TeamError: on the other ranks, if rank 0 raised one of these.
    """

    def decide() -> dict[str, Any]:
        interrupted = None if resume else interrupted_run(out, root)
        goes_on = resume or interrupted is not None
        start = (resumed if goes_on else started)(base, settings, interrupted or out, root=root)
        return {**asdict(start), "out": str(start.out)}

    decided = team.from_leader(decide)
    return Start(**{**decided, "out": Path(decided["out"]), "config": from_record(decided["config"])})


def started(base: Base | None, settings: Mapping[str, Any], out: Path | None, *, root: Path = ROOT) -> Start:
    """A new run, by default of digits, in ``out`` or in a folder of its own below ``root``.

    Raises:
        InvalidInputError: the recipe or a setting is unknown or out of its domain.
    """
    name, config = base() if base is not None else named(DEFAULT)
    changes = _changes(settings)
    config = customize(config, **changes)
    own = root / f"{name}-{config.estimator.method}-seed{config.seed}"
    return Start(name, config, changes, out if out is not None else free(own))


def resumed(base: Base | None, settings: Mapping[str, Any], out: Path | None, *, root: Path = ROOT) -> Start:
    """The run in ``out``, by default the latest below ``root`` that has not finished, with the settings it has.

    A recipe or settings that are named too must agree with the run's own, which
    :func:`deepzero.tasks.classification.train` checks.

    Raises:
        RunFolderError: there is no such run, or it is of another kind.
    """
    name, config = (None, None) if base is None else base()
    path = out or latest(root, name)
    record, changes = read_record(path), _changes(settings)
    require_made_by(path, record, "train")
    if "data" not in record["config"]:
        raise RunFolderError(
            f"the run in {path} was not started from a recipe; resume it as it was started: from Python by "
            "fit(resume=True), or by deepzero train FILE.py --resume"
        )
    with settings_from(path):
        known = {**record.get("settings", {}), **changes}
        before = config or from_record(record["config"])
    changed = customize(before, **(changes if config is None else known))
    return Start(name or str(record.get("recipe")), changed, known, path, resume=True)


def named(recipe: str) -> tuple[str, ClassificationConfig]:
    """A recipe of the catalogue.

    Raises:
        InvalidInputError: there is none.
    """
    return recipe, find(recipe).config()


def _changes(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def free(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def interrupted_run(out: Path | None, root: Path = ROOT) -> Path | None:
    """The unfinished run that this launch of torchrun has begun, in ``out`` or else anywhere below ``root``."""
    launch = launch_name()
    if launch is None:
        return None
    candidates = [out] if out is not None else [record.parent for record in root.glob("*/run.json")]
    begun = [path for path in candidates if (path / "run.json").exists() and not (path / "summary.json").exists()]
    return next((path for path in begun if read_record(path).get("launch") == launch), None)


def _recipes(record: Mapping[str, Any]) -> tuple[Any, Any]:
    own = record.get("own")
    return record.get("recipe"), own.get("recipe") if isinstance(own, Mapping) else None


def latest(root: Path, recipe: str | None = None) -> Path:
    """The run below ``root`` that was started last and has not finished.

    Args:
        root: folder of the folders of runs.
        recipe: of the run: its name, or the user's own file; None: any.

    Raises:
        RunFolderError: there is none.
    """
    runs = [record.parent for record in root.glob("*/run.json") if not (record.parent / "summary.json").exists()]
    runs = [run for run in runs if recipe is None or recipe in _recipes(read_record(run))]
    if not runs:
        what = f"unfinished run of {recipe}" if recipe else "unfinished run"
        raise RunFolderError(f"there is no {what} in {root}; name its folder with --out, or leave out --resume")
    return max(runs, key=lambda run: (run / "run.json").stat().st_mtime)
