"""An experiment: its scales, the cells of each, and how finished cells are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Generic, Self, TypeVar, get_args, get_type_hints

from deepzero.errors import InvalidInputError
from deepzero.reproduce.cells import Cell
from deepzero.reproduce.presentation import Outcomes, Presentation
from deepzero.tasks.classification import DataConfig

SCALES = ("smoke", "small", "paper")
"""Names of the scales: seconds, minutes, and days to weeks."""


def _replaced(_: Any, new: int) -> int:
    return new


def _limited(data: DataConfig, limit: int) -> DataConfig:
    return replace(data, limit=limit)


@dataclass(frozen=True)
class SetBy:
    """Marks a field of a scale that an option of ``deepzero reproduce`` changes.

    Attributes:
        option: ``epochs``, ``seeds`` or ``limit``.
        value: the new value of the field, from its own and that of the option.
    """

    option: str
    value: Callable[[Any, int], Any] = _replaced


Epochs = Annotated[int, SetBy("epochs")]
"""Passes over the training images."""
Seeds = Annotated[int, SetBy("seeds")]
"""Runs of each kind."""
Images = Annotated[DataConfig, SetBy("limit", _limited)]
"""A data set and its batches."""
AtMostImages = Annotated[int, SetBy("limit", min)]
"""A number of training images that the option can only lower."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The settings of an experiment at one size. Each experiment adds its own fields.

    Attributes:
        caption: describes the runs, and where they differ from the paper's.
    """

    caption: str

    @classmethod
    def options(cls) -> set[str]:
        """The options that change a field."""
        return {mark.option for _, mark in cls._marks()}

    @classmethod
    def _marks(cls) -> Iterator[tuple[str, SetBy]]:
        for name, hint in get_type_hints(cls, include_extras=True).items():
            yield from ((name, mark) for mark in get_args(hint)[1:] if isinstance(mark, SetBy))

    def changed(self, *, epochs: int | None = None, seeds: int | None = None, limit: int | None = None) -> Self:
        """The scale with the fields that the options set, which its caption then says; itself if they change none.

        Example:
            >>> scale = TrainingScale(caption="Digits.", data=DataConfig(name="digits"), epochs=5)
            >>> scale.changed(epochs=2, limit=64)
            TrainingScale(caption='Digits. Changed here: epochs 2, limit 64.', data=DataConfig(name='digits', ...
        """
        options = {"epochs": epochs, "seeds": seeds, "limit": limit}
        fields, effective = {}, set()
        for name, mark in self._marks():
            own, new = getattr(self, name), options[mark.option]
            if new is not None and mark.value(own, new) != own:
                fields[name] = mark.value(own, new)
                effective.add(mark.option)
        if not fields:
            return self
        words = ", ".join(f"{name} {value:,}" for name, value in options.items() if name in effective)
        return replace(self, caption=f"{self.caption} Changed here: {words}.", **fields)


@dataclass(frozen=True, kw_only=True)
class TrainingScale(Scale):
    """The scale of an experiment that trains on images.

    Attributes:
        data: the images and the size of a batch.
        epochs: passes over the training images.
        seeds: runs of each kind.
    """

    data: Images
    epochs: Epochs = 1
    seeds: Seeds = 1


OwnScale = TypeVar("OwnScale", bound=Scale)


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[OwnScale]):
    """One table or figure of the paper, or several that come from the same runs.

    Attributes:
        name: its name on the command line.
        title: what it compares.
        scales: its sizes, by name.
        cells: the cells at a scale.
        present: tables and figures from finished cells, with the paper's numbers beside ours.
        also: further names.
    """

    name: str
    title: str
    scales: Mapping[str, OwnScale]
    cells: Callable[[OwnScale], Iterable[Cell]]
    present: Callable[[Outcomes, OwnScale], Presentation]
    also: Sequence[str] = ()

    def scale(self, name: str) -> OwnScale:
        """The scale called ``name``.

        Raises:
            InvalidInputError: there is none.
        """
        if name not in self.scales:
            raise InvalidInputError(f"{self.name} has the scales {', '.join(self.scales)}, got {name!r}")
        return self.scales[name]
