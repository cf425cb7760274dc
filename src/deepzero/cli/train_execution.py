"""The execution of ``deepzero train``: by a configuration, or by a trainer that own code returns."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepzero.cli.command import Output, score, tell_stopped
from deepzero.cli.options import DONE, seconds_of
from deepzero.cli.recipe_choice import base_of, require_effect, require_no_network
from deepzero.errors import InvalidInputError
from deepzero.files import read_from
from deepzero.own import absolute, called, imported, is_own, parted, require_kind, settings_of
from deepzero.process_memory import CollectAgain
from deepzero.recipes import SETTINGS, start_of_team
from deepzero.recipes.run_starts import ROOT, Base, free, interrupted_run, latest
from deepzero.tasks import classification
from deepzero.tasks.classification.classification_config import ClassificationConfig
from deepzero.tasks.task_data import DataReader
from deepzero.team import Team, joined, launch_name
from deepzero.training import Result, Trainer, read_record
from deepzero.training.run_folder import RECORD, SUMMARY
from deepzero.training.stop_request import ORPHANED
from deepzero.validation import positive

if TYPE_CHECKING:
    from deepzero.cli.train import Train

FOR_CONFIGURATIONS = (
    *(name for name in SETTINGS if name not in ("epochs", "checkpoint_steps", "checkpoint_minutes")),
    "config",
    "data",
    "target",
    "image_size",
    "test",
    "model",
    "data_dir",
)
"""Options that say what a configuration holds, and mean nothing to a trainer that the user has made."""


def run_training(command: Train, output: Output) -> int:
    """Train by a recipe, a configuration, or the user's own code."""
    max_seconds = seconds_of(command.max_minutes)
    positive("--rank-timeout", command.rank_timeout, hint="10")
    if command.checkpoint_minutes is not None:
        positive("--checkpoint-minutes", command.checkpoint_minutes, hint="10")
    reader = DataReader(command.data_dir)
    with joined(command.device, timeout=60 * command.rank_timeout) as team:
        if not team.leads:
            logging.getLogger("deepzero").setLevel(logging.ERROR)
        own = own_recipe(command, team)
        if own is None:
            result = _configured(command, base_of(command, None, reader), reader, output, team, max_seconds)
        else:
            word, words = own
            function = imported(word)
            require_no_network(function, word, "train")
            made = called(function, settings_of(words))
            require_no_network(made, word, "train")
            require_kind(made, (Trainer, ClassificationConfig), word, "a dz.Trainer or a ClassificationConfig")
            if isinstance(made, Trainer):
                result = _trained(command, made, word, words, output, team)
            else:
                base = base_of(command, (_stem(word), made), reader)
                result = _configured(command, base, reader, output, team, max_seconds)
        return _report(result, output) if team.leads else DONE


def own_recipe(command: Train, team: Team) -> tuple[str, tuple[str, ...]] | None:
    """The user's own recipe and its arguments, if one is asked for, or if the run that goes on was started from one."""
    if command.recipe is not None and is_own(command.recipe):
        return absolute(command.recipe), command.set
    if command.set:
        raise InvalidInputError("--set is for a recipe of your own; name its file: deepzero train FILE.py --set ...")
    if command.recipe is not None or not command.resume:
        return None
    own = team.from_leader(lambda: _own_start(command.out or latest(ROOT)))
    return None if own is None else (own[0], tuple(own[1]))


def _own_start(path: Path) -> tuple[str, list[str]] | None:
    """The user's own recipe that a run was started from, and its arguments."""
    own = read_record(path).get("own")
    with read_from(path / RECORD, advice="start the run again with another --out"):
        return None if own is None else (str(own["recipe"]), [str(word) for word in own["set"]])


def _configured(
    command: Train, base: Base | None, reader: DataReader, output: Output, team: Team, max_seconds: float | None
) -> Result:
    """Train by a configuration."""
    settings: dict[str, Any] = {name: getattr(command, name) for name in SETTINGS if hasattr(command, name)}
    start = start_of_team(base, settings, command.out, resume=command.resume, team=team)
    require_effect(command, start.config)
    return classification.train(
        start.config,
        out=start.out,
        resume=start.resume,
        data_dir=command.data_dir,
        splits=reader.known(start.config.data),
        device=command.device,
        max_seconds=max_seconds,
        loggers=(*command.logger, CollectAgain()),
        console=output.console if team.leads else None,
        notes=start.notes,
        team=team,
    )


def _trained(command: Train, trainer: Trainer, word: str, words: tuple[str, ...], output: Output, team: Team) -> Result:
    """Train by a trainer that the user's own recipe has made."""
    for name in FOR_CONFIGURATIONS:
        if getattr(command, name, None) is not None:
            option = name.replace("_", "-")
            raise InvalidInputError(
                f"--{option} has no effect: {Path(word).name} returns a dz.Trainer, which holds what it trains. Make "
                f"it a parameter of your function and type --set {name}=VALUE"
            )
    if command.device != "cpu":
        raise InvalidInputError("--device has no effect on a dz.Trainer: move the model in your function")
    interrupted = None if command.resume else team.from_leader(lambda: _text(interrupted_run(command.out)))
    found = team.from_leader(lambda: str(command.out or interrupted or trainer.folder or _folder(command, word)))
    trainer.out = Path(found)
    trainer.notes |= {"own": {"recipe": word, "set": list(words)}, "launch": launch_name()}
    for name in ("max_minutes", "checkpoint_steps", "checkpoint_minutes"):
        if getattr(command, name) is not None:
            setattr(trainer, name, getattr(command, name))
    trainer.loggers += (*command.logger, CollectAgain())
    trainer.progress = output.console if team.leads else False
    trainer.join(team)
    return trainer.fit(command.epochs, resume=command.resume or interrupted is not None)


def _folder(command: Train, word: str) -> Path:
    return latest(ROOT, word) if command.resume else free(ROOT / _stem(word))


def _stem(word: str) -> str:
    """The name of a recipe of the user's own: that of its file, or of its module."""
    place, _ = parted(word)
    return Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _report(result: Result, output: Output) -> int:
    assert result.folder is not None
    if result.summary is None:
        code = tell_stopped(output, "train", result.folder, result.stopped)
        again = launch_name() is None or result.stopped == ORPHANED  # another agent may start the processes again
        return code if again else DONE
    summary = result.summary
    with read_from(result.folder / SUMMARY, advice="to have it written again, delete it and type --resume"):
        line = _result_line(result)
    output.result(line, folder=result.folder, stopped=None, summary=summary)
    return DONE


def _result_line(result: Result) -> str:
    """One line: the scores, their cost, and the folder."""
    summary = result.summary or {}
    scores = [name for name in summary if name.startswith(("test_", "validation_")) and summary[name] is not None]
    tests = [name for name in scores if name.startswith("test_")] or scores
    line = ", ".join(score(name, summary[name]) for name in sorted(tests))
    line = f"{line} with the weights of epoch {summary['selected_epoch'] + 1}; " if line else ""
    ended = f"; ended by {summary['ended']}" if summary.get("ended") else ""
    return f"{line}{summary['queries']:,} queries in {summary['seconds']:,.0f} s{ended}; see {result.folder}"
