"""Settings that tasks share: the data, a stage of training, and records made of plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, cast, get_origin, get_type_hints

from deepzero import data, validation
from deepzero.errors import InvalidInputError
from deepzero.text import did_you_mean
from deepzero.training.training_config import SCHEDULES

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images or a table, and the batches of them.

    Attributes:
        name: one of :func:`deepzero.data.names`; with a ``path``, the kind of what lies there, as
            :func:`deepzero.data.detect` names it.
        batch_size: images of a training batch.
        validation: part of the training images to select weights by, in [0, 1); with 0 the last weights are taken.
        padding: pixels of padding before a random crop; 0 for no crop.
        flip: flip half of the images left to right.
        drop_last: leave out a last training batch that is not full.
        image_size: average the images down to this size; None for their own.
        limit: number of training samples to use; None for all.
        path: a file or folder of one's own, kept as an absolute path; None for a named set.
        target: the column of a table that holds the labels; None for the usual one.
        test: part of each class to hold out as the test set, if the ``path`` has none; None for the usual part.

    >>> own = DataConfig.of_path("flowers.csv", kind="csv", target="species", batch_size=16)
    >>> own.name, own.target, own.title
    ('csv', 'species', 'flowers.csv')
    """

    name: str
    batch_size: int = 128
    validation: float = 0.1
    padding: int = 0
    flip: bool = False
    drop_last: bool = True
    image_size: int | None = None
    limit: int | None = None
    path: str | None = None
    target: str | None = None
    test: float | None = None

    def __post_init__(self) -> None:
        validation.choice("data", self.name, data.names() if self.path is None else data.KINDS)
        validation.count("batch_size", self.batch_size)
        validation.count("padding", self.padding, minimum=0)
        if self.path is not None:
            object.__setattr__(self, "path", str(Path(self.path).expanduser().absolute()))
        elif (self.target, self.test) != (None, None):
            raise InvalidInputError(
                f"target and test are for data of one's own, which has a path; the set {self.name!r} has its own"
            )

    @classmethod
    def of_path(cls, path: str | Path, *, kind: str | None = None, **options: Any) -> Self:
        """The configuration for a file or folder of one's own.

        Args:
            path: of the file or folder.
            kind: of what lies there; found by :func:`deepzero.data.detect` by default.
            options: other attributes.

        Raises:
            InvalidInputError: there is nothing that can be read.
            DataNotFoundError: there is nothing at all.
        """
        return cls(name=data.detect(path) if kind is None else kind, path=str(path), **options)

    @property
    def title(self) -> str:
        """The name of the set, or of the file or folder."""
        return self.name if self.path is None else Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of training, by Adam.

    Attributes:
        learning_rate: at its peak.
        batch_size: samples of a batch.
        steps: of the optimizer; None: as many as the budget of queries allows.
        schedule: of the learning rate.
    """

    learning_rate: float = 1e-3
    batch_size: int = 64
    steps: int | None = None
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        validation.positive("learning_rate", self.learning_rate, hint="1e-3")
        validation.count("batch_size", self.batch_size)
        validation.choice("schedule", self.schedule, SCHEDULES)
        if self.steps is not None:
            validation.count("steps", self.steps)


def record_of(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """A frozen record from settings by name, as JSON or TOML holds them; the records in it are made first.

    Args:
        kind: the record's class.
        values: its fields; lists become tuples if the field is one.
        where: what stands before a name in a message.

    Raises:
        InvalidInputError: a setting is unknown, missing, or out of its domain.
    """
    hints, known = get_type_hints(kind), {field.name: field for field in fields(cast("Any", kind))}
    for name in values:
        if name not in known:
            raise InvalidInputError(
                f"unknown setting {where}{name}{did_you_mean(name, known)}; there are: "
                f"{', '.join(where + k for k in known)}"
            )
    settings = {}
    for name, value in values.items():
        if is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise InvalidInputError(f"{where}{name} must hold settings by name, got {value!r}")
            settings[name] = record_of(hints[name], value, f"{where}{name}.")
        else:
            settings[name] = tuple(value) if get_origin(hints[name]) is tuple and isinstance(value, list) else value
    needed = [name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING]
    missing = [name for name in needed if name not in settings]
    if missing:
        raise InvalidInputError(
            f'the setting {where}{missing[0]} is missing; give it, or name a recipe to change: recipe = "digits"'
        )
    try:
        made = kind(**settings)
    except InvalidInputError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        what = where.rstrip(".") or "the configuration"
        raise InvalidInputError(f"a setting of {what} is of the wrong kind: {error}") from error
    _require_kinds(settings, hints, where)
    return made


def _require_kinds(settings: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    for name, value in settings.items():
        if not validation.fits(value, hints[name]):
            expected = hints[name].__name__ if isinstance(hints[name], type) else str(hints[name])
            raise InvalidInputError(f"{where}{name} must be of the kind {expected}, got {value!r}")
