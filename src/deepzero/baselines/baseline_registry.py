"""Baselines by name."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from deepzero.baselines.alignment import AlignAda, AlignProp, AlignZero
from deepzero.baselines.base import Baseline
from deepzero.baselines.feedback import DirectFeedbackAlignment, FeedbackAlignment
from deepzero.baselines.forward_gradient import LocalForwardGradient, RandomizedLimit, WeightForwardGradient
from deepzero.baselines.pattern_search import FastPatternSearch, PatternSearch
from deepzero.errors import InvalidInputError
from deepzero.objective import Loss
from deepzero.text import did_you_mean

_ALL: tuple[type[Baseline], ...] = (
    FeedbackAlignment,
    DirectFeedbackAlignment,
    AlignAda,
    AlignZero,
    AlignProp,
    LocalForwardGradient,
    WeightForwardGradient,
    RandomizedLimit,
    PatternSearch,
    FastPatternSearch,
)
"""To add a baseline: write its class in a file of its own, and name it here."""

_BY_NAME = {baseline.name: baseline for baseline in _ALL}


def names() -> list[str]:
    """The names that :func:`build` takes, sorted."""
    return sorted(_BY_NAME)


def build(name: str, model: nn.Module, *, loss: Loss, seed: int = 0, **options: Any) -> Baseline:
    """The baseline called ``name`` on a model.

    Args:
        name: one of :func:`names`.
        model: a network of the kind that the baseline is made for.
        loss: ``loss(output, target)``.
        seed: of everything that it draws.
        options: further keywords of the baseline's class.

    Raises:
        InvalidInputError: the name or an option is unknown, or the model is of another kind.
    """
    if name not in _BY_NAME:
        raise InvalidInputError(
            f"unknown baseline {name!r}{did_you_mean(name, _BY_NAME)}; there are: {', '.join(names())}"
        )
    known = set(inspect.signature(_BY_NAME[name]).parameters) - {"model", "loss", "seed"}
    if unknown := sorted(options.keys() - known):
        raise InvalidInputError(f"{name} has no option {unknown[0]!r}; it takes: {', '.join(sorted(known)) or 'none'}")
    return _BY_NAME[name](model, loss=loss, seed=seed, **options)
