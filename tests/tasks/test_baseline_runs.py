"""Every baseline is trained by the same loop: it runs from a configuration, and goes on bitwise after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deepzero import baselines
from deepzero.errors import InvalidInputError
from deepzero.tasks import classification
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.training import CheckpointStore, TrainingConfig
from deepzero.training.checkpoint import Checkpoint

WIDE = ModelConfig(name="wide_cnn", options={"width": 4})
MIXER = ModelConfig(name="local_mixer", options={"blocks": 2, "patches": 2, "channels": 8, "groups": 2})
MLP = ModelConfig(name="mlp", options={"hidden": (8,)})
CASES = {
    "align-ada": (WIDE, {}),
    "align-prop": (WIDE, {}),
    "align-zero": (WIDE, {}),
    "dfa": (WIDE, {}),
    "fa": (WIDE, {}),
    "fg-w": (MIXER, {"readout": "head"}),
    "lg-fg-a": (MIXER, {}),
    "pattern-search": (MLP, {"queries": 64, "evaluator": "sequential"}),
    "pattern-search-fast": (MLP, {"queries": 64, "models": 17, "evaluator": "propagation"}),
    "rge-limit": (MLP, {"queries": 32}),
}


def config(method: str) -> ClassificationConfig:
    model, options = CASES[method]
    search = method.startswith("pattern-search")
    return ClassificationConfig(
        data=DataConfig(name="digits", batch_size=16, limit=48),
        model=model,
        estimator=EstimatorConfig(method=method, options=options),
        loss="squared-error" if model is WIDE else "cross-entropy",
        training=TrainingConfig(
            epochs=2,
            learning_rate=1.0 if search else 0.1,
            momentum=0.0,
            weight_decay=0.0,
            warmup_epochs=0.0,
            schedule="constant",
            checkpoint_steps=1,
        ),
        seed=1,
    )


def test_every_baseline_is_here() -> None:
    assert sorted(CASES) == baselines.names()


@pytest.mark.parametrize("method", sorted(CASES))
def test_a_stopped_run_goes_on_bitwise(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = classification.train(config(method), out=tmp_path / "whole")
    assert whole.summary is not None
    assert whole.summary["steps"] == 6

    saved = CheckpointStore.save
    seen = []

    def stop_after_two(store: CheckpointStore, checkpoint: Checkpoint) -> None:
        saved(store, checkpoint)
        seen.append(checkpoint.step)
        if checkpoint.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointStore, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        classification.train(config(method), out=tmp_path / "broken")
    monkeypatch.undo()
    again = classification.train(config(method), out=tmp_path / "broken", resume=True)
    assert seen[-1] == 2
    assert again.summary is not None
    assert again.summary["queries"] == whole.summary["queries"]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_a_baseline_that_does_not_fit_says_so_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="takes no sparsity"):
        ClassificationConfig(
            data=DataConfig(name="digits"),
            model=WIDE,
            estimator=EstimatorConfig(method="fa"),
            sparsity=SparsityConfig(sparsity=0.5),
        )
    other = ClassificationConfig(
        data=DataConfig(name="digits", batch_size=16, limit=32), model=MLP, estimator=EstimatorConfig(method="fa")
    )
    with pytest.raises(InvalidInputError, match="WideCNN"):
        classification.train(other, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
