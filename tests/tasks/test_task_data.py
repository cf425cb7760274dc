"""Data of a task: read once for all configurations that differ in their batches alone, and scored on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deepzero import data, models
from deepzero.data.dataset import Splits
from deepzero.tasks.task_config import DataConfig
from deepzero.tasks.task_data import DataReader, Scorer, read_data, training_batches

CONFIG = DataConfig(name="digits", limit=64, batch_size=16)
CPU = torch.device("cpu")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Limits of the reads, as they are made."""
    limits, load = [], data.load

    def counted(*args: str, **options: Any) -> Splits:
        limits.append(options["limit"])
        return load(*args, **options)

    monkeypatch.setattr("deepzero.tasks.task_data.data.load", counted)
    return limits


def test_batches_make_no_other_data(reads: list[int | None]) -> None:
    reader = DataReader()
    splits = reader.read(CONFIG)
    assert reader.read(replace(CONFIG, batch_size=8, padding=2, flip=True, drop_last=False)) is splits
    assert reader.known(replace(CONFIG, batch_size=8)) is splits
    assert reads == [64]


@pytest.mark.parametrize("change", [{"limit": 32}, {"validation": 0.0}, {"image_size": 4}])
def test_everything_else_makes_other_data(change: dict[str, object], reads: list[int | None]) -> None:
    reader = DataReader()
    splits, other = reader.read(CONFIG), replace(CONFIG, **change)
    assert reader.known(other) is None
    assert reader.read(other) is not splits
    assert len(reads) == 2


def test_a_scorer_looks_at_every_sample() -> None:
    test = read_data(CONFIG).test
    model = models.build("mlp", num_classes=10, input_shape=test.input_shape, seed=0)
    found = Scorer(test, "cross-entropy", CPU)(model)
    inputs, labels = data.BatchLoader(test, batch_size=len(test)).batch(0, 0)
    outputs = model(inputs)
    assert found["accuracy"] == pytest.approx((outputs.argmax(1) == labels).double().mean().item())
    assert found["loss"] == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-5)


def test_training_batches_are_those_of_the_configuration() -> None:
    train = read_data(CONFIG).train
    plain = training_batches(CONFIG, train, seed=1, device=CPU)
    moved = training_batches(replace(CONFIG, padding=2), train, seed=1, device=CPU)
    assert len(plain) == len(train) // 16
    assert torch.equal(plain.batch(0, 0)[1], moved.batch(0, 0)[1])
    assert not torch.equal(plain.batch(0, 0)[0], moved.batch(0, 0)[0])
