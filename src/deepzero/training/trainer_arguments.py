"""The arguments of a trainer: checked before anything is done, and described for the record of the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from deepzero import validation
from deepzero.data import Preprocessing
from deepzero.errors import InvalidInputError
from deepzero.estimator import Estimator
from deepzero.losses import loss_name
from deepzero.objective import NetworkObjective, owners_of
from deepzero.team import Alone
from deepzero.training.batch_reader import reader, scores_itself
from deepzero.training.checkpoint_contents import encoded
from deepzero.training.gradient_sources import GradientSource
from deepzero.training.loggers import LOGGERS
from deepzero.training.model_file import ModelFile

if TYPE_CHECKING:
    from deepzero.training.trainer import Trainer

NEEDED = ("backward", "queries", "set_epoch", "state_dict", "load_state_dict")
"""Names that a gradient source has, see :class:`deepzero.training.GradientSource`."""


def described(trainer: Trainer) -> dict[str, Any]:
    """The settings that a run depends on beside its data, as far as they are known."""
    settings = trainer.source.settings() if isinstance(trainer.source, Estimator) else {}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in trainer.optimizer.param_groups]
    return {
        "model": {
            "class": type(trainer.model).__qualname__,
            "parameters": {name: list(p.shape) for name, p in trainer.model.named_parameters()},
        },
        "estimator": {"class": type(trainer.source).__name__, **settings},
        "optimizer": {"class": type(trainer.optimizer).__name__, "groups": encoded(groups)},
        "scheduler": None if trainer.scheduler is None else type(trainer.scheduler).__name__,
        "accumulate": trainer.accumulate,
        "clip_norm": trainer.clip_norm,
        "clip_value": trainer.clip_value,
    }


def described_model(
    file: ModelFile | None, classes: Sequence[str] | None, preprocessing: Preprocessing | None, source: GradientSource
) -> ModelFile | None:
    """The model file, completed by what a trainer knows of inputs, outputs and loss."""
    if file is None:
        return None
    objective = getattr(source, "objective", None)
    known = objective.loss if isinstance(objective, NetworkObjective) and objective.closure is None else None
    return replace(
        file,
        classes=file.classes if classes is None else tuple(map(str, classes)),
        preprocessing=file.preprocessing if preprocessing is None else preprocessing.to_json(),
        loss=file.loss or loss_name(known),
    )


def several(name: str, given: Any) -> list[Any]:
    """Accept a list of things, not one of them or a text."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise InvalidInputError(f"{name} must be a list, got {type(given).__name__}; for one alone type {name}=[...]")
    return list(given)


def check(trainer: Trainer) -> None:
    """Refuse arguments that cannot work before anything is done.

    Raises:
        InvalidInputError: the message says what was expected, and what to type instead.
    """
    if not isinstance(trainer.model, nn.Module):
        raise InvalidInputError(
            f"model must be an nn.Module, got {type(trainer.model).__name__}; to minimize a function of parameters "
            "use dz.minimize(fn, x0)"
        )
    missing = [name for name in NEEDED if not hasattr(trainer.source, name)]
    if missing:
        raise InvalidInputError(
            "estimator must fill p.grad by backward(*batch), as dz.CGE(model, loss=...) does, and have "
            f"{', '.join(NEEDED[1:])}; got {type(trainer.source).__name__}, which has no {missing[0]}"
        )
    estimated, own = _estimated(trainer.source), {id(p) for p in trainer.model.parameters()}
    if estimated and not own & estimated:
        raise InvalidInputError("the estimator is of another model than the one given; give both the same object")
    _check_optimizer(trainer, own)
    _check_numbers(trainer)
    _check_schedule(trainer)
    _check_validation(trainer)
    _check_loggers(trainer)
    _check_classes(trainer)


def _check_optimizer(trainer: Trainer, own: set[int]) -> None:
    if not isinstance(trainer.optimizer, Optimizer):
        raise InvalidInputError(
            "optimizer must be a torch.optim optimizer over the model's parameters, such as "
            f"torch.optim.SGD(model.parameters(), lr=0.1); got {type(trainer.optimizer).__name__}"
        )
    if isinstance(trainer.optimizer, torch.optim.LBFGS):
        raise InvalidInputError("LBFGS asks for the loss again within a step; use SGD or Adam, or dz.minimize")
    if not any(id(p) in own for group in trainer.optimizer.param_groups for p in group["params"]):
        raise InvalidInputError(
            "the optimizer holds no parameter of this model, so nothing would be trained; make it of "
            "model.parameters() after the model is on its device and in its dtype"
        )


def _check_numbers(trainer: Trainer) -> None:
    validation.choice("scheduler_interval", trainer.scheduler_interval, ("epoch", "step"))
    for name in ("accumulate", "validate_every"):
        validation.count(name, getattr(trainer, name))
    for name in ("epochs", "checkpoint_steps", "max_queries"):
        if getattr(trainer, name) is not None:
            validation.count(name, getattr(trainer, name))
    for name, hint in (("clip_norm", "1.0"), ("clip_value", "1.0"), ("max_minutes", "60")):
        if getattr(trainer, name) is not None:
            validation.positive(name, getattr(trainer, name), hint=hint)
    validation.positive("checkpoint_minutes", trainer.checkpoint_minutes, hint="5")


def _check_schedule(trainer: Trainer) -> None:
    if trainer.scheduler is None:
        return
    if not (callable(getattr(trainer.scheduler, "step", None)) and hasattr(trainer.scheduler, "state_dict")):
        raise InvalidInputError(
            "scheduler must be one of torch.optim.lr_scheduler over the optimizer, such as "
            f"CosineAnnealingLR(optimizer, T_max=10); got {type(trainer.scheduler).__name__}"
        )
    if getattr(trainer.scheduler, "optimizer", trainer.optimizer) is not trainer.optimizer:
        raise InvalidInputError("the scheduler is of another optimizer than the one given; make it of this one")
    if isinstance(trainer.scheduler, ReduceLROnPlateau) and trainer.scheduler_interval == "step":
        raise InvalidInputError("ReduceLROnPlateau looks at the validation; use scheduler_interval='epoch'")
    if isinstance(trainer.scheduler, ReduceLROnPlateau) and trainer.validation is None:
        raise InvalidInputError("ReduceLROnPlateau looks at the validation data; give validation=...")
    encoded(trainer.scheduler.state_dict())


def _check_validation(trainer: Trainer) -> None:
    data = [one for one in (trainer.validation, trainer.test) if one is not None]
    functions = [one for one in data if scores_itself(one)]
    for name in ("validation", "test"):
        given = getattr(trainer, name)
        if given is not None and not scores_itself(given):
            reader(given, torch.device("cpu"), Alone(), name=name)
    if trainer.metrics is not None and not isinstance(trainer.metrics, Mapping):
        raise InvalidInputError(
            "metrics must be functions of outputs and targets by name, for example metrics={'mae': F.l1_loss}; got "
            f"{type(trainer.metrics).__name__}"
        )
    if len(functions) < len(data) and not isinstance(getattr(trainer.source, "objective", None), NetworkObjective):
        raise InvalidInputError(
            "validation data needs an estimator of a network with loss=... or closure=...; give validation a "
            "function of the model that returns numbers by name, for example {'loss': 0.1}"
        )
    if trainer.validation is None and any(hasattr(callback, "monitor") for callback in trainer.callbacks):
        raise InvalidInputError("EarlyStopping looks at the validation data; give validation=...")
    if trainer.validation is not None and trainer.validation not in functions and trainer.metrics is not None:
        names = [f"validation_{name}" for name in ("loss", *trainer.metrics)]
        for name in (trainer.monitor, *(getattr(c, "monitor", trainer.monitor) for c in trainer.callbacks)):
            if name not in names:
                there = ", ".join(names)
                raise InvalidInputError(f"monitor={name!r} is no number of the validation; there are: {there}")


def _check_classes(trainer: Trainer) -> None:
    file = trainer.model_file
    if file is not None and file.classes is not None and len(set(file.classes)) < max(2, len(file.classes)):
        raise InvalidInputError(f"classes must be two or more different names, got {list(file.classes)!r}")


def _check_loggers(trainer: Trainer) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, str):
            validation.choice("a name of loggers", logger, LOGGERS)
            if trainer.out is None:
                raise InvalidInputError(
                    f"the logger {logger!r} writes into the folder of the run; give out='runs/mine'"
                )
        elif not callable(getattr(logger, "write", None)):
            raise InvalidInputError(
                f"loggers must be names ({', '.join(LOGGERS)}) or objects with write(record) and close(), got "
                f"{type(logger).__name__}"
            )


def _estimated(source: Any) -> set[int]:
    """Identities of the parameters that a source estimates, as far as they are known."""
    objective = getattr(source, "objective", None)
    return set() if objective is None else {id(p) for p in owners_of(objective).values()}
