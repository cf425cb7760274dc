"""The speed on the zoo: sides are comparable before they are compared, and a wrong one gets no ratio."""

import json
import math
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import zoo_sides

    return zoo_sides


@pytest.fixture
def script(sides: types.ModuleType) -> types.ModuleType:
    import zoo

    return zoo


@pytest.mark.parametrize(
    ("found", "far"),
    [([2.0, -1.0], 0.0), ([2.0, -1.5], 0.25), ([math.nan, -1.0], math.inf), ([2.0], math.inf)],
)
def test_deviation_is_relative_to_the_largest_slope(script: types.ModuleType, found: list[float], far: float) -> None:
    assert script.deviation({"a": found}, {"a": [2.0, -1.0]}) == far


@pytest.mark.parametrize(("queries", "most"), [(0.1, 1), (7.9, 2), (8.0, 4), (11.9, 4), (12.0, 8), (1e9, 16)])
def test_coordinates_fit_into_the_time(sides: types.ModuleType, queries: float, most: int) -> None:
    assert sides.most_of_each([10, 3, 1], queries) == most


def test_coordinates_are_distinct_and_spread(sides: types.ModuleType) -> None:
    assert sides.spaced(10, 4) == [0, 2, 5, 7]
    assert sides.spaced(3, 4) == [0, 1, 2]


class InProcess:
    """A child without the process."""

    def __init__(self, sides: types.ModuleType, falsify: float = 0.0) -> None:
        self._answers, self._falsify = sides.Answers(), falsify

    def ask(self, line: str) -> dict[str, Any]:
        asked = json.loads(line)
        answer = getattr(self._answers, asked.pop("task"))(**asked)
        if "first_use_seconds" in answer:
            answer["slopes"] = {name: [s + self._falsify for s in one] for name, one in answer["slopes"].items()}
        return answer


def test_a_member_agrees_with_the_loop_and_is_timed(script: types.ModuleType, sides: types.ModuleType) -> None:
    options = script.Options(rounds=2, seconds=0.02, step=0.02)
    children = {"here": InProcess(sides), "commit": InProcess(sides)}
    report = script.measured(script.Sides(children), "perceptron", options)
    assert [report["sides"][side]["agrees"] for side in children] == [True, True]
    assert set(report["ratios"]) == {"here/loop", "commit/loop", "here/commit"}
    rates = {name: side["queries_per_second"]["rounds"] for name, side in report["sides"].items()}
    expected = tuple(here / loop for here, loop in zip(rates["here"], rates["loop"], strict=True))
    assert report["ratios"]["here/loop"]["rounds"] == expected
    assert json.loads(json.dumps(report))["member"] == "perceptron"
    assert "DIFFERS" not in script.row(report)


def test_slopes_of_a_model_that_draws_are_compared_with_the_same_numbers(
    script: types.ModuleType, sides: types.ModuleType
) -> None:
    """Its dropout acts on a transposed tensor, too."""
    report = script.examined(script.Sides({"here": InProcess(sides)}), "transformer", script.Options(step=0.02))
    assert report["sides"]["loop"]["seeded_at_every_query"]
    assert report["sides"]["here"]["loss"] == pytest.approx(report["sides"]["loop"]["loss"], rel=1e-5)
    assert report["sides"]["here"]["agrees"]


def test_a_side_with_other_slopes_gets_no_ratio(script: types.ModuleType, sides: types.ModuleType) -> None:
    options = script.Options(rounds=1, seconds=0.01, step=0.02)
    children = {"here": InProcess(sides), "commit": InProcess(sides, falsify=1.0)}
    report = script.measured(script.Sides(children), "perceptron", options)
    assert set(report["ratios"]) == {"here/loop"}
    assert "queries_per_second" not in report["sides"]["commit"]
    assert "commit: DIFFERS FROM THE LOOP" in script.row(report)


def test_a_refusal_is_kept_with_its_first_line(
    script: types.ModuleType, sides: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: nn.Module, **__: Any) -> None:
        raise sides.dz.errors.GraphError("no rule\nfor this")

    monkeypatch.setattr(sides.dz, "CGE", refuse)
    report = script.measured(
        script.Sides({"here": InProcess(sides)}), "perceptron", script.Options(rounds=1, seconds=0.01, step=0.02)
    )
    assert report["sides"]["here"] == {"refused": "GraphError: no rule"}
    assert report["ratios"] == {}


def test_a_wrapped_closure_is_the_same_objective(sides: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a version that takes no closure=...."""
    member = sides.ZOO["siamese"]
    chosen = {name: [0] for name, p in member.model().named_parameters() if p.requires_grad}
    native = sides.Side(member, chosen)
    monkeypatch.setattr(sides, "takes_closures", lambda: False)
    wrapped = sides.Side(member, chosen)
    assert wrapped.loss == native.loss
    torch.testing.assert_close(wrapped.slopes, native.slopes, rtol=1e-3, atol=1e-5)
