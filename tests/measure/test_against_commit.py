"""The comparison of two trees: it measures what it says, and refuses trees that compute different numbers."""

import types
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F

from deepzero.measure.cases import problem

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import against_commit

    return against_commit


def found(loss: float = 2.0, queries: int = 10, **norms: Any) -> dict[str, Any]:
    return {"loss": loss, "queries": queries, "norms": {"a": 1.0, "b": 0.5, **norms}}


def test_rounding_passes_and_its_size_is_told(script: types.ModuleType) -> None:
    assert script.deviation(found(a=1.0 + 2e-6), found()) == pytest.approx(2e-6)


def test_a_gradient_that_is_zero_up_to_rounding_is_no_disagreement(script: types.ModuleType) -> None:
    assert script.deviation(found(c=3e-9), found(c=1e-9)) == pytest.approx(2e-9 / script.AGREEMENT)


@pytest.mark.parametrize(
    "other", [found(loss=2.01), found(b=0.51), found(a=float("nan")), found(queries=11), found(c=1)]
)
def test_trees_that_compute_something_else_are_refused(script: types.ModuleType, other: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="not comparable"):
        script.deviation(other, found())


class Known:
    """A child whose steps take a known time."""

    def __init__(self, name: str, seconds: float, calls: list[Any]) -> None:
        self.name, self.seconds, self.calls = name, seconds, calls

    def steps(self, count: int) -> dict[str, float | int]:
        self.calls.append(self.name)
        return {"seconds": count * self.seconds, "cpu": count * self.seconds / 2, "queries": count * 100}


def test_sides_alternate_and_the_ratio_is_of_speeds(script: types.ModuleType) -> None:
    calls = []
    children = {"here": Known("here", 0.1, calls), "commit": Known("commit", 0.2, calls)}
    answer = script.one_round(children, 3, 2)
    assert calls == ["here", "commit", "commit", "here"]
    assert answer == pytest.approx({"here": 1000.0, "commit": 500.0, "ratio": 2.0, "cpu_ratio": 2.0})


def test_a_child_makes_whole_steps_of_the_problem(script: types.ModuleType, tmp_path: Path) -> None:
    options = script.Options(commit="HEAD", batch=4)
    coordinates = script.write_problem(options, tmp_path)
    asked = problem("digits", batch=4)
    child = script.Child(ROOT, tmp_path, 1)
    try:
        first, second = child.steps(1), child.steps(2)
    finally:
        child.close()
    assert first["queries"] == 1 + coordinates == asked.queries
    assert second["queries"] == 2 * first["queries"]
    x, y = asked.batch
    assert first["loss"] == pytest.approx(F.cross_entropy(asked.model(x), y).item(), rel=1e-6)
    assert second["loss"] < first["loss"]
    assert first["norms"].keys() == dict(asked.model.named_parameters()).keys()


def test_resnet20_is_sampled_by_the_same_stretches(script: types.ModuleType, tmp_path: Path) -> None:
    asked = problem("resnet20", batch=2)
    assert script.write_problem(script.Options("HEAD", case="resnet20", batch=2, stretch=3), tmp_path) == sum(
        min(3, len(indices)) for _, indices in asked.coordinates.items()
    )


def test_a_child_with_the_package_of_another_tree_is_refused(script: types.ModuleType, tmp_path: Path) -> None:
    script.write_problem(script.Options(commit="HEAD", batch=4), tmp_path)
    with pytest.raises(SystemExit, match=r"imported .*another deepzero comes before PYTHONPATH"):
        script.Child(tmp_path, tmp_path, 1)
