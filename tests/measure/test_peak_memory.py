"""Memory of calls, and of estimates in processes of their own."""

import subprocess
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from deepzero.errors import BudgetError, DeepZeroError
from deepzero.measure import peak_memory
from deepzero.measure.peak_memory import peak_during


def test_the_peak_of_a_call_is_what_it_held_for_a_while() -> None:
    megabytes = 64

    def hold() -> None:
        torch.ones(megabytes << 18)  # float32, and written to

    found = peak_during(hold, torch.device("cpu"))
    assert found.kind == "resident set of the process"
    assert 0.5 * megabytes < found.growth / 2**20 < 4 * megabytes
    assert peak_during(lambda: None, torch.device("cpu")).growth < 0.25 * megabytes * 2**20


def test_memory_of_an_estimate_in_a_new_process() -> None:
    found = peak_memory.measure_memory(
        {"fc.weight": 20, "fc.bias": 10}, threads=1, budget=64 << 20, name="digits", batch=4
    )
    assert found.budget == 64 << 20
    assert found.queries == 31
    assert found.fraction == pytest.approx(30 / 4954)
    assert 0 <= found.growth < found.peak
    assert found.growth == found.peak - found.before


def test_a_budget_that_is_too_small_is_named_across_processes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(command: list[str], **options: Any) -> CompletedProcess:
        peak_memory.main(command[-1])
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr("deepzero.measure.peak_memory.subprocess.run", in_this_process)
    with pytest.raises(BudgetError, match="memory budget"):
        peak_memory.measure_memory({"features.0.weight": 2}, threads=1, budget=1 << 16, name="digits", batch=64)


@pytest.mark.parametrize(("stderr", "last"), [("Traceback ...\nKilled: too much", "Killed: too much"), ("", "nothing")])
def test_a_process_that_dies_is_an_error_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, stderr: str, last: str
) -> None:
    monkeypatch.setattr(
        "deepzero.measure.peak_memory.subprocess.run",
        lambda command, **_: subprocess.CompletedProcess(command, -9, "", stderr),
    )
    with pytest.raises(DeepZeroError, match=rf"ended with code -9: .*{last}$"):
        peak_memory.measure_memory({}, threads=1, budget=None, name="digits", batch=4)
