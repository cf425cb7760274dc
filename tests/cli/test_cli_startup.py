"""What comes before the work: help, mistakes and completion without PyTorch, and a first word at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deepzero
from deepzero.cli import main
from deepzero.cli.entry_point import COMMANDS

SLOW = ("torch", "numpy", "numba", "scipy", "sklearn", "matplotlib", "pyarrow", "PIL")
QUICK = [["--help"], [], ["--version"], ["trian"], ["train", "--lr", "1"], ["train", "--help"], ["completion", "bash"]]


def in_a_fresh_process(script: str, folder: Path) -> str:
    path = os.pathsep.join(filter(None, [str(Path(deepzero.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=False,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_mistakes_and_completion_import_nothing_that_takes_long(tmp_path: Path) -> None:
    script = f"""
import sys
from deepzero.cli import main
for words in {QUICK!r}:
    assert main(words) == (2 if words and words[-1] in ("trian", "1") else 0), words
print("imported:", [name for name in {SLOW!r} if name in sys.modules])
"""
    assert in_a_fresh_process(script, tmp_path).endswith("imported: []\n")


def test_the_package_imports_what_is_used_when_it_is_used(tmp_path: Path) -> None:
    script = f"""
import sys
import deepzero
before = [name for name in {SLOW!r} if name in sys.modules]
deepzero.CGE, deepzero.BlackBox, deepzero.Opaque
print(before, [name for name in {SLOW!r} if name in sys.modules and name not in ("torch", "numpy")])
"""
    assert in_a_fresh_process(script, tmp_path) == "[] []\n"


def test_every_name_of_the_package_is_there() -> None:
    assert set(deepzero.__all__) <= set(dir(deepzero))
    for name in deepzero.__all__:
        assert getattr(deepzero, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = deepzero.nothing_of_the_kind


def test_the_first_line_of_a_run_comes_before_pytorch(tmp_path: Path) -> None:
    script = """
import sys
from deepzero.cli import main
class Out:
    encoding = "utf-8"
    def write(self, text):
        if "loading PyTorch" in text:
            sys.__stdout__.write(f"{text.strip()} {'torch' in sys.modules}")
    def flush(self): pass
    def isatty(self): return False
sys.stdout = Out()
main(["recipes"])
"""
    assert in_a_fresh_process(script, tmp_path) == f"deepzero {deepzero.__version__}: loading PyTorch False"


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=lambda words: " ".join(words) or "deepzero")
def test_help_fits_the_screen(
    words: list[str], width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: deepzero")
    assert max(map(len, lines)) <= width


def test_help_of_the_program_tells_one_sentence_of_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert "torchrun" not in shown  # from the second paragraph of train


@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("python3") is None, reason="needs bash and python3")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tr", "train"),
        ("re", "recipes report reproduce"),
        ("train --lea", "--learning-rate"),
        ("train --estimator r", "rge"),
    ],
)
def test_bash_completes(line: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    script = f"""
source completion
COMP_WORDS=(deepzero {line})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_tyro_deepzero
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert sorted(done.stdout.split()) == expected.split()


def test_completion_knows_three_shells(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert "deepzero" in capsys.readouterr().out
    assert main(["completion", "tcsh"]) == 2
    assert "zsh" in capsys.readouterr().err
