"""A budget in seconds is met, whatever the costs, weights and exponent."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deepzero.errors import InvalidInputError
from deepzero.sparsity import cost_aware_ratios, random_coordinates, smart_ratio

MODEL = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 10)
)
SIZES = {name: p.numel() for name, p in MODEL.named_parameters()}
LAYERS = [name for name, p in MODEL.named_parameters() if p.dim() > 1]
DEEPER_IS_CHEAPER = {name: 1e-3 * 0.5**i for i, name in enumerate(SIZES)}


def seconds_of(counts: dict[str, float], costs: dict[str, float]) -> float:
    return sum(counts[name] * costs[name] for name in counts)


DENSE = seconds_of(SIZES, DEEPER_IS_CHEAPER)
COSTS = st.fixed_dictionaries({name: st.floats(1e-6, 1e-2) for name in SIZES})
SHARES = st.fixed_dictionaries({name: st.floats(1e-3, 1e3) for name in LAYERS})


@settings(max_examples=150, deadline=None)
@given(COSTS, SHARES, st.floats(0, 3), st.floats(0, 1.2))
def test_the_budget_is_met_within_one_coordinate_per_layer(
    costs: dict[str, float], weights: dict[str, float], exponent: float, level: float
) -> None:
    reserved = seconds_of({name: n for name, n in SIZES.items() if name not in LAYERS}, costs)
    slack = sum(costs[name] for name in LAYERS)
    dense = seconds_of(SIZES, costs)
    budget = reserved + slack * 1.0001 + level * (dense - reserved - slack)
    ratios = cost_aware_ratios(MODEL, costs, budget=budget, exponent=exponent, weights=weights)
    assert list(ratios) == LAYERS
    assert all(0 < ratio <= 1 for ratio in ratios.values())
    drawn = random_coordinates(MODEL, ratios)
    spent = seconds_of({name: drawn[name].numel() for name in SIZES}, costs)
    assert spent <= budget * (1 + 1e-6)
    assert spent >= min(budget, dense) - slack * (1 + 1e-6)


def test_uncapped_ratios_are_proportional_to_weight_times_cost_to_the_minus_a() -> None:
    weights = dict(zip(LAYERS, (1.0, 3.0, 2.0, 1.0), strict=True))
    ratios = cost_aware_ratios(MODEL, DEEPER_IS_CHEAPER, budget=0.3 * DENSE, exponent=0.5, weights=weights)
    shares = {name: weights[name] * DEEPER_IS_CHEAPER[name] ** -0.5 for name in LAYERS if ratios[name] < 1}
    assert len(shares) >= 2
    # Counts are rounded down, so one scale lies between count / share and (count + 1) / share for every layer.
    least = max(ratios[name] / share for name, share in shares.items())
    most = min((ratios[name] + 1 / SIZES[name]) / share for name, share in shares.items())
    assert least <= most
    assert min(ratios[name] / share for name, share in shares.items()) > 0.9 * most


def test_a_larger_exponent_moves_queries_from_dear_layers_to_cheap_ones() -> None:
    """Equal time buys more coordinates the more weight their cost has."""
    tables = [
        cost_aware_ratios(MODEL, DEEPER_IS_CHEAPER, budget=0.3 * DENSE, exponent=a) for a in (0, 0.2, 0.5, 1, 2, 4)
    ]
    for before, after in itertools.pairwise(tables):
        assert after[LAYERS[0]] <= before[LAYERS[0]]
        assert after[LAYERS[-1]] >= before[LAYERS[-1]]
        kept = [sum(table[name] * SIZES[name] for name in LAYERS) for table in (before, after)]
        assert kept[1] >= kept[0] - len(LAYERS)
    assert tables[0][LAYERS[0]] > 2 * tables[-1][LAYERS[0]]


def test_exponent_zero_is_uniform_and_a_large_budget_pays_for_everything() -> None:
    uniform = cost_aware_ratios(MODEL, DEEPER_IS_CHEAPER, budget=0.4 * DENSE, exponent=0)
    assert list(uniform.values()) == pytest.approx([uniform[LAYERS[1]]] * 4, abs=0.01)
    assert set(cost_aware_ratios(MODEL, DEEPER_IS_CHEAPER, budget=10 * DENSE).values()) == {1.0}


def test_smart_ratio_as_weights() -> None:
    smart = smart_ratio(MODEL, 0.9)
    ratios = cost_aware_ratios(MODEL, dict.fromkeys(SIZES, 1e-3), budget=0.5, exponent=1, weights=smart)
    free = [name for name in LAYERS if ratios[name] < 1]
    assert [ratios[name] / smart[name] for name in free] == pytest.approx(
        [ratios[free[0]] / smart[free[0]]] * len(free), rel=0.05
    )


def test_always_queried_parameters_are_paid_first() -> None:
    budget = 0.3 * DENSE
    paying = cost_aware_ratios(MODEL, DEEPER_IS_CHEAPER, budget=budget)
    free = cost_aware_ratios(MODEL, DEEPER_IS_CHEAPER, budget=budget, always=())
    assert sum(free.values()) > sum(paying.values())
    only_layers = {name: DEEPER_IS_CHEAPER[name] for name in LAYERS}
    assert cost_aware_ratios(MODEL, only_layers, budget=budget, always=()) == free


def test_a_budget_that_is_too_small_names_the_least_one() -> None:
    costs = dict.fromkeys(SIZES, 1e-3)
    always = sum(n for name, n in SIZES.items() if name not in LAYERS)
    least = (always + 4) * 1e-3
    with pytest.raises(InvalidInputError, match=rf"least possible is {least:.3g},"):
        cost_aware_ratios(MODEL, costs, budget=0.9 * least)
    at_least = cost_aware_ratios(MODEL, costs, budget=least * 1.0001)
    assert [round(at_least[name] * SIZES[name]) for name in LAYERS] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 0},
        {"budget": float("nan")},
        {"exponent": -1},
        {"exponent": float("nan")},
        {"costs": {}},
        {"costs": DEEPER_IS_CHEAPER | {"0.weight": 0.0}},
        {"costs": DEEPER_IS_CHEAPER | {"1.bias": float("inf")}},
        {"weights": {"0.weight": 1.0}},
        {"weights": dict.fromkeys(LAYERS, -1.0)},
        {"prunable": ["nowhere"]},
        {"always": ["nowhere"]},
    ],
)
def test_bad_input_is_refused(options: dict[str, object]) -> None:
    arguments = {"costs": DEEPER_IS_CHEAPER, "budget": DENSE} | options
    with pytest.raises(InvalidInputError):
        cost_aware_ratios(MODEL, arguments.pop("costs"), **arguments)
