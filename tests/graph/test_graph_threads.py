"""Captures in threads do not disturb each other: the first estimates of a process may be made in several at once."""

import json
import logging
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deepzero as dz
from deepzero.graph.capture import _quiet

COLD = """
import json, logging, sys, threading, warnings
import torch
import torch.nn.functional as F
from torch import nn
import deepzero as dz

warnings.simplefilter("error", dz.errors.SlowQueriesWarning)  # full forwards take over where a capture fails
THREADS = 3
together, found = threading.Barrier(THREADS), {}
before = sys.stdout, sys.stderr, logging.root.handlers[:], logging.root.level, logging.getLogger("torch").level

def problem(seed):
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6 + seed), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6 + seed, 3))
    x, y = torch.randn(8, 5, generator=draw), torch.randint(3, (8,), generator=draw)
    return dz.CGE(model, loss=F.cross_entropy, evaluator="propagation", seed=seed), model, x, y

def gradients(zo, model, x, y):
    zo.backward(x, y)
    return [p.grad.flatten().tolist() for p in model.parameters()]

problems = {seed: problem(seed) for seed in range(THREADS)}

def estimate(seed):
    together.wait(60)
    try:
        found[seed] = gradients(*problems[seed])
    except Exception as error:
        found[seed] = repr(error)

threads = [threading.Thread(target=estimate, args=(seed,)) for seed in problems]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert before == (
    sys.stdout, sys.stderr, logging.root.handlers[:], logging.root.level, logging.getLogger("torch").level
)
alone = {seed: gradients(*problem(seed)) for seed in problems}  # the process is whole, too
print(json.dumps([found, alone]))
"""


def test_first_estimates_in_threads_at_once_are_those_of_one_after_another() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLD],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, alone = json.loads(done.stdout)
    assert found == alone
    assert [line for line in done.stderr.splitlines() if not line.endswith("this can take a while, once")] == []


def test_a_capture_silences_its_own_thread_alone() -> None:
    """Its records are dropped by filters: handlers, levels and streams of the process stay as they are."""
    log, seen = logging.getLogger("torch._threads_of_tests"), []
    keep = logging.Handler()
    keep.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(keep)
    streams = sys.stdout, sys.stderr
    try:
        with _quiet():
            assert (sys.stdout, sys.stderr) == streams
            log.warning("of the capture")
            other = threading.Thread(target=log.warning, args=("of another thread",))
            other.start()
            other.join()
        log.warning("afterwards")
    finally:
        log.removeHandler(keep)
    assert seen == ["of another thread", "afterwards"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_capture_of_another_thread_that_fails_disturbs_nobody(fails: bool) -> None:
    """One network cannot be exported; the others, at the same moment, are answered by propagation all the same."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if not fails or float(self.layer.weight.sum()) < 1e9 else x

    together, found = threading.Barrier(2), {}
    x, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1] * 3)

    def estimate(name: str, model: nn.Module, **options: Any) -> None:
        zo = dz.CGE(model, loss=F.cross_entropy, **options)
        together.wait(60)
        try:
            zo.backward(x, y)
            found[name] = True
        except dz.errors.GraphError:
            found[name] = False

    threads = [
        threading.Thread(target=estimate, args=("branching", Branching()), kwargs={"evaluator": "propagation"}),
        threading.Thread(target=estimate, args=("plain", nn.Linear(4, 2)), kwargs={"evaluator": "propagation"}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"branching": not fails, "plain": True}
