import json
from dataclasses import asdict

import pytest

from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.recipes import customize, find
from deepzero.tasks import diagnosis
from deepzero.tasks.config import ClassificationConfig, DataConfig, ModelConfig, SparsityConfig

SETTINGS = {"limit": 64, "batch_size": 16, "epochs": 3, "sparsity": 0.0}


@pytest.fixture(scope="module")
def config():
    return customize(find("digits").config(), **SETTINGS)


@pytest.fixture(scope="module")
def found(config):
    return diagnosis.diagnose(config, seconds=0.5)


def test_the_first_step_of_the_run_is_examined(found):
    assert found.healthy
    assert found.determinism.mode == "train"
    assert found.forecast.queries == 4955
    assert found.trial.learning_rate == 0.1
    assert found.gradients.cosine > 0.95


def test_an_epoch_includes_what_the_loop_does_besides(found):
    forecast, loop = found.forecast, found.forecast.loop
    assert (loop.steps_per_epoch, loop.epochs) == (4, 3)
    assert loop.step_overhead > 0
    assert loop.epoch_overhead > 0
    steps = 4 * (forecast.seconds_per_step + loop.step_overhead)
    assert forecast.seconds_per_epoch == pytest.approx(steps + loop.epoch_overhead)


def test_report_and_plot_are_written_and_replaced(tmp_path, found, config):
    for _ in range(2):
        diagnosis.write(found, tmp_path / "new", asdict(config), title="digits")
    record = json.loads((tmp_path / "new" / "diagnosis.json").read_text())
    assert record["diagnosis"]["forecast"]["queries"] == 4955
    assert record["config"]["data"]["batch_size"] == 16
    assert {"versions", "hardware"} <= record.keys()
    assert (tmp_path / "new" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written(tmp_path, found, config):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="choose another --out"):
        diagnosis.write(found, tmp_path / "file" / "below", asdict(config))


def test_autograd_needs_no_doctor(config):
    with pytest.raises(InvalidInputError, match="choose the estimator cge or rge"):
        diagnosis.diagnose(customize(config, estimator="fo"))


def test_a_pruned_run_is_examined_at_its_pruned_weights(monkeypatch):
    seen = {}

    def keep(zo, *_, **__):
        seen.update({name: p.detach().clone() for name, p in zo.objective.model.named_parameters()})
        raise InvalidInputError("seen enough")

    monkeypatch.setattr("deepzero.tasks.diagnosis.examine", keep)
    config = ClassificationConfig(
        data=DataConfig(name="digits", batch_size=16, limit=64),
        model=ModelConfig(name="digits_cnn"),
        sparsity=SparsityConfig(sparsity=0.9, ratios="magnitude", pattern="static", prune=True),
    )
    with pytest.raises(InvalidInputError, match="seen enough"):
        diagnosis.diagnose(config, seconds=0.1)
    weights = [p for p in seen.values() if p.dim() > 1]
    kept = sum(int(p.count_nonzero()) for p in weights) / sum(p.numel() for p in weights)
    assert kept == pytest.approx(0.1, abs=0.01)
