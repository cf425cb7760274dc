"""TensorBoard, Weights & Biases and MLflow themselves, offline: what they hold is read back with their own formats."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from deepzero.errors import InvalidInputError, MissingPackageError
from deepzero.training import MLflow, Sink, TensorBoard, WandB, open_logger
from deepzero.training.loggers import LOGGERS, numbers_of

CONFIG = {"training": {"learning_rate": 0.1, "epochs": 2}, "seed": 0}
Points = dict[str, list[tuple[int, float]]]


def training_step(number: int) -> dict[str, Any]:
    return {"kind": "step", "step": number, "queries": 10 * number, "seconds": 0.5 * number, "loss": 1 / number}


def epoch(number: int) -> dict[str, Any]:
    return {"kind": "epoch", "step": number, "queries": 10 * number, "seconds": 0.5 * number, "training_loss": 0.25}


RECORDS = [*map(training_step, range(1, 5)), epoch(4), training_step(5), training_step(6), epoch(6)]
TRAINED = [(step, 1 / step) for step in range(1, 7)]


def wandb_records(folder: Path) -> Iterator[Any]:
    """Records of all runs that were made offline, oldest first: LevelDB's log format, protocol buffers inside."""
    wandb.teardown()  # ends the process that writes
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, message = path.read_bytes(), 7, b""  # a header of 7 bytes: magic word and version
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:  # no record header begins in the last 6 bytes of a block
                at += 32768 - at % 32768
                continue
            length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            if at + 7 + length > len(data):
                break  # is being written
            message += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                yield wandb_internal_pb2.Record.FromString(message)
                message = b""


def wandb_points(folder: Path) -> Points:
    found: Points = {}
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            for key, value in values.items():
                if not key.startswith("_"):
                    found.setdefault(key, []).append((int(values["_step"]), value))
    return found


def mlflow_points(client: MlflowClient, run_id: str) -> Points:
    keys = client.get_run(run_id).data.metrics
    return {key: [(m.step, m.value) for m in client.get_metric_history(run_id, key)] for key in keys}


def tensorboard_points(folder: Path) -> Points:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {key: [(e.step, e.value) for e in events.Scalars(key)] for key in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tracking store of MLflow; its tables take seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def environment(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user has set who works offline."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)


def read_back(name: str, folder: Path, store: str) -> Points:
    if name == "wandb":
        return wandb_points(folder)
    if name == "tensorboard":
        return tensorboard_points(folder / "tensorboard")
    run_id = json.loads((folder / "mlflow.jsonl").read_text().splitlines()[0])["id"]
    return mlflow_points(MlflowClient(tracking_uri=store), run_id)


def close_to(points: list[tuple[int, float]], expected: list[tuple[int, float]]) -> bool:
    """The same points, in each of which TensorBoard rounds to float32."""
    return [step for step, _ in points] == [step for step, _ in expected] and np.allclose(points, expected)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", LOGGERS)
def test_a_resumed_run_goes_on_in_the_same_curves(name: str, tmp_path: Path, store: str) -> None:
    """Killed after step 5, resumed from the checkpoint of step 4: step 5 comes twice and is there once."""
    first = open_logger(name, tmp_path, config=CONFIG)
    for record in RECORDS[:6]:
        first.write(record)
    first.close()
    resumed = open_logger(name, tmp_path, config=CONFIG)
    for record in RECORDS[5:]:
        resumed.write(record)
    resumed.close()
    points = read_back(name, tmp_path, store)
    assert set(points) == {
        *("step/queries", "step/seconds", "step/loss"),
        *("epoch/queries", "epoch/seconds", "epoch/training_loss"),
    }
    assert close_to(points["step/loss"], TRAINED)
    assert close_to(points["step/queries"], [(step, 10 * step) for step in range(1, 7)])
    assert close_to(points["epoch/training_loss"], [(4, 0.25), (6, 0.25)])


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", LOGGERS)
def test_nothing_is_drawn_from_the_global_generators(name: str, tmp_path: Path) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    sink = open_logger(name, tmp_path)
    sink.write(training_step(1))
    sink.close()
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


def test_wandb_holds_the_run_its_settings_and_one_id(tmp_path: Path, environment: None) -> None:
    for step in (1, 2):
        sink = WandB(tmp_path / "first", project="digits", name="trial", mode="offline", config=CONFIG)
        sink.write(training_step(step))
        sink.close()
    other = WandB(tmp_path / "second", mode="offline", dir=tmp_path / "second")
    other.close()
    kinds = [(r.WhichOneof("record_type"), r) for r in wandb_records(tmp_path / "first")]
    runs = [r.run for kind, r in kinds if kind == "run"]
    assert {(run.project, run.display_name) for run in runs} == {("digits", "trial")}
    assert len({run.run_id for run in runs}) == 1
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert [r.exit.exit_code for kind, r in kinds if kind == "exit"] == [0, 0]
    (second,) = {r.run.run_id for r in wandb_records(tmp_path / "second") if r.WhichOneof("record_type") == "run"}
    assert second != runs[0].run_id
    assert next(r.run.project for r in wandb_records(tmp_path / "second") if r.HasField("run")) == "deepzero"


def test_wandb_is_told_of_a_failure(tmp_path: Path, environment: None) -> None:
    sink = WandB(tmp_path)
    with pytest.raises(ArithmeticError), closing(sink):
        raise ArithmeticError
    assert [r.exit.exit_code for r in wandb_records(tmp_path) if r.HasField("exit")] == [1]


KILLED = """
import sys, time
from deepzero.training import open_logger
from deepzero.training.loggers import FLUSH_SECONDS

sink = open_logger(sys.argv[1], sys.argv[2])
for step in range(1, 6):
    sink.write({"kind": "step", "step": step, "queries": 10 * step, "seconds": 0.5 * step, "loss": 1 / step})
time.sleep(FLUSH_SECONDS)
sink.write({"kind": "epoch", "step": 5, "queries": 50, "seconds": 2.5, "training_loss": 0.25})
time.sleep(600)
"""


def is_told(name: str, folder: Path) -> bool:
    """Whether the steps of ``KILLED`` have left it; W&B holds back the fifth, which might get more numbers."""
    if name == "wandb":
        return len(wandb_points(folder).get("step/loss", ())) == 4
    path = folder / "mlflow.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") > 5


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_killed_process_leaves_what_it_told(name: str, tmp_path: Path, store: str) -> None:
    own = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # not this process's
    command = [sys.executable, "-c", KILLED, name, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=own) as process:
        deadline = time.monotonic() + 150
        while not is_told(name, tmp_path) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    resumed = open_logger(name, tmp_path)
    for step in (4, 5, 6):
        resumed.write(training_step(step))
    resumed.close()
    assert close_to(read_back(name, tmp_path, store)["step/loss"], TRAINED)


def test_mlflow_holds_the_run_and_its_settings(tmp_path: Path, store: str) -> None:
    sink = MLflow(tmp_path / "run", tracking_uri=store, experiment="digits", config={**CONFIG, "note": None})
    assert sink.client.get_run(sink.run_id).info.status == "RUNNING"
    sink.write(training_step(1))
    sink.write({**epoch(1), "training_loss": math.nan})
    sink.close()
    run = MlflowClient(tracking_uri=store).get_run(sink.run_id)
    assert run.data.params == {"training.learning_rate": "0.1", "training.epochs": "2", "seed": "0", "note": "None"}
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert MlflowClient(tracking_uri=store).get_experiment(run.info.experiment_id).name == "digits"
    assert math.isnan(run.data.metrics["epoch/training_loss"])
    assert MLflow(tracking_uri=store, experiment="digits").run_id != sink.run_id


@pytest.mark.parametrize(("error", "status"), [(ArithmeticError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_mlflow_is_told_of_a_failure(error: type[BaseException], status: str, tmp_path: Path, store: str) -> None:
    sink = MLflow(tmp_path, tracking_uri=store)
    with pytest.raises(error), closing(sink):
        raise error
    assert sink.client.get_run(sink.run_id).info.status == status
    resumed = MLflow(tmp_path, tracking_uri=store)
    assert (resumed.run_id, sink.client.get_run(sink.run_id).info.status) == (sink.run_id, "RUNNING")
    resumed.close()


def test_mlflow_is_told_later_if_its_store_does_not_answer(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The training goes on; more records than fit in one call come in several."""
    sink = MLflow(tmp_path, tracking_uri=store)
    log_batch, sizes = sink.client.log_batch, []

    def unreachable(*_: Any, **__: Any) -> None:
        raise MlflowException("no route to host")

    monkeypatch.setattr(sink.client, "log_batch", unreachable)
    monkeypatch.setattr("deepzero.training.loggers.FLUSH_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING, "deepzero"):
        for step in range(1, 401):
            sink.write(training_step(step))
    assert [record.getMessage() for record in caplog.records if "no route to host" in record.getMessage()] == [
        "MLflow does not take measurements now, they are kept and sent later: no route to host"
    ]

    def counted(run_id: str, metrics: Any) -> None:
        sizes.append(len(metrics))
        log_batch(run_id, metrics=metrics)

    monkeypatch.setattr(sink.client, "log_batch", counted)
    sink.close()
    assert sum(sizes) == 1200
    assert max(sizes) <= 1000
    assert len(sizes) > 1
    found = mlflow_points(sink.client, sink.run_id)["step/loss"]
    assert sorted(found) == [(step, pytest.approx(1 / step)) for step in range(1, 401)]


def test_mlflow_says_what_was_lost(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = MLflow(tmp_path, tracking_uri=store)

    def unreachable(*_: Any, **__: Any) -> None:
        raise MlflowException("no route to host")

    for method in ("log_batch", "set_terminated"):
        monkeypatch.setattr(sink.client, method, unreachable)
    sink.write(training_step(1))
    with caplog.at_level(logging.WARNING, "deepzero"):
        sink.close()
    assert "did not take the last 1 records" in caplog.text
    assert "could not be told that the run has ended" in caplog.text


def test_tensorboard_shows_the_settings(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path, config=CONFIG)
    sink.write(training_step(1))
    sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Tensors("config/text_summary")
    assert '"learning_rate": 0.1' in event.tensor_proto.string_val[0].decode()


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("tensorboard", "tensorboard", "tensorboard"),
        ("wandb", "wandb", "wandb"),
        ("mlflow", "mlflow", "mlflow"),
    ],
)
def test_without_the_package_the_error_says_what_to_install(
    name: str, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=rf"is not installed; try pip install 'deepzero\[{extra}\]'"):
        open_logger(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


BAD: dict[str, tuple[Callable[[Path], Sink], str]] = {
    "name": (lambda folder: open_logger("wandbb", folder), "logger must be one of mlflow, tensorboard, wandb; got"),
    "mode": (lambda folder: WandB(folder, mode="off"), "mode must be one of disabled, offline, online; got 'off'"),  # type: ignore[arg-type]
    "store": (lambda folder: MLflow(folder, tracking_uri="carrier-pigeon://x"), "MLflow cannot start the run.*sqlite:"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_opened(kind: str, tmp_path: Path) -> None:
    make, message = BAD[kind]
    with pytest.raises(InvalidInputError, match=message):
        make(tmp_path)


def test_nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(InvalidInputError, match=r"(?s)cannot start the run.*wandb login.*WANDB_MODE=offline"):
        WandB(tmp_path, mode="online")


def test_numbers_are_told_and_nothing_else() -> None:
    record = {"kind": "test", "step": 4, "accuracy": np.float32(0.5), "count": 3, "note": "best", "missing": None}
    assert numbers_of(record) == {"test/accuracy": 0.5, "test/count": 3.0}


def test_a_line_that_was_not_finished_is_left_out(tmp_path: Path, store: str) -> None:
    """A power failure may cut the file anywhere."""
    first = MLflow(tmp_path, tracking_uri=store)
    first.write(training_step(1))
    first.close()
    kept = tmp_path / "mlflow.jsonl"
    kept.write_bytes(kept.read_bytes() + b'{"kind": "st')
    resumed = MLflow(tmp_path, tracking_uri=store)
    for step in (1, 2):
        resumed.write(training_step(step))
    resumed.close()
    assert resumed.run_id == first.run_id
    assert mlflow_points(resumed.client, resumed.run_id)["step/loss"] == [(1, 1.0), (2, 0.5)]
