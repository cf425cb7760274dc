"""Records that are written case by case, and gone on with."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from deepzero.errors import InvalidInputError
from deepzero.measure import BenchRecord, Settings
from deepzero.measure.cost_curves import CostPoint, PlannedPoint, planned_points
from deepzero.measure.rounds import Spread

SETTINGS = Settings(threads=1)
POINT = CostPoint("batch", 32, "cnn", 10, 1.0, 0.01, 0.1, Spread.of([10.0]))


def made(out: Path | None, settings: Settings = SETTINGS) -> BenchRecord:
    return BenchRecord(settings, out, "deepzero bench all", {"cpu": "a cpu", "cores": 2})


@pytest.fixture
def budgets(monkeypatch: pytest.MonkeyPatch) -> dict[str, float | None]:
    """Cases are not measured but noted, with the seconds that they were given; each takes ten."""
    found: dict[str, float | None] = {}
    now = [0.0]

    def run(name: str, settings: Settings) -> str:
        found[name] = settings.seconds
        now[0] += 10.0
        return name

    monkeypatch.setattr("deepzero.stopwatch.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("deepzero.measure.bench_record.run", run)
    monkeypatch.setattr("deepzero.measure.bench_record.case_record", lambda name: {"case": name})
    return found


def test_a_budget_is_shared_out_by_the_cases_own_seconds(budgets: dict[str, float | None]) -> None:
    """Digits ask for 20, ResNet-20 for 80 and the perceptron for 40; what one leaves over goes to the others."""
    assert list(made(None).measure(["digits", "resnet20", "mlp"], 140.0)) == ["digits", "resnet20", "mlp"]
    assert budgets == pytest.approx({"digits": 20.0, "resnet20": 130 * 80 / 120, "mlp": 120.0})


def test_without_a_budget_cases_take_their_own_time(budgets: dict[str, float | None]) -> None:
    list(made(None).measure(["digits"]))
    assert budgets == {"digits": None}


def test_a_record_is_written_after_every_case_and_gone_on_with(
    tmp_path: Path, budgets: dict[str, float | None]
) -> None:
    out = tmp_path / "bench.json"
    measuring = made(out).measure(["digits", "mlp"], 60.0)
    next(measuring)
    content = json.loads(out.read_text())
    assert [case["case"] for case in content["cases"]] == ["digits"]
    assert content["environment"] == {"cpu": "a cpu", "cores": 2, "threads": 1}
    budgets.clear()
    again = made(out, replace(SETTINGS, seconds=99.0))
    again.resume()
    list(again.measure(["digits", "mlp"], 60.0))
    assert set(budgets) == {"mlp"}
    assert [case["case"] for case in json.loads(out.read_text())["cases"]] == ["digits", "mlp"]


def test_there_is_nothing_to_go_on_with_at_first(tmp_path: Path) -> None:
    record = made(tmp_path / "new.json")
    record.resume()
    assert record.cases == []


def test_other_settings_and_other_files_are_not_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    made(out).write()
    with pytest.raises(InvalidInputError, match=r"made with other settings \(threads was 1\); try another --out"):
        made(out, Settings(threads=2)).resume()
    out.write_text('{"format": 2}')
    with pytest.raises(InvalidInputError, match="no record of format 3"):
        made(out).resume()


def test_points_of_curves_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[PlannedPoint] = []

    def point(one: PlannedPoint, **_: Any) -> CostPoint:
        asked.append(one)
        return replace(POINT, curve=one.curve, at=one.at)

    monkeypatch.setattr("deepzero.measure.bench_record.cost_point", point)
    record = made(tmp_path / "bench.json", Settings(threads=2))
    record.growth = [asdict(POINT)]
    assert len(list(record.measure_growth())) == len(list(planned_points(2))) - 1
    assert ("batch", 32) not in {(one.curve, one.at) for one in asked}
    assert len(json.loads((tmp_path / "bench.json").read_text())["growth"]) == len(list(planned_points(2)))
