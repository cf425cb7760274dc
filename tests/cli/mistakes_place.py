"""A folder as people have it at work: data, runs finished and not, whole and damaged, files of their own with mistakes."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from own_files import image_folder, noise, npz, table
from PIL import Image

import deepzero as dz
from deepzero.cli import main
from deepzero.executors import journal_file
from deepzero.recipes.correction_recipes import RECIPES
from deepzero.recipes.defense_recipes import digits
from deepzero.tasks.classification import DataConfig
from deepzero.tasks.correction import correct
from deepzero.tasks.defense import DenoiserConfig, StageConfig, defend

OWN = {
    "net": """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes, in_channels, width=4):
        super().__init__(nn.Conv2d(in_channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

class Wide(Net):
    def __init__(self, layers, hidden_size):
        pass

class Seven(nn.Sequential):
    def __init__(self, in_channels):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, 7))

class Flat(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(50, num_classes))

class Raising(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(0 / 1, 3)

class Pair(nn.Module):
    def __init__(self, num_classes, in_features):
        super().__init__()
        self.layer = nn.Linear(in_features, num_classes)

    def forward(self, x):
        return self.layer(x.flatten(1)), x

class Frozen(nn.Sequential):
    def __init__(self, num_classes, in_features):
        super().__init__(nn.Flatten(), nn.Linear(in_features, num_classes))
        self.requires_grad_(False)

def number():
    return 3

network = nn.Linear(2, 2)
""",
    "recipe_of_mine": """
import torch
import torch.nn.functional as F
import deepzero as dz

def recipe(rate: float = 0.5, size: int = 3):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return dz.Trainer(model, dz.CGE(model, loss=F.cross_entropy), optimizer, [(x, (x.sum(1) > 0).long())], epochs=2)

def configured(batch: int = 16):
    return dz.recipes.customize(dz.recipes.find("digits").config(), limit=64, batch_size=batch)

def box(size: int = 4):
    return dz.BlackBox(lambda x: float((x**2).sum()), torch.zeros(size))

def needs(size):
    return box(size)

def nothing():
    dz.recipes.find("digits")

def model():
    return torch.nn.Linear(3, 2)

def raises():
    return 1 / 0

def broken_box():
    return dz.BlackBox(lambda x: 1 / 0, torch.zeros(3))

def text_box():
    return dz.BlackBox(lambda x: "high", torch.zeros(3))

def nan_box():
    return dz.BlackBox(lambda x: float("nan"), torch.zeros(3))

def lone_function():
    return lambda x: float((x**2).sum())

def no_batch():
    return dz.CGE(torch.nn.Linear(3, 2), loss=F.cross_entropy)
""",
    "cut_off": "def recipe(:\n    return 1\n",
    "misses": "import scikit_lern\n\ndef recipe():\n    return 1\n",
    "only_helpers": "def helper():\n    return 1\n",
    "own/json": "def recipe():\n    return 1\n",
    "exits": "import sys\n\nsys.exit('usage: exits.py FILE')\n",
}
"""Files of Python by name."""

SETTINGS = {
    "misspelt.toml": 'recipe = "digits"\n[training]\nepoch = 2\n',
    "of_another_kind.toml": 'recipe = "digits"\n[training]\nepochs = "two"\n',
    "too_little.toml": '[data]\nname = "digits"\n',
    "unknown_recipe.toml": 'recipe = "digts"\n',
    "cut.toml": "[data\n",
    "cut.json": '{"data": ',
    "list.json": "[1, 2]",
    "settings.yaml": "recipe: digits\n",
}


def make(root: Path) -> None:
    """Fill an empty folder."""
    with _inside(root):
        _data()
        for name, text in OWN.items():
            path = Path(f"{name}.py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        for name, text in SETTINGS.items():
            Path(name).write_text(text)
        Path("taken").write_text("a file, where a folder is wanted")
        Path("empty").mkdir()
        Path("notes").mkdir()
        Path("notes/today.txt").write_text("hello")
        _journals()
        _runs()
        _damage()


def _journals() -> None:
    """A journal, one of a format before checksums, one with a changed answer, and an SQLite file of another program."""
    answers = {f"{n:032x}": float(n) for n in range(3)}
    for name in ("answers.sqlite", "changed.sqlite"):
        with dz.QueryJournal(name, problem="furnace") as journal:
            journal.record(answers)
    for name, statements in {
        "changed.sqlite": ("UPDATE answers SET loss = NULL WHERE key LIKE '%1'",),
        "old.sqlite": (
            f"PRAGMA application_id={journal_file.MAGIC[1]}",
            "CREATE TABLE answers (key TEXT PRIMARY KEY, loss REAL) WITHOUT ROWID",
        ),
        "other.sqlite": ("CREATE TABLE songs (name TEXT)",),
    }.items():
        with closing(sqlite3.connect(name, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)
    shutil.copy("old.sqlite", "kept.sqlite")
    Path(f"kept.sqlite{journal_file.OLD_SUFFIX}").write_text("from the last time")


def _data() -> None:
    image_folder(Path("photos"), size=(8, 8), count=30)
    image_folder(Path("my photos"), size=(8, 8), count=30)
    image_folder(Path("loose"), classes=(".",), size=(8, 8))
    Image.fromarray(noise(8, 8, 3)).save("photo.png")
    Image.fromarray(noise(16, 16, 3)).save("large.png")
    Path("broken.png").write_text("no image")
    Path("broken.onnx").write_text("no model")
    draw = np.random.default_rng(0)
    rows = [f"{draw.normal() + 4 * (k % 2):.4f},{draw.normal():.4f},{('no', 'yes')[k % 2]}" for k in range(120)]
    table(Path("table.csv"), "\n".join(["a,b,kind", *rows]))
    table(Path("other.csv"), "\n".join(["a,c,kind", *rows]))
    table(Path("words.csv"), "\n".join(["a,b,kind", "1,red,no", "2,blue,yes", *rows]))
    table(Path("header.csv"), "a,b,kind\n")
    table(Path("one_class.csv"), "a,kind\n" + "1,no\n" * 20)
    npz(Path("arrays.npz"), first=noise(4, 2), second=noise(4, 2))
    np.save("wide.npy", np.zeros((3, 5)))
    np.save("pickled.npy", np.array([{}], dtype=object))


def _runs() -> None:
    quiet = ["--epochs", "1", "--quiet", "--out"]
    _done(["train", "--data", "table.csv", "--target", "kind", *quiet, "runs/table"])
    _done(["train", "--data", "photos", "--model", "net.py", *quiet, "runs/photos"])
    _done(["train", "recipe_of_mine.py", *quiet, "runs/trainer"])
    _done(["train", "--data", "table.csv", "--max-minutes", "1e-9", *quiet, "runs/begun"], code=75)
    tiny = replace(
        digits(),
        data=DataConfig(name="digits", batch_size=16, limit=100),
        denoiser=DenoiserConfig(depth=2, width=2),
        classifier=StageConfig(steps=5, batch_size=16),
        method="smoothing",
    )
    defend(tiny, out="runs/defense")
    defend(tiny, out="runs/defense-begun", max_seconds=1e-9)
    correct(RECIPES.find("wake-tiny").config(), out="runs/correction", data_dir="flows", max_seconds=1e-9)


def _done(words: list[str], code: int = 0) -> None:
    assert main(words) == code, words


def _damage() -> None:
    """Copies of runs, each with one fault, that its name says."""
    faults: dict[str, Callable[[Path], object]] = {
        "cut-record": lambda run: _cut(run / "run.json"),
        "no-record": lambda run: (run / "run.json").unlink(),
        "newer-record": lambda run: _changed(run / "run.json", format="deepzero run 9"),
        "cut-summary": lambda run: _cut(run / "summary.json"),
        "cut-weights": lambda run: _cut(run / "model.safetensors"),
        "no-weights": lambda run: (run / "model.safetensors").unlink(),
        "other-weights": lambda run: shutil.copy("runs/photos/model.safetensors", run / "model.safetensors"),
        "cut-model": lambda run: _cut(run / "model.json"),
        "no-model": lambda run: (run / "model.json").unlink(),
        "other-model": lambda run: _changed(run / "model.json", target="perceptron"),
        "cut-metrics": lambda run: _cut(run / "metrics.jsonl"),
    }
    for name, fault in faults.items():
        shutil.copytree("runs/table", f"runs/{name}")
        fault(Path("runs", name))
    shutil.copytree("runs/begun", "runs/cut-checkpoint")
    for file in Path("runs/cut-checkpoint/checkpoints").rglob("*"):
        if file.is_file():
            _cut(file)
    shutil.copytree("runs/photos", "runs/no-code")
    shutil.rmtree("runs/no-code/code")
    _changed(Path("runs/no-code/model.json"), target="gone.py:Net")


def _cut(path: Path) -> None:
    """Leave so little that what a reader says to it does not depend on paths and times in the file."""
    path.write_bytes(path.read_bytes()[:20])


def _changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@contextmanager
def _inside(root: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)
