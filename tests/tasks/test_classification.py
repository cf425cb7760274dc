import errno
import json
import os
import threading
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deepzero import PropagationEvaluator
from deepzero.errors import CheckpointError, InvalidInputError, NonFiniteLossError, RunFolderError
from deepzero.report.folder_contents import read
from deepzero.report.run_pages import document
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
    train,
)
from deepzero.tasks.classification.classifier_setup import set_up
from deepzero.tasks.task_data import read_data
from deepzero.training import CheckpointStore, JsonLines, TrainingConfig, read_metrics
from deepzero.training.checkpoint import Checkpoint

STEPS = 6


def config(method: str = "cge", *, model: str = "mlp", sparsity: float = 0.8, **training: Any) -> ClassificationConfig:
    """Three epochs of two batches on a tenth of the digits."""
    return ClassificationConfig(
        data=DataConfig(name="digits", batch_size=32, limit=64, padding=1),
        model=ModelConfig(name=model, options={"hidden": (4,)} if model == "mlp" else {}),
        estimator=EstimatorConfig(method=method, queries=4),
        sparsity=SparsityConfig(sparsity=0.0 if method == "rge" else sparsity, queries=4, per_class=3),
        training=TrainingConfig(**{"epochs": 3, "warmup_epochs": 1, **training}),
    )


def bits(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]], bytes]:
    """Every tensor of every checkpoint, the ratios, and the records without times."""
    stores = [CheckpointStore(folder / "checkpoints", run="").paths()]
    tensors = {path.name: (path / "tensors.safetensors").read_bytes() for path in stores[0]}
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in read_metrics(folder / "metrics.jsonl")]
    return tensors, records, (folder / "ratios.json").read_bytes()


def stopping_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the next run ask itself to stop once it has made so many steps."""
    made = []
    write = JsonLines.write

    def note(self: Any, record: dict[str, Any]) -> None:
        write(self, record)
        made.append(record)

    monkeypatch.setattr("deepzero.training.metrics.JsonLines.write", note)
    monkeypatch.setattr(
        "deepzero.training.stop_request.StopRequest.reason",
        property(lambda self: "the test" if made and made[-1]["step"] >= step else None),
    )


def test_a_run_leaves_a_complete_record(tmp_path: Path) -> None:
    result = train(config(), out=tmp_path / "run")
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert files == [
        "README.md",
        "checkpoints",
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
        "plot.png",
        "ratios.json",
        "run.json",
        "summary.json",
    ]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert sorted(summary.pop("sha256")) == ["model.json", "model.safetensors"]
    assert summary == result.summary
    assert summary["steps"] == STEPS
    assert summary["seed"] == 0
    assert summary["parameters"] == 64 * 4 + 4 + 4 * 10 + 10
    assert summary["queries_for_ratios"] == 2 * (4 + 1)
    kept = 296 - round(0.8 * 296)
    assert summary["queries"] == 10 + STEPS * (1 + kept + 14)  # biases are always queried
    assert 0 <= summary["test_accuracy"] <= 1
    assert 0 <= summary["validation_accuracy"] <= 1
    assert summary["seconds"] > 0
    assert set(summary["versions"]) == {"python", "torch", "deepzero"}
    assert summary["hardware"]["cpu"]
    assert summary["config"]["sparsity"]["sparsity"] == 0.8
    assert result.stopped is None


def test_the_test_set_is_looked_at_once_with_the_selected_weights(tmp_path: Path) -> None:
    result = train(config("fo", epochs=4), out=tmp_path)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["kind"] for record in records].count("test") == 1
    assert records[-1]["test_accuracy"] == result.summary["test_accuracy"]
    epochs = [record for record in records if record["kind"] == "epoch"]
    best = max(epochs, key=lambda record: (record["validation_accuracy"], -record["validation_loss"]))
    assert result.summary["selected_epoch"] == best["epoch"]
    assert result.summary["validation_accuracy"] == best["validation_accuracy"]


def test_a_dense_first_order_run_learns(tmp_path: Path) -> None:
    full = config("fo", model="digits_cnn", sparsity=0.0, epochs=15)
    result = train(replace(full, data=DataConfig(name="digits", batch_size=32, limit=320)), out=tmp_path)
    assert result.summary["test_accuracy"] > 0.85


def test_zeroth_and_first_order_runs_agree_at_a_small_step(tmp_path: Path) -> None:
    small = EstimatorConfig(method="cge", step_size=1e-5)
    zo = train(replace(config(), estimator=small), out=tmp_path / "zo")
    fo = train(replace(config(), estimator=replace(small, method="fo")), out=tmp_path / "fo")
    for (name, a), b in zip(zo.model.state_dict().items(), fo.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("method", ["cge", "rge", "fo"])
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    whole = train(config(method), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping_after(patch, 3)
        stopped = train(config(method), out=tmp_path / "parts")
    assert stopped.stopped == "the test"
    assert stopped.summary is None
    assert not (tmp_path / "parts" / "summary.json").exists()
    torch.rand(3)
    resumed = train(config(method), out=tmp_path / "parts", resume=True)
    tensors, *rest = bits(tmp_path / "parts")
    whole_tensors, *whole_rest = bits(tmp_path / "whole")
    assert tensors["step-00000006"] == whole_tensors["step-00000006"]
    assert rest == whole_rest
    assert (tmp_path / "parts" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert resumed.summary["test_loss"] == whole.summary["test_loss"]
    assert resumed.summary["queries"] == whole.summary["queries"]


def test_ratios_that_were_changed_before_a_run_goes_on_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say which coordinates are queried: other ones would end in other weights."""
    train(config(), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping_after(patch, 3)
        train(config(), out=tmp_path / "parts")
    ratios = tmp_path / "parts" / "ratios.json"
    kept = ratios.read_bytes()
    changed = json.loads(kept)
    changed["keep"] = {name: min(1.0, 2 * part) for name, part in changed["keep"].items()}
    ratios.write_text(json.dumps(changed))
    with pytest.raises(RunFolderError, match=r"ratios\.json of the run in .* is not what it was when the run began"):
        train(config(), out=tmp_path / "parts", resume=True)
    ratios.unlink()  # found again
    train(config(), out=tmp_path / "parts", resume=True)
    assert ratios.read_bytes() == kept
    assert bits(tmp_path / "parts")[0]["step-00000006"] == bits(tmp_path / "whole")[0]["step-00000006"]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(replace(config("fo"), seed=seed), out=tmp_path / name)
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert bits(tmp_path / "a")[0] != bits(tmp_path / "c")[0]


def test_the_global_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train(config("rge"), out=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


class GraphWatch(TorchDispatchMode):
    """Notes every operation whose result autograd would record: grad mode is on and an input requires a gradient."""

    def __init__(self, found: dict[str, int | set[Any]]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: tuple[type[Tensor]], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.found["operations"] += 1
        if (
            torch.is_grad_enabled()
            and any(torch.Tensor.requires_grad.__get__(x) for x in inputs)  # a query's stand-in only says that it does
            and func is not torch.ops.aten.detach.default
        ):
            self.found["recorded"].add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "recorded"), [("cge", False), ("rge", False), ("fo", True)])
def test_no_autograd_graph_is_built_anywhere_in_a_zeroth_order_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, recorded: bool
) -> None:
    """On any thread, from loading to the last evaluation; the first-order run shows that the watch would notice."""
    found = {"operations": 0, "recorded": set(), "engine": 0}
    run = threading.Thread.run

    def watched_run(self: Any) -> None:
        with GraphWatch(found):
            run(self)

    def count(name: str, module: types.ModuleType) -> None:
        engine = getattr(module, name)

        def counted(*args: bool | tuple[Any, ...], **kwargs: Any) -> tuple[Tensor, ...]:
            found["engine"] += 1
            return engine(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    monkeypatch.setattr(threading.Thread, "run", watched_run)
    count("_engine_run_backward", torch.autograd)
    count("_engine_run_backward", torch.autograd.graph)
    with GraphWatch(found):
        train(config(method, model="digits_cnn", sparsity=0.99, epochs=1), out=tmp_path)
    assert found["operations"] > 100
    assert bool(found["recorded"]) is recorded, found["recorded"]
    assert bool(found["engine"]) is recorded


def test_a_folder_with_another_run_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config("fo"), out=tmp_path)
    monkeypatch.setattr("deepzero.data.load", None)
    with pytest.raises(RunFolderError, match="holds another run; continue that with --resume"):
        train(config("fo"), out=tmp_path)
    with pytest.raises(RunFolderError, match=r"training\.epochs: 3 there, 5 asked"):
        train(config("fo", epochs=5), out=tmp_path, resume=True)


def test_resuming_a_finished_run_reads_its_result(tmp_path: Path) -> None:
    first = train(config("fo"), out=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = train(config("fo"), out=tmp_path, resume=True)
    assert again.summary == first.summary
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for a, b in zip(again.model.state_dict().values(), first.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_damaged_checkpoint_falls_back_to_the_previous_one_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(config("fo"), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping_after(patch, 5)
        train(config("fo", checkpoint_steps=2), out=tmp_path / "parts")
    newest = tmp_path / "parts" / "checkpoints" / "step-00000005" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = train(config("fo", checkpoint_steps=2), out=tmp_path / "parts", resume=True)
    assert "step-00000005 is corrupted" in caplog.text
    assert "falling back to" in caplog.text
    assert "step-00000004" in caplog.text
    assert resumed.summary["test_loss"] == whole.summary["test_loss"]


def test_other_versions_are_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train(config("fo"), out=tmp_path, max_seconds=1e-6)
    monkeypatch.setattr("deepzero.training.shared_run.versions", lambda: {"torch": "3.0"})
    train(config("fo"), out=tmp_path, resume=True)
    assert "goes on under {'torch': '3.0'}: its bits may differ" in caplog.text


def test_a_run_stopped_before_its_first_checkpoint_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Any, checkpoint: Checkpoint) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deepzero.training.checkpoint.CheckpointStore.save", die)
        with pytest.raises(KeyboardInterrupt):
            train(config("fo"), out=tmp_path)
    assert train(config("fo"), out=tmp_path, resume=True).summary["steps"] == STEPS


def test_a_disk_that_fills_up_leaves_a_run_that_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(config("fo"), out=tmp_path / "whole")
    fsync = os.fsync
    saved = []

    def fill_up(descriptor: int) -> None:
        saved.append(descriptor)
        if len(saved) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill_up)
        with pytest.raises(
            CheckpointError, match=r"(?s)No space left.*is intact: make room and continue with --resume"
        ):
            train(config("fo", checkpoint_steps=1), out=tmp_path / "full")
    resumed = train(config("fo", checkpoint_steps=1), out=tmp_path / "full", resume=True)
    assert resumed.summary["test_loss"] == whole.summary["test_loss"]


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"(?s)last good checkpoint is .*doctor"):
        train(config("cge", learning_rate=1e30, momentum=0.0), out=tmp_path)
    assert CheckpointStore(tmp_path / "checkpoints", run="").paths()
    assert not (tmp_path / "summary.json").exists()


def test_a_test_loss_that_is_not_finite_does_not_lose_a_run_that_has_come_to_its_end(tmp_path: Path) -> None:
    """JSON has no NaN: the loss is null, and the accuracy stands beside it."""
    splits = read_data(config("fo").data)
    signs = torch.arange(splits.test.inputs.numel()).reshape(splits.test.inputs.shape) % 2 * 2.0 - 1
    signs[::2] *= -1
    blinding = replace(splits.test, inputs=3e38 * signs, scale=1e-3)
    result = train(config("fo"), out=tmp_path, splits=replace(splits, test=blinding))
    assert result.summary["test_loss"] is None
    assert 0 <= result.summary["test_accuracy"] <= 1
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["test_loss"] is None
    assert train(config("fo"), out=tmp_path, splits=splits, resume=True).summary["test_loss"] is None
    assert "test_loss" in document(read(tmp_path), name="run").facts


def test_a_time_limit_stops_with_everything_saved(tmp_path: Path) -> None:
    result = train(config("fo"), out=tmp_path, max_seconds=1e-6)
    assert "time limit" in result.stopped
    assert train(config("fo"), out=tmp_path, resume=True).summary["steps"] == STEPS


def test_without_a_validation_split_the_last_weights_are_taken(tmp_path: Path) -> None:
    plain = config("fo")
    result = train(replace(plain, data=replace(plain.data, validation=0.0)), out=tmp_path)
    assert result.summary["validation_accuracy"] is None
    assert result.summary["selected_epoch"] == 2


@pytest.mark.parametrize("ratios", ["smart-ratio", "uniform"])
def test_ratios_that_need_no_queries(tmp_path: Path, ratios: str) -> None:
    made = config("fo", model="digits_cnn")
    made = replace(made, sparsity=replace(made.sparsity, ratios=ratios))
    assert train(made, out=tmp_path).summary["queries_for_ratios"] == 0
    assert json.loads((tmp_path / "ratios.json").read_text())["keep"]


@pytest.mark.parametrize("device", ["tpu", "mps", "cuda:99999"])
def test_an_unusable_device_is_refused_before_anything_is_written(tmp_path: Path, device: str) -> None:
    with pytest.raises(InvalidInputError, match="cpu"):
        train(config("fo"), out=tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()


def halved() -> ClassificationConfig:
    """Differences are to be stored in float16."""
    whole = config()
    return replace(whole, estimator=replace(whole.estimator, storage="float16"))


def test_differences_in_float16_are_refused_on_a_cpu_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="storage must be float32 on the device cpu"):
        train(halved(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_a_gpu_is_read_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as there:
        there.setattr("deepzero.tasks.classification.train_classifier._require_storage", lambda *_: None)
        summary = train(halved(), out=tmp_path).summary
    assert train(halved(), out=tmp_path, resume=True).summary == summary


@pytest.mark.parametrize(("made", "storage"), [(config(), None), (halved(), torch.float16)])
def test_the_estimator_stores_differences_as_configured(
    made: ClassificationConfig, storage: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.dtype | None] = []

    def evaluator(**options: Any) -> PropagationEvaluator:
        asked.append(options["storage"])
        return PropagationEvaluator(**options)

    monkeypatch.setattr("deepzero.tasks.classification.classifier_setup.PropagationEvaluator", evaluator)
    set_up(made, read_data(made.data).train, torch.device("cpu"))
    assert asked == [storage]


def test_tensorboard_is_written_on_request(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(config("fo"), out=tmp_path, loggers=["tensorboard"])
    assert list((tmp_path / "tensorboard").iterdir())
