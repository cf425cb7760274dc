"""A first signal is answered while the step is still running, a second one stops the command, and the run goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import pytest

from deepzero.cli import main
from deepzero.training import read_metrics

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

RECIPE = """
import time
from pathlib import Path
import torch
import torch.nn.functional as F
import deepzero as dz

steps = []

def loss(output, y):
    while Path("slow").exists() and len(steps) == 2:
        Path("at-work").touch()
        time.sleep(0.01)
    return F.cross_entropy(output, y)

def recipe():
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    model = torch.nn.Linear(3, 2)
    zo = dz.CGE(model, loss=loss, evaluator=dz.SequentialEvaluator())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    count = lambda trainer, record: steps.append(record) if record["kind"] == "step" else None
    return dz.Trainer(model, zo, optimizer, [(x, (x.sum(1) > 0).long())] * 4, epochs=1, callbacks=[count], model_file=None)
"""


def lines_until(stream: IO[str], text: str) -> str:
    """What a process prints until a text is there."""
    printed = ""
    while text not in " ".join(printed.split()):
        line = stream.readline()
        assert line, printed
        printed += line
    return printed


@pytest.mark.parametrize(
    ("number", "said", "code"),
    [
        (signal.SIGINT, "SIGINT: finishing this step, then saving; press Ctrl-C again to stop now", 130),
        (signal.SIGTERM, "SIGTERM: finishing this step, then saving; a second one stops it now", -signal.SIGTERM),
    ],
)
def test_a_second_signal_stops_a_long_step_and_the_run_goes_on(
    number: Any, said: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, slow = Path(f"recipe_of_signals_{number.name}.py"), Path("slow")
    recipe.write_text(RECIPE)
    slow.touch()
    command = ["train", str(recipe), "--checkpoint-steps", "1", "--out", "run"]
    with subprocess.Popen(
        [sys.executable, "-m", "deepzero", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 100
        while not Path("at-work").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert process.stdout is not None
        process.send_signal(number)
        lines_until(process.stdout, said)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=60) == code
    slow.unlink()
    assert main(["train", "--resume", "--out", "run"]) == 0
    steps = [record["step"] for record in read_metrics(Path("run/metrics.jsonl")) if record["kind"] == "step"]
    assert steps == [1, 2, 3, 4]
