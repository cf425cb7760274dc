import json
import subprocess
from dataclasses import replace

import pytest
import torch

from deepzero import measure as bench
from deepzero.errors import BudgetError, DeepZeroError, InvalidInputError, VerificationError
from deepzero.measure import peak_memory as memory

TINY = bench.Settings(batch=4, threads=1, rounds=3, seconds_per_side=0.05, memory=False)


@pytest.fixture(scope="module")
def report():
    return bench.run("digits", TINY)


def test_ratios_come_from_the_rounds(report):
    for other in ("naive", "block_reuse"):
        fast, slow = (report.sides[side].queries_per_second.rounds for side in ("deepzero", other))
        quotients = [f / s for f, s in zip(fast, slow, strict=True)]
        found = report.ratios[f"deepzero/{other}"]
        assert list(found.rounds) == pytest.approx(quotients)
        assert found.median == pytest.approx(sorted(quotients)[1])
        assert (found.min, found.max) == pytest.approx((min(quotients), max(quotients)))


def test_the_record_is_json_with_its_circumstances(report):
    record = bench.record([report], TINY, command="deepzero bench digits", environment={"cpu": "a cpu", "cores": 2})
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


def test_threads_are_as_before_after_a_failure_too(monkeypatch):
    seen = []

    def fail(*sides):
        seen.append(torch.get_num_threads())
        raise VerificationError("they disagree")

    monkeypatch.setattr("deepzero.measure.benchmark.check", fail)
    before = torch.get_num_threads()
    with pytest.raises(VerificationError, match="they disagree"):
        bench.run("digits", replace(TINY, threads=before + 1))
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_memory_of_an_estimate_in_a_new_process():
    found = memory.measure_memory({"fc.weight": 20, "fc.bias": 10}, threads=1, budget=64 << 20, name="digits", batch=4)
    assert found.budget == 64 << 20
    assert found.queries == 31
    assert found.fraction == pytest.approx(30 / 4954)
    assert 0 <= found.growth < found.peak
    assert found.growth == found.peak - found.before


def test_a_budget_that_is_too_small_is_named_across_processes(capsys, monkeypatch):
    def in_this_process(command, **options):
        memory.main(command[-1])
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr("deepzero.measure.peak_memory.subprocess.run", in_this_process)
    with pytest.raises(BudgetError, match="memory budget"):
        memory.measure_memory({"features.0.weight": 2}, threads=1, budget=1 << 16, name="digits", batch=64)


@pytest.mark.parametrize(("stderr", "last"), [("Traceback ...\nKilled: too much", "Killed: too much"), ("", "nothing")])
def test_a_process_that_dies_is_an_error_with_its_last_words(monkeypatch, stderr, last):
    monkeypatch.setattr(
        "deepzero.measure.peak_memory.subprocess.run",
        lambda command, **_: subprocess.CompletedProcess(command, -9, "", stderr),
    )
    with pytest.raises(DeepZeroError, match=rf"ended with code -9: .*{last}$"):
        memory.measure_memory({}, threads=1, budget=None, name="digits", batch=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads must be an integer of at least 1, got 0"),
        ({"rounds": 0}, "rounds must be an integer of at least 1, got 0"),
        ({"seconds_per_side": 0.0}, "seconds_per_side must be a finite number above 0, got 0.0"),
        ({"budget_mib": -5}, "budget_mib must be an integer of at least 1, got -5"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(InvalidInputError) as caught:
        bench.Settings(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg", {}, "case must be one of cnn, digits, resnet20; got 'vgg'"),
        ("digits", {"batch": 1}, "batch must be an integer of at least 2, got 1"),
        ("digits", {"batch": 10_000}, "too few for batch=10000"),
        ("cnn", {"sparsity": 1.0}, "sparsity must lie in [0, 1), got 1.0"),
        ("cnn", {"step_size": float("nan")}, "step_size must be a finite number above 0, got nan"),
    ],
)
def test_problems_are_checked(name, options, message):
    with pytest.raises(InvalidInputError) as caught:
        bench.problem(name, **options)
    assert message in str(caught.value)


def test_resnet20_is_thinned_by_smart_ratio():
    asked = bench.problem("resnet20", batch=2)
    assert asked.coordinates.count == 28_217
    assert bench.problem("resnet20", batch=2, sparsity=0.0).coordinates.count == 269_722
