"""The base installation trains; what needs an optional package says which extra brings it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import deepzero
from deepzero.errors import MissingPackageError
from deepzero.extras import PACKAGES, required_for

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

WITHOUT = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {refused!r} else PathFinder.find_spec(name, path, target)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from deepzero.errors import MissingPackageError
def answer(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except MissingPackageError as missing:
        return str(missing)
    raise AssertionError("nothing is missing")
"""
"""A program in which some packages are as if they were not installed."""


def in_a_base_installation(script: str, folder: Path, *, refused: tuple[str, ...] = tuple(PACKAGES)) -> str:
    path = os.pathsep.join(filter(None, [str(Path(deepzero.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(refused=refused) + script],
        capture_output=True,
        check=False,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def missing(purpose: str, package: str, extra: str) -> str:
    return f"{purpose} needs {package}, which is not installed; try pip install 'deepzero[{extra}]'"


def test_every_package_stands_in_the_extra_that_its_message_names() -> None:
    extras = PROJECT["optional-dependencies"]
    distributions = packages_distributions()
    for module, (extra, _) in PACKAGES.items():
        names = {name.lower().replace("_", "-") for name in distributions.get(module, [module])}
        brought = {requirement.partition(">=")[0].partition("[")[0].lower() for requirement in extras[extra]}
        names |= {"mlflow-skinny"} & names or ({"phiflow"} if module.startswith("phi") else set())
        assert names & brought, module


def test_the_base_installation_depends_on_nothing_that_an_extra_brings() -> None:
    base = {requirement.partition(">=")[0].lower() for requirement in PROJECT["dependencies"]}
    extras = PROJECT["optional-dependencies"]
    assert not base & {
        r.partition(">=")[0].lower() for extra in ("cli", "data", "plot", "scipy") for r in extras[extra]
    }
    assert extras["all"] == ["deepzero[cli,data,plot,scipy]"]
    assert "all" in extras["test"][0]


def test_a_plain_network_trains(tmp_path: Path) -> None:
    script = """
import torch, torch.nn.functional as F
import deepzero as dz
x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
data = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
loader = torch.utils.data.DataLoader(data, batch_size=16)
model = torch.nn.Linear(3, 2)
zo = dz.CGE(model, loss=F.cross_entropy)
zo.backward(x, (x.sum(1) > 0).long())
result = dz.Trainer(model, zo, torch.optim.SGD(model.parameters(), lr=0.5), loader, validation=loader, out="run").fit(epochs=20)
print(result.summary["steps"], result.summary["validation_accuracy"] > 0.9)
print(sorted(path.name for path in result.folder.iterdir() if path.suffix in (".png", ".json", ".safetensors")))
print(len(dz.load_run("run").predict(x)))
print(bool(str(dz.diagnose(model, F.cross_entropy, x, (x.sum(1) > 0).long(), seconds=0.5))))
"""
    assert in_a_base_installation(script, tmp_path).splitlines() == [
        "80 True",
        "['model.json', 'model.safetensors', 'run.json', 'summary.json']",
        "64",
        "True",
    ]


PICTURES = {"plot.png": "summary.json", "sweep.png": "diagnosis.json"}
"""A picture of a command's -> what it leaves beside it."""


def test_commands_do_not_fail_at_their_end_for_want_of_a_picture(tmp_path: Path) -> None:
    """Both in one process, because starting it is what takes the time."""
    train = ["train", "--estimator", "fo", "--sparsity", "0", "--epochs", "1", "--limit", "64"]
    doctor = ["doctor", "--sparsity", "0.99", "--batch-size", "8", "--seconds", "0.1"]
    script = f"""
import contextlib, io
from deepzero.cli import main
for words, picture in zip({[train, doctor]!r}, {list(PICTURES)!r}):
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        code = main([*words, "--out", picture + " is missing"])
    print(code, " ".join(shown.getvalue().split()).count(picture + " is left out: a plot needs Matplotlib"))
"""
    assert in_a_base_installation(script, tmp_path, refused=("matplotlib",)) == "0 1\n0 1\n"
    for picture, whole in PICTURES.items():
        assert (tmp_path / f"{picture} is missing" / whole).is_file()
        assert not (tmp_path / f"{picture} is missing" / picture).exists()


@pytest.mark.parametrize("words", [[], ["--help"], ["train"], ["recipes", "--json"]])
def test_the_command_says_what_it_needs(words: list[str], tmp_path: Path) -> None:
    script = f"""
import contextlib, io
from deepzero.cli import main
shown = io.StringIO()
with contextlib.redirect_stderr(shown):
    code = main({words!r})
sys.stdout.write(shown.getvalue() + str(code))
"""
    message = missing("the command deepzero", "tyro", "cli")
    shown = in_a_base_installation(script, tmp_path).splitlines()
    assert shown[-2:] == [f"error: {message}", "2"]
    assert ("--json" in words) == any('"exit_code": 2' in line for line in shown[:-2])


def test_each_entry_says_what_it_needs(tmp_path: Path) -> None:
    for path in ("table.csv", "images/a/1.png", "images/b/1.png", "train-0.parquet", "test-0.parquet"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x,label\n1,2\n")
    script = """
import numpy as np
def certify():
    from deepzero.tasks.defense.smoothing import radius_of
    radius_of(0.9, 1.0)
def page():
    from deepzero.report import page
def reproduce():
    import deepzero.reproduce
from deepzero import data, optimize, training
print(answer(data.load_digits))
print(answer(data.load, "csv", path="table.csv"))
print(answer(data.load, "image-folder", path="images"))
print(answer(data.load_cifar10, "."))
print(answer(training.plot_run, [], title=""))
print(answer(page))
print(answer(reproduce))
print(answer(optimize.minimize, abs, 1.0))
print(answer(certify))
"""
    assert in_a_base_installation(script, tmp_path).splitlines() == [
        missing("the data set digits", "scikit-learn", "data"),
        missing("a table", "PyArrow", "data"),
        missing("an image file", "Pillow", "data"),
        missing("a Parquet file", "PyArrow", "data"),
        missing("a plot", "Matplotlib", "plot"),
        missing("a figure", "Matplotlib", "plot"),
        missing("a figure", "Matplotlib", "plot"),
        missing("dz.minimize", "SciPy", "scipy"),
        missing("a certified radius", "SciPy", "scipy"),
    ]


def test_a_package_that_no_extra_brings_is_not_explained() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_package_of_this_name"), required_for("a plot"):
        import no_package_of_this_name  # noqa: F401
    with pytest.raises(MissingPackageError, match="a table needs PyArrow"), required_for("a table"):
        raise ModuleNotFoundError("No module named 'pyarrow.lib'", name="pyarrow.lib")
