import math
from itertools import pairwise
from typing import Any

import pytest

from deepzero.errors import InvalidInputError
from deepzero.training import TrainingConfig, warmup_cosine
from deepzero.training.training_config import SCHEDULES


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"learning_rate": 0.0},
        {"learning_rate": -0.1},
        {"learning_rate": math.nan},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"weight_decay": math.inf},
        {"warmup_epochs": -1},
        {"evaluate_every": 0},
        {"checkpoint_steps": 0},
        {"checkpoint_minutes": 0},
    ],
)
def test_values_out_of_their_domain_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        TrainingConfig(**options)


def test_the_learning_rate_rises_linearly_then_falls_to_zero_as_a_cosine() -> None:
    factors = [warmup_cosine(t, warmup=10, total=110) for t in range(110)]
    assert factors[:10] == pytest.approx([0.1 * (t + 1) for t in range(10)])
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert factors[-1] == pytest.approx(0.5 * (1 - math.cos(math.pi / 100)))


def test_there_may_be_no_warm_up() -> None:
    assert warmup_cosine(0, warmup=0, total=5) == 1


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_warms_up_alike_and_never_rises_afterwards(name: str) -> None:
    factors = [SCHEDULES[name](t, warmup=4, total=20) for t in range(20)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert all(a >= b for a, b in pairwise(factors[4:]))


def test_the_linear_schedule_ends_a_step_before_zero_and_the_constant_one_stays() -> None:
    assert [SCHEDULES["linear"](t, warmup=0, total=5) for t in range(5)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert {SCHEDULES["constant"](t, warmup=0, total=5) for t in range(5)} == {1.0}
