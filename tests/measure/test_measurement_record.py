"""Records carry the circumstances of a measurement."""

import json
import math
from pathlib import Path

import pytest
import torch

from deepzero.measure.measurement_record import command_line, environment, flat_heading, heading, write_record


def test_the_environment_has_hardware_versions_and_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 0.25, 0.125))
    found = environment(libraries=["numpy"])
    assert {"cpu", "cores", "threads", "gpu", "platform"} <= set(found)
    assert set(found["versions"]) == {"python", "torch", "deepzero", "numpy"}
    assert found["load_average_before"] == (0.5, 0.25, 0.125)
    assert found["gpu"] is None


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"the card of {device}")
    assert environment(torch.device("cuda", 0))["gpu"] == "the card of cuda:0"


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks/zoo.py", "--out", "my record.json"])
    assert command_line() == "python benchmarks/zoo.py --out 'my record.json'"
    assert command_line("deepzero") == "deepzero --out 'my record.json'"


def test_headings() -> None:
    circumstances = {"cpu": "a cpu", "threads": 1, "versions": {"torch": "2"}, "load_average_before": (1.5, 1.0, 0.5)}
    found = heading(circumstances, command="a command")
    assert found.pop("date").endswith("+00:00")
    assert found == {"command": "a command", "environment": circumstances}
    flat = flat_heading(circumstances, command="a command")
    assert flat["hardware"] == {"cpu": "a cpu", "threads": 1}
    assert (flat["versions"], flat["load_before"], flat["environment"]) == ({"torch": "2"}, 1.5, circumstances)
    assert flat_heading({**circumstances, "load_average_before": None})["load_before"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_json_does_not_have_does_not_cost_the_record(tmp_path: Path, value: float) -> None:
    write_record(tmp_path / "record.json", {"seconds": [1.0, value]})
    assert json.loads((tmp_path / "record.json").read_text()) == {"seconds": [1.0, None]}


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_record(None, {"seconds": 1.0})
    assert list(tmp_path.iterdir()) == []
