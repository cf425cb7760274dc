import math
from typing import Any

import pytest

from deepzero.errors import InvalidInputError
from deepzero.recipes import SETTINGS, customize, find
from deepzero.tasks.classification.classification_config import ClassificationConfig


def base(name: str = "digits") -> ClassificationConfig:
    return find(name).config()


def test_nothing_given_changes_nothing() -> None:
    assert customize(base(), **dict.fromkeys(SETTINGS)) == base()


def test_settings_reach_their_place_and_no_other() -> None:
    changed = customize(base(), seed=3, epochs=2, step_size=1e-3, sparsity=0.5, batch_size=16)
    assert changed.seed == 3
    assert changed.training.epochs == 2
    assert changed.training.learning_rate == base().training.learning_rate
    assert changed.estimator.step_size == 1e-3
    assert changed.sparsity.sparsity == 0.5
    assert changed.sparsity.ratios == "zo-grasp"
    assert changed.data.batch_size == 16


def test_random_directions_drop_the_sparsity_unless_it_is_given() -> None:
    assert customize(base(), estimator="rge").sparsity.sparsity == 0
    with pytest.raises(InvalidInputError, match="sparsity"):
        customize(base(), estimator="rge", sparsity=0.9)


def test_depth_is_for_networks_that_have_one() -> None:
    assert customize(base("cifar10-cnn"), depth=2).model.options == {"depth": 2}
    with pytest.raises(InvalidInputError, match="no depth"):
        customize(base("digits"), depth=2)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(InvalidInputError, match=r"unknown setting 'epoch' \(did you mean epochs\?\)"):
        customize(base(), epoch=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"step_size": 0.0},
        {"step_size": -1.0},
        {"step_size": math.nan},
        {"sparsity": 1.0},
        {"sparsity": -0.1},
        {"estimator": "spsa"},
        {"epochs": 0},
        {"seed": -1},
    ],
)
def test_bad_values_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(settings))):
        customize(base(), **settings)
