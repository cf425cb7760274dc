"""A finished run in use: the same outputs as the network that was trained, from the folder alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import deepzero as dz
from deepzero.data import load
from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    train,
)
from deepzero.training import Autograd, TrainingConfig
from deepzero.training.run_result import Result

OWN = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes, in_channels):
        super().__init__(nn.Conv2d(in_channels, 3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))
"""


class Net(nn.Module):
    """As a user's script would have it, with batch norm and dropout."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 2))

    def forward(self, x: Any) -> Any:
        return self.body(x)


def points(count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=generator)
    return x, (x.sum(1) > 0).long()


def fit(
    folder: Path,
    model: Any,
    *,
    loss: Callable[..., Any] = F.cross_entropy,
    batches: list[tuple[Tensor, Tensor]] | None = None,
    **options: Any,
) -> Result | None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [points()] if batches is None else batches
    return dz.Trainer(model, Autograd(model, loss=loss), optimizer, batches, out=folder, **options).fit(epochs=2)


def configured(folder: Path, **changes: Any) -> Result:
    options = {
        "data": DataConfig(name="digits", limit=64, batch_size=32),
        "model": ModelConfig(name="mlp", options={"hidden": (8,)}),
        "estimator": EstimatorConfig(method="fo"),
        "training": TrainingConfig(epochs=1, warmup_epochs=0),
    }
    return train(ClassificationConfig(**{**options, **changes}), out=folder)


def test_an_own_network_is_used_without_its_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    fit(tmp_path, model)
    run = dz.load_run(tmp_path)
    x, y = points(7)
    assert torch.allclose(run.outputs(x), model.eval()(x), atol=1e-6)
    assert torch.equal(run.outputs(x[:1]), run.outputs(x)[:1])
    assert run.evaluate((x, y), loss=F.cross_entropy)["accuracy"] == float((model(x).argmax(1) == y).double().mean())
    assert len(run.metrics) == run.summary["steps"] + 2
    assert run.config["optimizer"]["class"] == "SGD"
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in repr(run)


def test_a_fresh_process_needs_three_lines(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    fit(tmp_path, model)
    x, _ = points(5)
    torch.save(x, tmp_path / "x.pt")
    lines = [
        "import torch, deepzero as dz",
        f"run = dz.load_run({str(tmp_path)!r})",
        f"print(run.outputs(torch.load({str(tmp_path / 'x.pt')!r})).tolist())",
    ]
    told = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert torch.allclose(torch.tensor(json.loads(told.stdout)), model.eval()(x), atol=1e-6)


def test_weights_are_loaded_into_a_network_that_is_given(tmp_path: Path) -> None:
    model = Net(width=6)
    fit(tmp_path, model)
    run = dz.load_run(tmp_path, model=Net(width=6))
    assert torch.equal(run.outputs(points()[0]), model.eval()(points()[0]))
    run.model.train()
    with pytest.raises(RunFolderError, match="do not fit Net"):
        dz.load_run(tmp_path, model=Net(width=5))


def test_an_exported_network_has_eval_mode_only(tmp_path: Path) -> None:
    fit(tmp_path, Net())
    run = dz.load_run(tmp_path)
    with pytest.raises(InvalidInputError, match=r"eval mode only.*model=Net"):
        run.model.train()


def test_a_network_that_cannot_be_exported_says_why_and_what_to_do(tmp_path: Path) -> None:
    class Branching(Net):
        def forward(self, x: Any) -> Tensor | None:
            return super().forward(x) * (2.0 if float(x.sum()) > 0 else 1.0)

    model = Branching()
    result = fit(tmp_path, model)
    assert result.summary["steps"] == 2
    with pytest.raises(RunFolderError, match=r"torch\.export cannot express it.*load_run\(folder, model=Net\(\)\)"):
        dz.load_run(tmp_path)
    run = dz.load_run(tmp_path, model=Branching())
    assert torch.equal(run.outputs(points()[0]), model.eval()(points()[0]))


def test_names_of_classes_are_kept_and_a_loss_that_has_a_name(tmp_path: Path) -> None:
    model = Net()
    fit(tmp_path, model, classes=["below", "above"])
    run = dz.load_run(tmp_path)
    x, y = points(9)
    assert run.predict(x) == [["below", "above"][i] for i in model.eval()(x).argmax(1).tolist()]
    assert run.evaluate((x, y))["loss"] == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-6)
    with pytest.raises(InvalidInputError, match="two or more different names"):
        fit(tmp_path / "other", Net(), classes=["one", "one"])


def test_tokens_keep_their_dtype(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(12, 2))
    tokens = torch.arange(18).reshape(6, 3) % 11
    fit(tmp_path, model, batches=[(tokens, torch.arange(6) % 2)])
    run = dz.load_run(tmp_path)
    assert torch.equal(run.outputs(tokens.tolist()), model(tokens))


def test_a_run_of_a_recipe_predicts_from_raw_images_bit_for_bit_as_in_training(tmp_path: Path) -> None:
    result = configured(tmp_path / "run")
    run = dz.load_run(tmp_path / "run")
    test = load("digits").test
    raw = test.inputs[:9]
    normalized = test.preprocessing.normalize(raw)
    expected = result.model.eval()(normalized)
    assert torch.equal(run.outputs(raw), expected)
    assert run.predict(raw) == [run.classes[i] for i in expected.argmax(1).tolist()]
    assert torch.allclose(run.predict_proba(raw).sum(1), torch.ones(9))
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(test.preprocessing.normalize(test.inputs), test.labels), batch_size=100
    )
    scores = run.evaluate(batches)
    assert scores["accuracy"] == pytest.approx(result.summary["test_accuracy"])
    assert scores["loss"] == pytest.approx(result.summary["test_loss"])


def test_an_own_network_by_file_survives_the_loss_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "own_lazy_net.py"
    source.write_text(OWN)
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(20):
            pixels = draw.integers(0, 255, (6, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{k}.png")
    result = configured(
        tmp_path / "run",
        data=DataConfig.of_path(tmp_path / "photos", batch_size=8),
        model=ModelConfig(name="own_lazy_net.py:Net"),
    )
    source.unlink()
    monkeypatch.delitem(sys.modules, "own_lazy_net")
    run = dz.load_run(tmp_path / "run")
    files = sorted((tmp_path / "photos" / "a").iterdir())[:3]
    assert run.classes == ("a", "b")
    assert torch.equal(run.outputs(files), result.model.eval()(run.inputs(files)))
    assert set(run.predict(files)) <= {"a", "b"}


def test_a_network_that_gives_more_than_one_tensor_is_asked_itself(tmp_path: Path) -> None:
    model = nn.LSTM(3, 2, batch_first=True)
    sequences = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))

    def loss(output: tuple[Tensor, tuple[Tensor, Tensor]], target: Tensor) -> Tensor:
        return F.mse_loss(output[0], target)

    fit(tmp_path, model, loss=loss, batches=[(sequences, torch.zeros(5, 4, 2))])
    run = dz.load_run(tmp_path)
    with pytest.raises(InvalidInputError, match=r"gives a tuple, not one tensor.*run\.model\(run\.inputs\(x\)\)"):
        run.outputs(sequences)
    assert torch.allclose(run.model(run.inputs(sequences))[0], model.eval()(sequences)[0], atol=1e-6)


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_exports_give_the_same_outputs_for_any_batch(tmp_path: Path, ending: str) -> None:
    model = Net()
    fit(tmp_path / "run", model)
    path = dz.load_run(tmp_path / "run").export(tmp_path / f"net{ending}")
    for count in (1, 5):
        x, _ = points(count)
        if ending == ".onnx":
            runtime = pytest.importorskip("onnxruntime")
            given = runtime.InferenceSession(path).run(None, {"input": x.numpy()})[0]
        else:
            given = torch.export.load(path).module()(x).detach().numpy()
        assert np.allclose(given, model.eval()(x).detach().numpy(), atol=1e-5)


def test_the_model_card_tells_results_and_use(tmp_path: Path) -> None:
    configured(tmp_path)
    card = (tmp_path / "README.md").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert card.startswith("---\nlibrary_name: deepzero\n")
    assert f"| test accuracy | {summary['test_accuracy']:.4g} |" in card
    assert "dz.load_run" in card
    assert "Classes: 0, 1, 2" in card


def test_what_the_folder_does_not_say_is_asked_for(tmp_path: Path) -> None:
    fit(tmp_path, Net())
    run = dz.load_run(tmp_path)
    assert run.predict(points(2)[0]) == run.outputs(points(2)[0]).tolist()
    with pytest.raises(InvalidInputError, match=r"does not say that its outputs are classes.*run\.outputs"):
        run.predict_proba(points()[0])
    with pytest.raises(InvalidInputError, match="24 inputs, but 3 targets"):
        run.evaluate((points()[0], [0, 1, 0]))
    fit(tmp_path / "own", Net(), loss=lambda output, target: 2 * F.cross_entropy(output, target))
    with pytest.raises(InvalidInputError, match=r"give loss=\.\.\."):
        dz.load_run(tmp_path / "own").evaluate(points())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(5, 4), r"expected inputs of shape \[n, 3\], as in training, got \[5, 4\]"),
        (torch.zeros(3), r"add the batch with x\[None\]"),
        ("photo.png", "expected a tensor or an array, got str"),
    ],
)
def test_inputs_of_another_form_are_refused(tmp_path: Path, given: Tensor | str, message: str) -> None:
    fit(tmp_path, Net())
    with pytest.raises(InvalidInputError, match=message):
        dz.load_run(tmp_path).outputs(given)


def test_folders_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        dz.load_run(tmp_path / "nothing")
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stopping = dz.Trainer(model, Autograd(model, loss=F.cross_entropy), optimizer, [points()], out=tmp_path / "part")
    stopping.max_minutes = 1e-9
    assert stopping.fit(epochs=3).stopped is not None
    with pytest.raises(RunFolderError, match=r"has not finished.*--resume.*fit\(resume=True\)"):
        dz.load_run(tmp_path / "part")
    fit(tmp_path / "bare", Net(), model_file=None)
    with pytest.raises(RunFolderError, match=r"model\.json, which says .*cannot be read.*model=Net"):
        dz.load_run(tmp_path / "bare")
    fit(tmp_path / "run", Net())
    with pytest.raises(InvalidInputError, match=r"must end in \.onnx or \.pt2"):
        dz.load_run(tmp_path / "run").export(tmp_path / "net.pt")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(RunFolderError, match=r"model\.safetensors cannot be read"):
        dz.load_run(tmp_path / "run")


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_files_of_a_result_that_were_changed_give_no_other_predictions(tmp_path: Path, name: str) -> None:
    """A flipped bit of a weight, a digit of the preprocessing: both can be read, and would predict something else."""
    configured(tmp_path)
    before = (tmp_path / name).read_bytes()
    place = before.rindex(b"0.") + 2 if name == "model.json" else len(before) - 5
    changed = bytearray(before)
    changed[place] ^= 1
    (tmp_path / name).write_bytes(changed)
    with pytest.raises(RunFolderError, match=f'{name} is not what the run wrote.*delete "sha256" in '):
        dz.load_run(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary.pop("sha256")) == {"model.safetensors", "model.json"}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert dz.load_run(tmp_path).summary == summary  # on purpose


def test_a_usual_loss_is_known_again_and_another_must_be_given(tmp_path: Path) -> None:
    """A run from Python can be evaluated without repeating what it was trained on."""
    model, (x, y) = Net(), points()
    fit(tmp_path / "run", model)
    run = dz.load_run(tmp_path / "run")
    with torch.no_grad():
        expected = float(F.cross_entropy(model.eval()(x), y))
    assert run.evaluate((x, y))["loss"] == pytest.approx(expected, rel=1e-6)
    fit(tmp_path / "mine", Net(), loss=lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=0.1))
    mine = dz.load_run(tmp_path / "mine")
    with pytest.raises(InvalidInputError, match="has no name; give loss="):
        mine.evaluate((x, y))
    assert mine.evaluate((x, y), loss=F.cross_entropy)["loss"] > 0
