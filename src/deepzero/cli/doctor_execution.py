"""The execution of ``deepzero doctor``: on a recipe, or on an object that own code returns."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepzero import doctor, validation
from deepzero.cli.command import Output
from deepzero.cli.options import DONE
from deepzero.cli.recipe_choice import base_of, require_effect, require_no_network
from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.estimator import CGE, RGE, Estimator
from deepzero.objective import BlackBox, NetworkObjective, device_of, parameters_of
from deepzero.own import called, imported, is_own, settings_of
from deepzero.recipes import SETTINGS, started
from deepzero.recipes.classification_recipes import DEFAULT
from deepzero.recipes.run_starts import ROOT
from deepzero.tasks.classification import ClassificationConfig
from deepzero.tasks.run_diagnosis import DiagnosisRecord, diagnose, diagnose_trainer
from deepzero.tasks.task_data import DataReader
from deepzero.training import Trainer

if TYPE_CHECKING:
    from deepzero.cli.doctor import Doctor

UNHEALTHY = 1
"""Exit code if a finding is an error: the run cannot work as it is."""
CHOICES = ("estimator", "step_size", "queries", "seed", "learning_rate")
"""Options that a black box has in common with a recipe."""
OF_DATA = ("config", "data", "target", "image_size", "test", "model")
OF_BLACK_BOXES = ("max_queries", "run_steps", "budget", "price_per_query")
EXAMINED = (
    "a dz.BlackBox, a function with the array it starts from (return fn, x0), an estimator (alone, or with its batch: "
    "return zo, x, y), a dz.Trainer, or a ClassificationConfig"
)


def run_doctor(command: Doctor, output: Output) -> int:
    """Examine, print the diagnosis, and write it."""
    validation.positive("--seconds", command.seconds, hint="20")
    own = command.recipe if command.recipe is not None and is_own(command.recipe) else None
    folder = command.out or ROOT / f"{_title(command)}-doctor"
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"--out must be a folder, but {folder} is a file; choose another --out")
    if own is not None:
        record = _own(command, own)
    else:
        _require_no_effectless(command, "a recipe", ("set", *OF_BLACK_BOXES))
        record = _configured(command, None, folder)
    output.result(record.diagnosis, **record.as_dict())
    record.write(folder)
    output.console.print(f"report and plot: {folder}", soft_wrap=True)
    return DONE if record.diagnosis.healthy else UNHEALTHY


def _configured(command: Doctor, own: tuple[str, ClassificationConfig] | None, folder: Path | None) -> DiagnosisRecord:
    """Examine a run by a recipe, or by a configuration of the user's own, with its name."""
    settings = {name: getattr(command, name) for name in SETTINGS if hasattr(command, name)}
    reader = DataReader(command.data_dir)
    config = started(base_of(command, own, reader), settings, folder).config
    require_effect(command, config)
    diagnosis = diagnose(
        config,
        data_dir=command.data_dir,
        splits=reader.known(config.data),
        device=command.device,
        seconds=command.seconds,
    )
    title = f"{config.model.title} on {config.data.title}"
    return DiagnosisRecord(diagnosis, asdict(config), title, validation.device(command.device))


def _own(command: Doctor, word: str) -> DiagnosisRecord:
    """Examine what a function of the user's own returns."""
    settings = settings_of(command.set)
    function = imported(word)
    require_no_network(function, word, "doctor")
    made = called(function, settings)
    require_no_network(made, word, "doctor")
    if isinstance(made, ClassificationConfig):
        _require_no_effectless(command, "a recipe", OF_BLACK_BOXES)
        return _configured(command, (_title(command), made), command.out)
    config = {"own": word, "set": settings, **{n: getattr(command, n) for n in (*CHOICES, *OF_BLACK_BOXES)}}
    if isinstance(made, Trainer):
        _require_no_effectless(command, "a trainer, which has its own", _all_but(command, "seconds"))
        found = diagnose_trainer(made, seconds=command.seconds)
        return DiagnosisRecord(found, config, word, next(made.model.parameters()).device)
    zo, batch = _estimator(command, made, word)
    found = doctor.diagnose(
        zo,
        *batch,
        learning_rate=command.learning_rate,
        seconds=command.seconds,
        max_queries=command.max_queries,
        run_steps=command.run_steps,
        budget=command.budget,
        price_per_query=command.price_per_query,
    )
    return DiagnosisRecord(found, config, word, device_of(parameters_of(zo.objective)))


def _estimator(command: Doctor, made: Any, word: str) -> tuple[Estimator, tuple[Any, ...]]:
    """The estimator of what a function returned, and its batch."""
    first, *rest = made if isinstance(made, tuple) and made else (made,)
    if isinstance(first, Estimator):
        _require_no_effectless(
            command, "an estimator, which has its own", _all_but(command, "seconds", "learning_rate", *OF_BLACK_BOXES)
        )
        if not rest and isinstance(first.objective, NetworkObjective) and first.objective.closure is None:
            raise InvalidInputError(
                f"{word} returns an estimator of a network without a batch; let it end in `return zo, x, y`"
            )
        return first, tuple(rest)
    if callable(first) and not isinstance(first, BlackBox) and rest:
        first, *rest = BlackBox(first, rest[0]), *rest[1:]
    if not isinstance(first, BlackBox):
        raise InvalidInputError(f"{word} must return {EXAMINED}; it returns a {type(first).__name__}")
    _require_no_effectless(command, "a black box", _all_but(command, "seconds", *CHOICES, *OF_BLACK_BOXES))
    if command.estimator != "rge" and command.queries is not None:
        raise InvalidInputError("--queries has no effect without --estimator rge; leave it out, or add that")
    options: dict[str, Any] = {"step_size": command.step_size, "seed": command.seed or 0}
    if command.estimator == "rge":
        options |= {} if command.queries is None else {"queries": command.queries}
        return RGE(first, **options), tuple(rest)
    return CGE(first, **options), tuple(rest)


def _all_but(command: Doctor, *kept: str) -> tuple[str, ...]:
    """Options that shape what is examined, but for those kept."""
    names = (*SETTINGS, *OF_DATA, "data_dir", "device", *OF_BLACK_BOXES)
    return tuple(name for name in names if hasattr(command, name) and name not in kept)


def _require_no_effectless(command: Doctor, examined: str, names: tuple[str, ...]) -> None:
    """Raise if one of these options is used: it changes nothing."""
    defaults = type(command)()
    useless = [f"--{n.replace('_', '-')}" for n in names if getattr(command, n) != getattr(defaults, n)]
    if useless:
        raise InvalidInputError(f"{', '.join(useless)} has no effect on {examined}; leave it out")


def _title(command: Doctor) -> str:
    """A name for the folder of a report."""
    name = command.recipe or (Path(command.config).stem if command.config is not None else None)
    name = name or (Path(command.data).stem if command.data is not None else DEFAULT)
    return Path(name.partition(":")[0]).stem if ".py" in name else name.replace(":", "-")
