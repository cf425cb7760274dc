import math
from typing import Any

import pytest

from deepzero.errors import InvalidInputError
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)


@pytest.mark.parametrize("step_size", [0, 0.0, -5e-3, math.nan, math.inf])
def test_a_step_size_that_is_no_step_is_refused(step_size: float) -> None:
    with pytest.raises(InvalidInputError, match="step_size must be a finite number above 0"):
        EstimatorConfig(step_size=step_size)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan])
def test_sparsity_lies_from_0_to_below_1(sparsity: float) -> None:
    with pytest.raises(InvalidInputError, match=r"sparsity must lie in \[0, 1\)"):
        SparsityConfig(sparsity=sparsity)


@pytest.mark.parametrize(
    ("make", "options", "names"),
    [
        (DataConfig, {"name": "mnist"}, "cifar10, digits, fashion-mnist"),
        (DataConfig, {"name": "digits", "batch_size": 0}, "batch_size"),
        (DataConfig, {"name": "digits", "padding": -1}, "padding"),
        (DataConfig, {"name": "digits", "path": "x.csv"}, "cifar10, csv, idx, image-folder, npz, parquet"),
        (DataConfig, {"name": "digits", "target": "y"}, "which has a path; the set 'digits' has its own"),
        (DataConfig, {"name": "digits", "test": 0.3}, "which has a path; the set 'digits' has its own"),
        (ModelConfig, {"name": "resnet21"}, "resnet20"),
        (EstimatorConfig, {"method": "spsa"}, "cge, "),
        (EstimatorConfig, {"stencil": "backward"}, "central, forward"),
        (EstimatorConfig, {"queries": 0}, "queries"),
        (EstimatorConfig, {"distribution": "cauchy"}, "gaussian"),
        (EstimatorConfig, {"storage": "bfloat16"}, "float16, float32"),
        (EstimatorConfig, {"method": "rge", "storage": "float16"}, "float32 with the estimator rge"),
        (SparsityConfig, {"ratios": "magic"}, "smart-ratio, uniform, zo-grasp"),
        (SparsityConfig, {"pattern": "chess"}, "alternating, dynamic, static"),
        (SparsityConfig, {"prune": True}, "static"),
        (SparsityConfig, {"pattern": "alternating", "ratios": "smart-ratio"}, "zo-grasp or fo-grasp"),
        (SparsityConfig, {"weights": "gold"}, "equal, sensitivity, smart-ratio"),
        (EstimatorConfig, {"options": {"a": 1}}, "options belong to baselines"),
        (SparsityConfig, {"every": 0}, "every"),
        (SparsityConfig, {"unit": "week"}, "epoch, step"),
        (SparsityConfig, {"per_class": 0}, "per_class"),
    ],
)
def test_the_error_names_what_there_is(make: Any, options: dict[str, Any], names: str) -> None:
    with pytest.raises(InvalidInputError, match=names):
        make(**options)


def test_random_directions_have_no_sparsity() -> None:
    with pytest.raises(InvalidInputError, match="choose sparsity=0, or estimator=cge"):
        ClassificationConfig(
            data=DataConfig(name="digits"),
            model=ModelConfig(name="mlp"),
            estimator=EstimatorConfig(method="rge"),
            sparsity=SparsityConfig(sparsity=0.5),
        )


def test_a_seed_is_not_negative() -> None:
    with pytest.raises(InvalidInputError, match="seed"):
        ClassificationConfig(data=DataConfig(name="digits"), model=ModelConfig(name="mlp"), seed=-1)
