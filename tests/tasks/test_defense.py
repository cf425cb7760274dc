"""Every way to train a denoiser by a classifier that can only be asked, at a size of seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from deepzero.errors import DataNotFoundError, InvalidInputError, RunFolderError
from deepzero.folder_lock import FileLock
from deepzero.models import UNetDenoiser
from deepzero.recipes.run_starts import resumed
from deepzero.report import documents
from deepzero.tasks.classification import DataConfig
from deepzero.tasks.defense import METHODS, CertifyConfig, DefenseConfig, DenoiserConfig, StageConfig, certify, defend
from deepzero.tasks.defense import train_defense as run
from deepzero.tasks.defense.defended_classifier import DefendedClassifier
from deepzero.tasks.defense.defense_config import QUERYING, from_record
from deepzero.tasks.defense.train_defense import CLASSIFIER, load_pair
from deepzero.tasks.task_data import read_data
from deepzero.training import StopRequest, read_metrics, read_record
from deepzero.training.model_file import export_onnx
from deepzero.training.run_folder import continued_by

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")


def tiny(method: str, **options: object) -> DefenseConfig:
    config = DefenseConfig(
        data=DataConfig(name="digits", batch_size=16, limit=200),
        method=method,
        denoiser=DenoiserConfig(depth=3, width=4),
        classifier=StageConfig(steps=60, batch_size=32),
        pretraining=StageConfig(steps=20, batch_size=16),
        finetuning=StageConfig(learning_rate=1e-3, batch_size=16),
        budget=16 * 3 * 5 * 3,
        directions=4,
    )
    return replace(config, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the methods share: a classifier and a denoiser, and an autoencoder as soon as a method has one."""
    folder = tmp_path_factory.mktemp("stages")
    assert defend(tiny("denoiser"), out=tmp_path_factory.mktemp("first") / "run", stages=folder).summary is not None
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_within_its_budget(method: str, stages: Path, tmp_path: Path) -> None:
    config = tiny(method, **({"budget": 2 * 16 * 65 + 2} if method == "zo-ae-ds-cge" else {}))
    found = defend(config, out=tmp_path / "run", stages=stages)
    assert found.summary is not None
    labels = len(read_data(config.data).train)  # which every querying method asks for
    spent = found.summary["queries"]
    if method in QUERYING:
        assert labels + config.budget / 2 < spent <= labels + config.budget
    else:
        assert spent in (0, labels)
    if (tmp_path / "run" / "finetuning").exists():
        records = read_metrics(tmp_path / "run" / "finetuning" / "metrics.jsonl")
        assert all(record["loss"] > 0 for record in records if record["kind"] == "step")
    task, front, target, splits = load_pair(tmp_path / "run")
    assert task == config
    x = splits.test.inputs[:3].float() / splits.test.scale
    assert target.ask(front(x)).shape == (3, 10)


def test_a_finetuned_denoiser_is_another_one(stages: Path, tmp_path: Path) -> None:
    weights = []
    for method in ("denoiser", "deepzero", "opaque"):
        defend(tiny(method), out=tmp_path / method, stages=stages)
        weights.append(dict(load_pair(tmp_path / method)[1].state_dict()))
    before, last_layer, all_of_it = weights
    assert not torch.equal(before["last.weight"], last_layer["last.weight"])
    assert torch.equal(before["features.0.weight"], last_layer["features.0.weight"])
    assert not torch.equal(before["features.0.weight"], all_of_it["features.0.weight"])


def test_the_file_of_our_own_classifier_is_the_network(stages: Path, tmp_path: Path) -> None:
    defend(tiny("smoothing"), out=tmp_path / "run", stages=stages)
    _, _, target, splits = load_pair(tmp_path / "run")
    images = splits.test.inputs.float() / splits.test.scale
    right = (target.ask(images).argmax(1) == splits.test.labels).float().mean()
    assert float(right) > 0.5
    assert (stages / "classifier" / CLASSIFIER).stat().st_size > 1000


class _Later(StopRequest):
    """Stops a run after so many looks at it."""

    looks = 4

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._left = self.looks

    @property
    def reason(self) -> str | None:
        self._left -= 1
        return "a test" if self._left < 0 else None


@pytest.mark.parametrize("method", ["zo-ds", "deepzero", "opaque"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    method: str, stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(method, budget=16 * 5 * 12, finetuning=StageConfig(learning_rate=1e-3, batch_size=16, steps=8))
    whole = defend(config, out=tmp_path / "whole", stages=stages)
    assert whole.summary is not None
    with monkeypatch.context() as patch:
        patch.setattr(run, "stop_request", lambda seconds: _Later(max_seconds=seconds, at_once=True))
        first = defend(config, out=tmp_path / "parts", stages=stages)
    assert first.summary is None
    assert first.stopped == "a test"
    steps = [r for r in read_metrics(tmp_path / "parts" / "finetuning" / "metrics.jsonl") if r["kind"] == "step"]
    assert 0 < len(steps) < 8
    second = defend(config, out=tmp_path / "parts", stages=stages, resume=True)
    assert second.summary is not None
    checks = second.summary["queries"] - whole.summary["queries"]
    assert 0 < checks <= 16 * 6  # the second process looks for itself whether rows and rules are what they should be
    one, other = (load_pair(tmp_path / name)[1].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_certification_from_run_to_table(stages: Path, tmp_path: Path) -> None:
    defend(tiny("denoiser"), out=tmp_path / "run", stages=stages)
    config = CertifyConfig(images=4, trials=200, first=20, radii=(0.0, 0.25))
    with pytest.raises(InvalidInputError, match=r"a radius of 0\.75 cannot be certified"):
        certify(tmp_path / "run", replace(config, radii=None))
    stopped = certify(tmp_path / "run", config, max_seconds=1e-6)
    assert stopped.result is None
    said: list[tuple[int, int]] = []

    def second(done: int, total: int, _left: float) -> None:
        said.append((done, total))
        with pytest.raises(RunFolderError, match="is in use by this process itself"):
            certify(tmp_path / "run", config)

    found = certify(tmp_path / "run", config, progress=second)
    assert found.result is not None
    assert said[-1] == (4, 4)
    accuracy = found.result["certified_accuracy"]
    assert 1 >= accuracy[0] >= accuracy[1] >= 0
    lines = (tmp_path / "run" / "certificates.jsonl").read_text().splitlines()
    assert len(lines) == 4
    with (tmp_path / "run" / "certificates.jsonl").open("a") as file:
        file.write('{"image": 3, "ans')  # killed while it wrote
    again = certify(tmp_path / "run", config)
    assert again.result == found.result
    assert (tmp_path / "run" / "certificates.jsonl").read_text().splitlines() == lines
    with pytest.raises(RunFolderError, match="certificates of other settings"):
        certify(tmp_path / "run", replace(config, trials=300))
    kept = tmp_path / "run" / "certificates.jsonl"
    kept.rename(tmp_path / "aside")
    kept.mkdir()
    with pytest.raises(RunFolderError, match=r"certificates\.jsonl cannot be read: it is a folder.*move .* away"):
        certify(tmp_path / "run", config)
    kept.rmdir()
    (tmp_path / "aside").rename(kept)
    assert json.loads((tmp_path / "run" / "certified.json").read_bytes())["sigma"] == 0.25


def test_what_cannot_be(stages: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="method must be one of"):
        tiny("magic")
    with pytest.raises(InvalidInputError, match="give it steps"):
        tiny("opaque", pretraining=StageConfig())
    with pytest.raises(InvalidInputError, match=r"a step of zo-ae-ds-cge asks 1,040 times \(16 images\)"):
        defend(tiny("zo-ae-ds-cge"), out=tmp_path / "d", stages=stages)
    with pytest.raises(DataNotFoundError, match="there is no model file"):
        defend(tiny("opaque"), out=tmp_path / "a", classifier=tmp_path / "missing.onnx")
    defend(tiny("smoothing"), out=tmp_path / "b", stages=stages)
    given = stages / "classifier" / CLASSIFIER
    with pytest.raises(InvalidInputError, match=r"fo-ds needs a classifier that can be differentiated"):
        defend(tiny("fo-ds"), out=tmp_path / "c", classifier=given)
    with pytest.raises(RunFolderError, match="holds another run"):
        defend(tiny("denoiser"), out=tmp_path / "b", stages=stages)
    with pytest.raises(RunFolderError, match="holds no run"):
        certify(tmp_path / "nowhere")


def test_a_classifier_that_was_given(stages: Path, tmp_path: Path) -> None:
    defend(tiny("smoothing"), out=tmp_path / "first", stages=stages)
    given = stages / "classifier" / CLASSIFIER
    found = defend(tiny("deepzero"), out=tmp_path / "run", classifier=given)
    assert found.summary is not None
    assert found.summary["classifier"] == str(given)
    assert not (tmp_path / "run" / "stages" / "classifier").exists()


def test_a_configuration_survives_its_folder() -> None:
    config = tiny("opaque", step_size=None)
    assert from_record(json.loads(json.dumps(config, default=vars))) == config


def test_zo_grasp_says_how_many_coordinates_of_each_layer_a_step_takes(stages: Path, tmp_path: Path) -> None:
    """Its ratios are asked for once, and kept; a step then takes as many coordinates as there are directions."""
    config = tiny("deepzero", finetuned="zo-grasp", directions=12, budget=16 * 13 * 4)
    found = defend(config, out=tmp_path / "run", stages=stages)
    assert found.summary is not None
    kept = json.loads((tmp_path / "run" / "ratios.json").read_bytes())
    assert kept["queries"] == 2 * (192 + 1) * 16
    weights = {name: p for name, p in load_pair(tmp_path / "run")[1].named_parameters() if p.dim() > 1}
    assert set(kept["keep"]) == {f"0.{name}" for name in weights}
    counts = [round(kept["keep"][f"0.{name}"] * p.numel()) for name, p in weights.items()]
    assert min(counts) >= 1
    assert 12 <= sum(counts) <= 12 + 2  # a layer of which nothing is kept has one
    before = defend(tiny("denoiser"), out=tmp_path / "before", stages=stages)
    assert before.summary is not None
    old = dict(load_pair(tmp_path / "before")[1].named_parameters())
    moved = {name for name, p in weights.items() if not torch.equal(p, old[name])}
    assert moved == set(weights)


def test_a_u_net_in_front_and_true_labels(stages: Path, tmp_path: Path) -> None:
    config = tiny("deepzero", denoiser=DenoiserConfig(kind="unet", width=4), loss="classification")
    found = defend(config, out=tmp_path / "run", stages=tmp_path / "stages")
    assert found.summary is not None
    assert 0 < found.summary["queries"] <= config.budget  # no label was asked for
    _, front, target, splits = load_pair(tmp_path / "run")
    assert isinstance(front, UNetDenoiser)
    assert target.ask(front(splits.test.inputs[:2].float() / splits.test.scale)).shape == (2, 10)


def test_a_classifier_that_has_changed_is_not_certified(stages: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.onnx"
    defend(tiny("smoothing"), out=tmp_path / "own", stages=stages)
    given.write_bytes((stages / "classifier" / CLASSIFIER).read_bytes())
    defend(tiny("denoiser"), out=tmp_path / "run", stages=stages, classifier=given)
    load_pair(tmp_path / "run")
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    export_onnx(other, torch.zeros(2, 1, 8, 8), given)
    with pytest.raises(RunFolderError, match=r"given\.onnx is another classifier than the one that"):
        load_pair(tmp_path / "run")


def test_a_stage_that_another_process_works_on_is_waited_for(tmp_path: Path) -> None:
    """The run waits, and can be stopped while it does."""
    stages = tmp_path / "stages"
    stages.mkdir()
    lock = FileLock(stages / ".classifier.lock")
    assert lock.acquire()
    found = defend(tiny("smoothing"), out=tmp_path / "run", stages=stages, max_seconds=0.2)
    lock.release()
    assert found.summary is None
    assert "time limit" in str(found.stopped)
    assert not (stages / "classifier").exists()
    assert defend(tiny("smoothing"), out=tmp_path / "run", stages=stages, resume=True).summary is not None


def test_a_stage_that_has_changed_since_a_run_began_is_refused(
    stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them would end in another denoiser: the weights of a stage, and the file of the classifier."""
    config = tiny("deepzero", budget=16 * 5 * 12, finetuning=StageConfig(learning_rate=1e-3, batch_size=16, steps=8))
    mine = shutil.copytree(stages, tmp_path / "stages")
    with monkeypatch.context() as patch:
        patch.setattr(run, "stop_request", lambda seconds: _Later(max_seconds=seconds, at_once=True))
        assert defend(config, out=tmp_path / "run", stages=mine).summary is None
    denoiser = mine / "denoiser" / "model.safetensors"
    weights = safetensors.torch.load_file(denoiser)
    kept = denoiser.read_bytes()
    safetensors.torch.save_file({name: value * 1.01 for name, value in weights.items()}, denoiser)
    with pytest.raises(RunFolderError, match=r"denoiser.model\.safetensors is not what the run wrote"):
        defend(config, out=tmp_path / "run", stages=mine, resume=True)
    denoiser.write_bytes(kept)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    export_onnx(other, torch.zeros(2, 1, 8, 8), mine / "classifier" / CLASSIFIER)
    with pytest.raises(RunFolderError, match=r"the classifier our own, .* of the run in .* is not what it was"):
        defend(config, out=tmp_path / "run", stages=mine, resume=True)


def test_a_student_asks_no_more_than_a_small_budget(stages: Path, tmp_path: Path) -> None:
    found = defend(tiny("distilled", budget=100), out=tmp_path / "run", stages=stages)
    assert found.summary is not None
    assert found.summary["queries"] - len(read_data(tiny("distilled").data).train) == 100


def interrupting(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Have Ctrl-C be pressed in one of the queries of the classifier; the number of those that were made."""
    asked: list[int] = []
    load = run.load_target

    def loaded(classifier: str | Path) -> DefendedClassifier:
        target = load(classifier)

        def ask(x: torch.Tensor) -> torch.Tensor:
            asked.append(len(x))
            if len(asked) == after:
                os.kill(os.getpid(), signal.SIGINT)
            return target.ask(x)

        return replace(target, ask=ask)

    monkeypatch.setattr(run, "load_target", loaded)
    return asked


@pytest.mark.parametrize("after", [1, 5], ids=["the labels", "the ranking"])
def test_the_first_interrupt_ends_a_phase_that_is_no_training(
    after: int, stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classifier is not asked once more, and the run goes on to the same bits."""
    config = tiny("deepzero", finetuned="zo-grasp", directions=12, budget=16 * 13 * 4)
    whole = defend(config, out=tmp_path / "whole", stages=stages)
    with monkeypatch.context() as patch:
        asked = interrupting(patch, after)
        first = defend(config, out=tmp_path / "parts", stages=stages)
    assert (first.summary, first.stopped) == (None, "SIGINT")
    assert len(asked) == after
    assert not (tmp_path / "parts" / "ratios.json").exists()
    second = defend(config, out=tmp_path / "parts", stages=stages, resume=True)
    assert second.summary is not None
    assert whole.summary is not None
    assert second.summary["queries"] == whole.summary["queries"]
    one, other = (load_pair(tmp_path / name)[1].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_interrupt_of_the_training_finishes_the_step(
    stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("zo-ds", budget=16 * 5 * 12, finetuning=StageConfig(learning_rate=1e-3, batch_size=16, steps=8))
    with monkeypatch.context() as patch:
        asked = interrupting(patch, 12)
        first = defend(config, out=tmp_path / "run", stages=stages)
    assert first.stopped == "SIGINT"
    assert len(asked) >= 12
    steps = [r for r in read_metrics(tmp_path / "run" / "finetuning" / "metrics.jsonl") if r["kind"] == "step"]
    newest = max((tmp_path / "run" / "finetuning" / "checkpoints").glob("step-*"))
    assert 0 < len(steps) == int(newest.name.removeprefix("step-")) < 8
    assert defend(config, out=tmp_path / "run", stages=stages, resume=True).summary is not None


def unconcluded(whole: Path, to: Path) -> Path:
    """A copy of a run whose process was killed before its own result was there."""
    shutil.copytree(whole, to)
    (to / "summary.json").unlink()
    return to


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (broken, "summary.json"),
        (broken, "model.safetensors"),
        (broken, "run.json"),
        (Path.unlink, "run.json"),
    ],
)
@pytest.mark.parametrize("stage", ["finetuning", "stages/denoiser"])
def test_advice_for_a_damaged_stage_is_of_the_run_that_goes_on_and_true(
    damage: Callable[[Path], None], name: str, stage: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    config = tiny("deepzero", finetuning=StageConfig(learning_rate=1e-3, batch_size=16, steps=2))
    whole = tmp_path_factory.getbasetemp() / "whole-defense"
    if not whole.exists():
        assert defend(config, out=whole).summary is not None
    run_folder = unconcluded(whole, tmp_path / "run")
    own = run_folder / stage
    record = run_folder / "run.json"
    record.write_text(record.read_text().replace(str(whole / "stages"), str(run_folder / "stages")))
    damage(own / name)
    with pytest.raises(RunFolderError) as refused:
        defend(config, out=run_folder, resume=True)
    message = str(refused.value)
    assert message.endswith(f"and type deepzero defend --resume --out {run_folder}")
    deleted = own / "summary.json" if name != "run.json" else own
    assert f"delete {deleted} and" in message
    shutil.rmtree(deleted) if deleted.is_dir() else deleted.unlink()
    assert defend(config, out=run_folder, resume=True).summary is not None
    one, other = (load_pair(folder)[1].state_dict() for folder in (whole, run_folder))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_shared_stage_of_other_settings_asks_for_another_folder_of_stages(stages: Path, tmp_path: Path) -> None:
    defend(tiny("denoiser"), out=tmp_path / "one", stages=stages)
    other = tiny("denoiser", pretraining=StageConfig(steps=21, batch_size=16))
    with pytest.raises(RunFolderError, match=r"choose another --stages$"):
        defend(other, out=tmp_path / "other", stages=stages)


def test_a_stage_by_itself_is_no_run_to_continue(stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("deepzero", finetuning=StageConfig(learning_rate=1e-3, batch_size=16, steps=2))
    defend(config, out=tmp_path / "run", stages=stages)
    with pytest.raises(RunFolderError, match=f"is a stage, .*type deepzero defend --resume --out {tmp_path / 'run'}$"):
        resumed(None, {}, tmp_path / "run" / "finetuning")
    with pytest.raises(RunFolderError, match=r"is a stage, .*with the folder of a run that uses this stage$"):
        load_pair(stages / "denoiser")
    record = read_record(tmp_path / "run" / "finetuning")
    monkeypatch.chdir(tmp_path)
    assert continued_by(Path("run/finetuning"), record) == "deepzero defend --resume --out run"
    monkeypatch.chdir(tmp_path / "run")
    assert continued_by(Path("finetuning"), record) == "deepzero defend --resume --out ."
    monkeypatch.chdir(tmp_path / "run" / "finetuning")
    assert continued_by(Path(), record) == f"deepzero defend --resume --out {tmp_path / 'run'}"
    (tmp_path / "run" / "finetuning" / "summary.json").unlink()
    caption = documents([tmp_path / "run" / "finetuning"])[0].caption
    assert f"deepzero defend --resume --out {tmp_path / 'run'}" in caption
