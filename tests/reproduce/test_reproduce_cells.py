"""Cells: their names, and training runs that are continued to the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepzero.data.dataset import Splits
from deepzero.reproduce import Cell, Experiment, Presentation, Request, Scale, SingleMeasurement, Training, reproduce
from deepzero.reproduce.cells import Workplace, training_seconds
from deepzero.tasks.classification import ClassificationConfig, DataConfig, EstimatorConfig, ModelConfig, SparsityConfig
from deepzero.tasks.task_data import read_data
from deepzero.training import TrainingConfig, read_metrics
from deepzero.training.metrics import JsonLines

STEPS = 2 * 3


def config(
    method: str = "fo", *, sparsity: SparsityConfig | None = None, model: str = "mlp", epochs: int = 3, **training: Any
) -> ClassificationConfig:
    """Two batches of digits an epoch."""
    return ClassificationConfig(
        data=DataConfig(name="digits", batch_size=32, limit=64),
        model=ModelConfig(name=model, options={"hidden": ()} if model == "mlp" else {"depth": 1}),
        estimator=EstimatorConfig(method=method),
        sparsity=sparsity or SparsityConfig(sparsity=0.9, ratios="uniform"),
        training=TrainingConfig(epochs=epochs, warmup_epochs=0.0, **training),
    )


def alone(*configs: ClassificationConfig) -> Experiment:
    """An experiment of these runs."""
    scale = Scale(caption="Tiny.")
    return Experiment(
        name="alone",
        title="Runs",
        scales={"smoke": scale},
        cells=lambda _: [Cell(labels={"run": n}, work=Training(c)) for n, c in enumerate(configs)],
        present=lambda *_: Presentation(),
    )


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    curve = {name: values for name, values in result["curve"].items() if name != "seconds"}
    return {name: value for name, value in result.items() if name != "seconds"} | {"curve": curve}


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Every run asks itself to stop once it has made so many steps."""
    made = []
    write = JsonLines.write

    def note(self: Any, record: dict[str, Any]) -> None:
        write(self, record)
        made.append(record["step"])

    monkeypatch.setattr("deepzero.training.metrics.JsonLines.write", note)
    monkeypatch.setattr(
        "deepzero.training.stop_request.StopRequest.reason",
        property(lambda _: "the test" if made and made[-1] >= steps else None),
    )


@pytest.mark.parametrize("method", ["fo", "cge"])
def test_a_training_cell_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    request = Request(experiment=alone(config(method), config(method, epochs=1)), scale="smoke")
    whole = reproduce(request, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        first = reproduce(request, out=tmp_path / "parts")
    assert (first.stopped, first.missing, len(first.document.cells)) == (True, 2, 0)
    steps = [r["step"] for r in read_metrics(tmp_path / "parts/cells/run=0/metrics.jsonl") if r["kind"] == "step"]
    assert steps == [1, 2, 3]
    second = reproduce(request, out=tmp_path / "parts")
    assert (second.stopped, second.missing) == (False, 0)
    for parts, unbroken in zip(second.document.cells, whole.document.cells, strict=True):
        assert timeless(parts["result"]) == timeless(unbroken["result"])
    for run in ("run=0", "run=1"):
        weights = [(tmp_path / out / "cells" / run / "model.safetensors").read_bytes() for out in ("whole", "parts")]
        assert weights[0] == weights[1]


def test_a_time_limit_stops_inside_a_training_cell(tmp_path: Path) -> None:
    long = Request(experiment=alone(config(epochs=2000)), scale="smoke")
    first = reproduce(long, out=tmp_path, max_seconds=0.05)
    assert (first.stopped, first.missing) == (True, 1)
    assert (tmp_path / "cells" / "run=0" / "run.json").exists()
    assert list((tmp_path / "cells" / "run=0" / "checkpoints").iterdir())


def test_a_run_that_had_finished_when_the_process_ended_is_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(experiment=alone(config()), scale="smoke")
    before = reproduce(request, out=tmp_path)
    (tmp_path / "cells" / "run=0.json").unlink()
    monkeypatch.setattr("deepzero.training.trainer.Trainer.fit", None)
    again = reproduce(request, out=tmp_path)
    assert again.document.cells[0]["result"] == before.document.cells[0]["result"]


def test_the_result_of_a_run(tmp_path: Path) -> None:
    done = reproduce(Request(experiment=alone(config("cge")), scale="smoke"), out=tmp_path)
    [cell] = done.document.cells
    result = cell["result"]
    summary = json.loads((tmp_path / "cells" / "run=0" / "summary.json").read_text())
    for name in ("test_accuracy", "test_loss", "seconds", "queries", "queries_for_ratios", "parameters", "steps"):
        assert result[name] == summary[name]
    assert (result["parameters"], result["steps"]) == (650, STEPS)
    assert result["coordinates"] == {"fc.weight": 64, "fc.bias": 10}
    assert result["queries"] == STEPS * (1 + 64 + 10)
    epochs = [r for r in read_metrics(tmp_path / "cells" / "run=0" / "metrics.jsonl") if r["kind"] == "epoch"]
    assert {name: len(values) for name, values in result["curve"].items()} == dict.fromkeys(
        ("queries", "seconds", "training_loss", "validation_accuracy"), 3
    )
    assert result["curve"]["validation_accuracy"] == [record["validation_accuracy"] for record in epochs]
    assert cell["settings"]["training"]["estimator"]["method"] == "cge"
    assert not (tmp_path / "cells" / "run=0" / "checkpoints").exists()
    assert (tmp_path / "cells" / "run=0" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "sparsity",
    [
        SparsityConfig(),
        SparsityConfig(sparsity=0.7, ratios="smart-ratio"),
        SparsityConfig(sparsity=0.7, ratios="random", pattern="static"),
        SparsityConfig(sparsity=0.7, ratios="magnitude"),
        SparsityConfig(sparsity=0.7, ratios="cost-aware", weights="sensitivity"),
    ],
    ids=["dense", "smart-ratio", "static", "magnitude", "cost-aware"],
)
def test_the_coordinates_are_those_that_are_queried(tmp_path: Path, sparsity: SparsityConfig) -> None:
    result = Training(config("cge", sparsity=sparsity, model="simple_cnn", epochs=1)).run(tmp_path, Workplace())
    assert result["queries"] == result["queries_for_ratios"] + 2 * (1 + sum(result["coordinates"].values()))


def test_where_every_step_ranks_anew_no_coordinates_are_told(tmp_path: Path) -> None:
    sparsity = SparsityConfig(sparsity=0.5, pattern="alternating", queries=2, per_class=1)
    assert Training(config(sparsity=sparsity, epochs=1)).run(tmp_path, Workplace())["coordinates"] is None


def test_without_validation_images_the_curve_has_no_accuracy(tmp_path: Path) -> None:
    plain = config(epochs=2)
    result = Training(replace(plain, data=replace(plain.data, validation=0.0))).run(tmp_path, Workplace())
    assert result["curve"]["validation_accuracy"] == [None, None]
    assert len(result["curve"]["training_loss"]) == 2


def test_images_are_read_once_for_each_set(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def load(wanted: DataConfig, data_dir: Any) -> Splits:
        reads.append((wanted.limit, data_dir))
        return read_data(wanted, data_dir)

    monkeypatch.setattr("deepzero.tasks.task_data.read_data", load)
    place = Workplace()
    small, large = config(), replace(config(), data=DataConfig(name="digits", batch_size=32, limit=128))
    first = place.images(small)
    assert place.images(replace(small, seed=3, data=replace(small.data, batch_size=16))) is first
    assert len(place.images(large).train) == 128
    assert len(place.images(small).train) == 64
    assert reads == [(64, None), (128, None)]


def test_a_forecast_is_the_time_of_a_step_times_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzero.reproduce.cells.mean_seconds", lambda function, seconds: 2.0)
    made = config(epochs=5)
    took = training_seconds(made, read_data(made.data))
    assert 5 * 2 * 2.0 <= took < 5 * 2 * 2.0 + 2.0  # and the choice of coordinates
    assert Training(made).forecast(Workplace()) == pytest.approx(took, abs=2.0)


def test_a_forecast_of_estimates_grows_with_the_epochs() -> None:
    few, many = (
        training_seconds(c, read_data(c.data)) for c in (config("cge", epochs=1), config("cge", epochs=10_000))
    )
    assert 30 * few < many


def test_measurements_state_what_they_take(tmp_path: Path) -> None:
    def measure(*, wide: int, device: str) -> dict[str, int | str]:
        return {"wide": wide, "device": device}

    work = SingleMeasurement(measure, {"wide": 3}, seconds=7.0)
    assert work.run(tmp_path, Workplace(device="cpu")) == {"wide": 3, "device": "cpu"}
    assert work.settings() == {"measurement": "measure", "options": {"wide": 3}}
    assert work.forecast(Workplace()) == 7.0


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ({"d": 730, "method": "RGE, small-step limit"}, "d=730-method=RGE_small_step_limit"),
        ({"rule": "cost^(-1/2)"}, "rule=cost_1_2"),
        ({"path": "../up"}, "path=.._up"),
        ({"x": 0.5}, "x=0.5"),
    ],
)
def test_names_are_names_of_files(labels: dict[str, Any], name: str) -> None:
    assert Cell(labels=labels, work=SingleMeasurement(dict, {})).name == name
