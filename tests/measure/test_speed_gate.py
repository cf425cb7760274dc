"""The gate of speed: it asks for most of what was recorded, measures twice before it refuses, and knows every case."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from deepzero.measure.cases import CASES
from deepzero.measure.rounds import Spread

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import speed_gate

    monkeypatch.setattr(speed_gate, "recorded", lambda: {"digits": {"ratio": {"median": 10.0}}})
    return speed_gate


@pytest.fixture
def finds(script: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Digits are found to have these ratios, one measurement after the other; returns the turns that were asked for."""

    def install(*ratios: float) -> list[int]:
        turns: list[int] = []
        left = iter(ratios)

        def ratio(_: object, count: int) -> Spread:
            turns.append(count)
            return Spread.of([next(left)])

        monkeypatch.setattr(script.SmokeCase, "__init__", lambda *_: None)
        monkeypatch.setattr(script.SmokeCase, "ratio", ratio)
        return turns

    return install


def test_most_of_the_recorded_ratio_passes(script: types.ModuleType, finds: Callable[..., list[int]]) -> None:
    turns = finds(7.1)
    assert script.main(["--cases", "digits"]) == 0
    assert turns == [script.TURNS]


def test_what_is_too_low_is_measured_once_more(script: types.ModuleType, finds: Callable[..., list[int]]) -> None:
    turns = finds(3.0, 8.0)
    assert script.main(["--cases", "digits"]) == 0
    assert turns == [script.TURNS, 2 * script.TURNS]


def test_lost_speed_is_refused(
    script: types.ModuleType, finds: Callable[..., list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    finds(6.9, 6.8)
    assert script.main(["--cases", "digits"]) == 1
    captured = capsys.readouterr()
    assert "6.90 times the best plain loop, at least 7.00 asked for" in captured.out
    assert "speed was lost in digits: under 70% of speed-gate.json" in captured.err


def test_a_new_record_holds_what_was_measured(
    script: types.ModuleType, finds: Callable[..., list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finds(12.0)
    monkeypatch.setattr(script, "RECORD", tmp_path / "gate.json")
    assert script.main(["--record", "--cases", "digits"]) == 0
    content = json.loads((tmp_path / "gate.json").read_text())
    assert content["cases"]["digits"]["ratio"]["median"] == 12.0
    assert content["environment"]["clock"] == "processor"


def test_a_case_at_smoke_size_is_measured(script: types.ModuleType) -> None:
    found = script.SmokeCase("digits", script.Smoke(batch=4, each=3, loop_seconds=0.01))
    assert found.coordinates.count == 3 * 11
    assert len(found.ratio(2).rounds) == 2
    assert found.ratio(1).median > 0


def test_every_case_is_recorded_at_the_size_that_is_measured(script: types.ModuleType) -> None:
    content = json.loads(script.RECORD.read_text())
    assert set(script.PLAN) == set(CASES) == set(content["cases"])
    for name, size in script.PLAN.items():
        assert script.Smoke(**content["cases"][name]["size"]) == size, "run python benchmarks/speed_gate.py --record"


def test_continuous_integration_asks_for_it() -> None:
    assert re.search(r"^step python benchmarks/speed_gate.py$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
