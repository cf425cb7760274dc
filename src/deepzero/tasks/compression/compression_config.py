"""The configuration of a compression: a frozen record, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepzero import validation
from deepzero.tasks.task_config import DataConfig, record_of
from deepzero.training.training_config import SCHEDULES


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """A compression: all that its result depends on, and nothing else.

    Attributes:
        data: images or a table, whose labels are not used, and the size of a batch.
        code: numbers that an input is compressed to.
        queries: random directions of a step; None: every coordinate.
        steps: of Adam.
        learning_rate: at its peak.
        schedule: of the learning rate.
        seed: of everything that is drawn.

    Raises:
        InvalidInputError: a value is out of its domain.
    """

    data: DataConfig
    code: int = 8
    queries: int | None = None
    steps: int = 300
    learning_rate: float = 1e-2
    schedule: str = "cosine"
    seed: int = 0

    def __post_init__(self) -> None:
        validation.count("code", self.code)
        if self.queries is not None:
            validation.count("queries", self.queries)
        validation.count("steps", self.steps)
        validation.positive("learning_rate", self.learning_rate, hint="1e-2")
        validation.choice("schedule", self.schedule, SCHEDULES)
        validation.count("seed", self.seed, minimum=0)


def from_record(record: Mapping[str, Any]) -> CompressionConfig:
    """The configuration that a run folder keeps as JSON.

    Example:
        >>> from dataclasses import asdict
        >>> config = CompressionConfig(data=DataConfig(name="digits"), code=4)
        >>> from_record(asdict(config)) == config
        True
    """
    return record_of(CompressionConfig, record)
