"""The loss around the weights of real runs: which weights, whose gradient, what is kept and shown."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from deepzero.errors import RunFolderError
from deepzero.losses import LOSSES
from deepzero.models.mlp import MLP
from deepzero.report import documents
from deepzero.tasks import classification
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
    from_record,
)
from deepzero.tasks.run_surface import surface
from deepzero.tasks.task_data import read_data, training_batches
from deepzero.training import TrainingConfig

CONFIG = ClassificationConfig(
    data=DataConfig(name="digits", limit=64, batch_size=16),
    model=ModelConfig(name="mlp", options={"hidden": (8,)}),
    estimator=EstimatorConfig(method="fo"),
    training=TrainingConfig(epochs=2, warmup_epochs=0),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    path = tmp_path_factory.mktemp("surface") / "run"
    return path, classification.train(CONFIG, out=path).model


def test_the_middle_is_the_loss_of_the_selected_weights_on_the_first_batch(run: tuple[Path, MLP]) -> None:
    path, model = run
    found = surface(path, points=3)
    x, y = training_batches(CONFIG.data, read_data(CONFIG.data).train, seed=0, device=torch.device("cpu")).batch(0, 0)
    model.train()
    loss = LOSSES[CONFIG.loss](model(x), y).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert found["losses"][1][1] == pytest.approx(loss.item(), rel=1e-5)
    assert found["gradient_norm"] == pytest.approx(float(sum(g.square().sum() for g in gradients)) ** 0.5, rel=1e-4)
    fine = surface(path, points=3, radius=1e-3)
    assert fine["slope"] == pytest.approx(found["gradient_norm"], rel=1e-2)


def test_it_is_kept_and_shown_with_what_it_took(run: tuple[Path, MLP]) -> None:
    path, _ = run
    found = surface(path, points=5)
    assert json.loads((path / "surface.json").read_text()) == json.loads(json.dumps(found))
    [shown] = documents([path])[0].maps
    assert [list(row) for row in shown.values] == found["losses"]
    assert list(shown.x) == list(shown.y) == found["distances"]
    assert "25 function values, and 1 for the gradient" in shown.note
    assert "the selected weights, of epoch" in shown.note


@pytest.mark.parametrize("pattern", ["dynamic", "static"])
def test_the_gradient_is_the_estimate_of_the_run_itself(tmp_path: Path, pattern: str) -> None:
    sparsity = SparsityConfig(sparsity=0.5, ratios="magnitude", pattern=pattern)
    config = replace(CONFIG, estimator=EstimatorConfig(method="cge"), sparsity=sparsity)
    classification.train(replace(config, training=TrainingConfig(epochs=1, warmup_epochs=0)), out=tmp_path / "run")
    found = surface(tmp_path / "run", points=3)
    kept = json.loads((tmp_path / "run" / "ratios.json").read_text())["keep"]
    sizes = {"hidden.0.weight": 512, "fc.weight": 80}
    assert found["gradient_queries"] == 1 + 18 + sum(round(kept[name] * size) for name, size in sizes.items())


def test_a_run_that_has_not_finished_is_looked_at_where_its_last_checkpoint_is(
    run: tuple[Path, MLP], tmp_path: Path
) -> None:
    path = tmp_path / "unfinished"
    shutil.copytree(run[0], path)
    (path / "summary.json").unlink()
    assert surface(path, points=3)["weights"] == "the weights of step 8"
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(RunFolderError, match="holds no weights yet"):
        surface(path, points=3)


def test_the_configuration_comes_back_from_the_record(run: tuple[Path, MLP]) -> None:
    record = json.loads((run[0] / "run.json").read_text())
    assert json.dumps(record["config"], sort_keys=True) == json.dumps(
        asdict(from_record(record["config"])), sort_keys=True
    )


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError):
        surface(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "deepzero run 1", "config": {"defense": {}}}')
    with pytest.raises(RunFolderError, match="of another kind; leave out --surface"):
        surface(tmp_path)
