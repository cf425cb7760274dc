import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import deepzero as dz
from deepzero.doctor.diagnosis import Diagnosis
from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.estimator import Estimator
from deepzero.recipes import customize, find
from deepzero.tasks import run_diagnosis as diagnosis
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.tasks.run_diagnosis import DiagnosisRecord
from deepzero.training import Autograd, Trainer

SETTINGS = {"limit": 64, "batch_size": 16, "epochs": 3, "sparsity": 0.0}


@pytest.fixture(scope="module")
def config() -> ClassificationConfig:
    return customize(find("digits").config(), **SETTINGS)


@pytest.fixture(scope="module")
def found(config: ClassificationConfig) -> Diagnosis:
    return diagnosis.diagnose(config, seconds=0.5)


def test_the_first_step_of_the_run_is_examined(found: Diagnosis) -> None:
    assert found.healthy
    assert found.determinism.mode == "train"
    assert found.forecast.queries == 4955
    assert found.trial.learning_rate == 0.1
    assert found.gradients.cosine > 0.95


def test_an_epoch_includes_what_the_loop_does_besides(found: Diagnosis) -> None:
    forecast, loop = found.forecast, found.forecast.loop
    assert (loop.steps_per_epoch, loop.epochs) == (4, 3)
    assert loop.step_overhead > 0
    assert loop.epoch_overhead > 0
    steps = 4 * (forecast.seconds_per_step + loop.step_overhead)
    assert forecast.seconds_per_epoch == pytest.approx(steps + loop.epoch_overhead)


def record_of(found: Diagnosis, config: ClassificationConfig, device: str = "cpu") -> DiagnosisRecord:
    return diagnosis.DiagnosisRecord(found, asdict(config), "digits", torch.device(device))


def test_report_and_plot_are_written_and_replaced(
    tmp_path: Path, found: Diagnosis, config: ClassificationConfig
) -> None:
    for _ in range(2):
        record_of(found, config).write(tmp_path / "new")
    record = json.loads((tmp_path / "new" / "diagnosis.json").read_text())
    assert record["diagnosis"]["forecast"]["queries"] == 4955
    assert record["config"]["data"]["batch_size"] == 16
    assert {"versions", "hardware"} <= record.keys()
    assert (tmp_path / "new" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written(tmp_path: Path, found: Diagnosis, config: ClassificationConfig) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="choose another --out"):
        record_of(found, config).write(tmp_path / "file" / "below")


def test_the_device_of_the_examination_is_recorded(
    monkeypatch: pytest.MonkeyPatch, found: Diagnosis, config: ClassificationConfig
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert record_of(found, config).as_dict()["hardware"]["gpu"] is None
    assert record_of(found, config, "cuda:1").as_dict()["hardware"]["gpu"] == "GPU 1"


def test_autograd_needs_no_doctor(config: ClassificationConfig) -> None:
    with pytest.raises(InvalidInputError, match="choose the estimator cge or rge"):
        diagnosis.diagnose(customize(config, estimator="fo"))


def test_a_pruned_run_is_examined_at_its_pruned_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def keep(zo: Estimator, *_: Tensor, **__: Any) -> None:
        seen.update({name: p.detach().clone() for name, p in zo.objective.model.named_parameters()})
        raise InvalidInputError("seen enough")

    monkeypatch.setattr("deepzero.tasks.run_diagnosis.examine", keep)
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


def trainer_of(estimator: Estimator, train: Any, **options: Any) -> Trainer:
    sgd = torch.optim.SGD(estimator.objective.model.parameters(), lr=0.1)
    return Trainer(estimator.objective.model, estimator, sgd, train, **options)


def data() -> Any:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 3, generator=generator)
    return torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())


def test_a_trainer_is_examined_at_its_first_step_and_left_as_it_is() -> None:
    loader = torch.utils.data.DataLoader(data(), batch_size=16, shuffle=True)
    zo = dz.CGE(torch.nn.Linear(3, 2), loss=F.cross_entropy, step_size=1e-4)
    trainer = trainer_of(zo, loader, epochs=4)
    before = torch.get_rng_state()
    found = diagnosis.diagnose_trainer(trainer, seconds=0.2)
    assert torch.equal(torch.get_rng_state(), before)
    assert (zo.step, zo.queries, trainer.step) == (0, 0, 0)
    assert found.forecast.queries == 9
    assert (found.forecast.loop.steps_per_epoch, found.forecast.loop.epochs) == (3, 4)
    assert found.trial.learning_rate == 0.1


def test_a_trainer_without_batches_or_epochs() -> None:
    zo = dz.CGE(torch.nn.Linear(3, 2), loss=F.cross_entropy, step_size=1e-4)
    with pytest.raises(InvalidInputError, match="train gave no batch"):
        diagnosis.diagnose_trainer(trainer_of(zo, []))
    batches = [tuple(data()[:16])]
    assert diagnosis.diagnose_trainer(trainer_of(zo, lambda epoch: batches), seconds=0.2).forecast.loop is None


def test_a_trainer_by_autograd_needs_no_doctor() -> None:
    model = torch.nn.Linear(3, 2)
    trainer = Trainer(
        model, Autograd(model, loss=F.cross_entropy), torch.optim.SGD(model.parameters(), lr=0.1), [data()[:16]]
    )
    with pytest.raises(InvalidInputError, match=r"its gradients from Autograd, not dz\.CGE or dz\.RGE"):
        diagnosis.diagnose_trainer(trainer)
