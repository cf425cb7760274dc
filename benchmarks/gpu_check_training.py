"""A short training on a device, once through and once stopped and resumed."""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from deepzero import data
from deepzero.measure.rounds import Spread
from deepzero.recipes.classification_recipes import cifar10_resnet20
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
    train,
)
from deepzero.training import TrainingConfig, read_metrics

Note = Callable[[dict[str, Any]], None]


def training(device: torch.device, out: Path, data_dir: Path | None, note: Note) -> None:
    """ResNet-20 for a few steps, once through and once stopped and resumed: the weights must have the same bits."""
    config, splits = training_run(device.type, data_dir)
    folder = out / f"training-{os.getpid()}"
    result: dict[str, Any] = {"images": "CIFAR-10" if data_dir else "made up: a pattern a class, and noise"}
    run: dict[str, Any] = {"splits": splits, "device": str(device)}
    whole = train(config, out=folder / "whole", **run)
    assert whole.summary is not None
    records = steps_in(folder / "whole" / "metrics.jsonl")
    gaps = [b["seconds"] - a["seconds"] for a, b in itertools.pairwise(records)]
    queries = [b["queries"] - a["queries"] for a, b in itertools.pairwise(records)]
    result |= {
        "config": whole.summary["config"],
        "steps": whole.summary["steps"],
        "queries": whole.summary["queries"],
        "losses": [r["loss"] for r in records],
        "run_seconds": whole.summary["seconds"],
        "seconds_per_step": asdict(Spread.of(gaps)),
        "queries_per_second": statistics.median(q / s for q, s in zip(queries, gaps, strict=True)),
        "test_accuracy": whole.summary["test_accuracy"],
        "status": "cut off before the resume",
    }
    note(result)
    metrics = folder / "resumed" / "metrics.jsonl"
    with signalled_when(lambda: metrics.exists() and lines_of(metrics) >= len(records) // 2):
        stopped = train(config, out=folder / "resumed", **run)
    at = len(steps_in(metrics))
    resumed = train(config, out=folder / "resumed", resume=True, **run)
    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    same = all(torch.equal(value, theirs[name]) for name, value in ours.items())
    inside = stopped.stopped is not None and 0 < at < len(records)
    result |= {"stopped_after_steps": at, "stopped_inside_the_run": inside, "resumed_bitwise": same}
    result["status"] = "passed" if same and inside else "failed"
    note(result)


def continued_run(folder: Path, kind: str, data_dir: Path | None, seconds: float) -> dict[str, Any]:
    """ResNet-20 on CIFAR-10, 99 % sparse, 50 epochs of batches of 512, from its last checkpoint on, for ``seconds``.

    The folder is kept, so that every call adds to it; the run is the same bit for bit wherever it was cut.
    """
    whole = cifar10_resnet20()
    config = replace(
        whole,
        data=replace(whole.data, batch_size=512),
        sparsity=replace(whole.sparsity, sparsity=0.99, every=1, unit="step"),
        training=replace(whole.training, checkpoint_steps=20),
    )
    begun = (folder / "run.json").exists()
    start = time.monotonic()
    result = train(config, out=folder, resume=begun, data_dir=data_dir, device=kind, max_seconds=seconds)
    records = steps_in(folder / "metrics.jsonl")
    evaluations = [r for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "epoch"]
    return {
        "continued": begun,
        "seconds": time.monotonic() - start,
        "finished": result.summary is not None,
        "steps": len(records),
        "queries": records[-1]["queries"] if records else 0,
        "losses": [r["loss"] for r in records[:: max(1, len(records) // 20)]],
        "last_epoch": evaluations[-1] if evaluations else None,
        "test_accuracy": None if result.summary is None else result.summary["test_accuracy"],
    }


def steps_in(metrics: Path) -> list[dict[str, Any]]:
    """The records of training steps."""
    return [record for record in read_metrics(metrics) if record["kind"] == "step"]


def lines_of(metrics: Path) -> int:
    """Number of whole lines of a file that is being written."""
    return metrics.read_bytes().count(b"\n")


@contextmanager
def signalled_when(condition: Callable[[], bool]) -> Iterator[None]:
    """Send SIGTERM to this process once, as soon as a condition holds in the block: a run stops after its step."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if condition():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def training_run(kind: str, data_dir: Path | None) -> tuple[ClassificationConfig, data.Splits]:
    """The configuration of the training, and its images."""
    batch, count, size, sparsity, rate = (32, 320, 32, 0.999, 0.05) if kind == "cuda" else (8, 32, 8, 0.999, 0.05)
    images = DataConfig(
        name="cifar10", batch_size=batch, validation=0.0, padding=2, flip=True, image_size=size, limit=count
    )
    config = ClassificationConfig(
        data=images,
        model=ModelConfig(name="resnet20"),
        estimator=EstimatorConfig(method="cge", step_size=5e-3),
        sparsity=SparsityConfig(sparsity=sparsity, ratios="smart-ratio"),
        training=TrainingConfig(epochs=1, learning_rate=rate, warmup_epochs=0.0, checkpoint_steps=2),
    )
    if data_dir is not None:
        splits = data.load("cifar10", data_dir=data_dir, validation=0.0, image_size=size, limit=count)
        few = torch.arange(min(500, len(splits.test)))
        return config, replace(splits, test=splits.test.subset(few))
    return config, data.Splits(
        train=made_up(count, size, 0), validation=made_up(0, size, 1), test=made_up(100, size, 2)
    )


def made_up(count: int, size: int, seed: int) -> data.Dataset:
    """Images in the form of CIFAR-10: one pattern a class, the same in every split, and noise."""
    patterns = torch.randn(10, 3, size, size, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    noise = torch.randn(count, 3, size, size, generator=generator)
    pixels = (128 + 40 * (patterns[labels] + noise)).clamp(0, 255).to(torch.uint8)
    return data.Dataset(
        inputs=pixels, labels=labels, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3, name="made-up patterns"
    )
