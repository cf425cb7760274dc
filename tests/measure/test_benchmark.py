import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import deepzero.measure as library
from deepzero.errors import InvalidInputError, VerificationError
from deepzero.measure.bench_record import case_record
from deepzero.measure.benchmark import LEAST_SECONDS, CaseReport, _turn
from deepzero.measure.cases import DIGITS, registered_case

TINY = library.Settings(batch=4, threads=1, rounds=3, seconds_per_side=0.05, memory=False)


@pytest.fixture(scope="module")
def report() -> CaseReport:
    return library.run("digits", TINY)


def test_ratios_come_from_the_rounds(report: CaseReport) -> None:
    for other in ("naive", "block_reuse"):
        fast, slow = (report.sides[side].queries_per_second.rounds for side in ("deepzero", other))
        quotients = [f / s for f, s in zip(fast, slow, strict=True)]
        found = report.ratios[f"deepzero/{other}"]
        assert list(found.rounds) == pytest.approx(quotients)
        assert found.median == pytest.approx(sorted(quotients)[1])
        assert (found.min, found.max) == pytest.approx((min(quotients), max(quotients)))


def test_the_record_of_a_case_is_json(report: CaseReport) -> None:
    case = json.loads(json.dumps(case_record(report), allow_nan=False))
    assert case["case"] == "digits"
    assert case["model"] == {"name": "digits_cnn", "parameters": 4954}
    assert case["batch"] == {"shape": [4, 1, 8, 8], "source": "scikit-learn's digits, 1x8x8"}
    assert case["coordinates"] == {"count": 4954, "smart_ratio_sparsity": 0.0}
    assert case["queries"] == 4955
    assert case["rounds"] == 3
    assert set(case["sides"]) == {"naive", "block_reuse", "deepzero"}
    for side in case["sides"].values():
        assert len(side["timings"]) == len(side["queries_per_second"]["rounds"]) == 3
        assert side["method"]
    for name in ("naive", "block_reuse"):
        form = case["sides"][name]["form"]
        assert form["taken"] in form["trial_queries_per_second"]
        assert len(form["trial_queries_per_second"]) == 8
        assert "torch.compile" in form["not_tried"]
    assert case["sides"]["deepzero"]["form"] is None
    for side in case["sides"].values():
        assert all(t["timed_fraction"] == t["timed_queries"] / 4955 for t in side["timings"])
    assert case["agreement"]["coordinates"] == 11
    assert set(case["errors"]["rounding"]) == {"naive", "deepzero"}
    assert case["profile"]["rules"]
    assert case["memory"] == []
    assert case["setup_seconds"] > 0


def test_the_floor_is_reached_to_the_part_that_the_speed_says(report: CaseReport) -> None:
    seconds = 1 / report.sides["deepzero"].queries_per_second.median
    assert report.floor_reached.median == pytest.approx(report.work.seconds / seconds)
    assert report.ceilings.threads == report.threads == TINY.threads == 1


def test_the_floor_is_that_of_a_worker_and_so_is_its_time() -> None:
    found = library.run("digits", replace(TINY, threads=2, rounds=1, seconds_per_side=0.02))
    of_a_worker = 2 / found.sides["deepzero"].queries_per_second.median
    assert found.ceilings.threads == 1
    assert found.floor_reached.median == pytest.approx(found.work.seconds / of_a_worker)


def test_a_loop_whose_slopes_are_noise_is_timed_in_float64_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzero.measure.benchmark.NOISY", 0.0)
    found = library.run("digits", replace(TINY, rounds=1, seconds_per_side=0.02))
    assert set(found.sides) == {"naive", "naive_float64", "block_reuse", "deepzero"}
    assert set(found.ratios) == {f"deepzero/{side}" for side in found.sides if side != "deepzero"}


def test_a_network_without_known_blocks_has_no_block_reuse() -> None:
    small = registered_case("small", "mlp", DIGITS, image_size=8, in_channels=1, hidden=(3, 3))
    found = library.run(small, replace(TINY, rounds=1, seconds_per_side=0.02))
    assert set(found.sides) == {"naive", "deepzero"}
    shown = [row for table in library.tables(found) for row in table.columns[0].cells]
    assert {"hidden.0", "hidden.2", "fc"} <= set(shown)


@pytest.mark.parametrize(("budget", "turn"), [(None, 0.05 / 3), (61.0, (61.0 - 1.0) / 4 / 3), (1.0, LEAST_SECONDS)])
def test_a_budget_is_shared_out_by_what_is_left(report: CaseReport, budget: float | None, turn: float) -> None:
    assert _turn(report.problem, replace(TINY, seconds=budget), 1.0, sides=4) == pytest.approx(turn)


def test_threads_are_as_before_after_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fail(*_: Any, **__: Any) -> None:
        seen.append(torch.get_num_threads())
        raise VerificationError("they disagree")

    monkeypatch.setattr("deepzero.measure.benchmark.DeepZero", fail)
    before = torch.get_num_threads()
    with pytest.raises(VerificationError, match="they disagree"):
        library.run("digits", replace(TINY, threads=before + 1))
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads must be an integer of at least 1, got 0"),
        ({"rounds": 0}, "rounds must be an integer of at least 1, got 0"),
        ({"seconds_per_side": 0.0}, "seconds_per_side must be a finite number above 0, got 0.0"),
        ({"budget_mib": -5}, "budget_mib must be an integer of at least 1, got -5"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        library.Settings(**options)
    assert message in str(caught.value)
