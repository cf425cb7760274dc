import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import deepzero.measure as library
from deepzero.errors import InvalidInputError, VerificationError
from deepzero.measure.benchmark import CaseReport
from deepzero.measure.sides import BlockReuse, DeepZero, Naive

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


def test_the_record_is_json_with_its_circumstances(report: CaseReport) -> None:
    record = library.record([report], TINY, command="deepzero bench digits", environment={"cpu": "a cpu", "cores": 2})
    read = json.loads(json.dumps(record, allow_nan=False))
    assert read["command"] == "deepzero bench digits"
    assert read["environment"] == {"cpu": "a cpu", "cores": 2, "threads": 1}
    assert read["settings"]["seconds_per_side"] == 0.05
    (case,) = read["cases"]
    assert case["case"] == "digits"
    assert case["model"] == {"name": "digits_cnn", "parameters": 4954}
    assert case["batch"]["shape"] == [4, 1, 8, 8]
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
    assert case["profile"]["rules"]
    assert case["memory"] == []


def test_threads_are_as_before_after_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fail(*sides: BlockReuse | DeepZero | Naive) -> None:
        seen.append(torch.get_num_threads())
        raise VerificationError("they disagree")

    monkeypatch.setattr("deepzero.measure.benchmark.check_agreement", fail)
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
