"""The peak of an estimate, measured in a process of its own, never exceeds the budget that a user gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MEBI = 1 << 20

PROGRAM = """
import json, sys
import torch, torch.nn.functional as F
from torch import nn
import deepzero as dz

torch.set_num_threads(1)
kind, budget, workers, verify = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "verify"
class Accumulated(nn.Module):
    def forward(self, x):
        return x.logcumsumexp(3)

class Inverse(nn.Module):
    def forward(self, x):
        return x.asinh()

NETWORKS = {
    "conv": lambda: nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(24, 24, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)),
    "fallback": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), Accumulated(), nn.Conv2d(16, 16, 3, padding=1), nn.InstanceNorm2d(16), nn.PReLU(16),
        nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
    "evaluated": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), Inverse(), nn.Softplus(), nn.Conv2d(16, 16, 3, padding=1), Inverse(), nn.Hardswish(),
        nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
    "attention": lambda: nn.Sequential(
        nn.Flatten(2), nn.Linear(1024, 64), nn.TransformerEncoderLayer(64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True),
        nn.Flatten(), nn.Linear(192, 10)),
}

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

def estimate(batch):
    model = NETWORKS[kind]()
    coordinates = dz.Coordinates({n: torch.arange(0, p.numel(), max(1, p.numel() // 12)) for n, p in model.named_parameters()})
    evaluator = dz.PropagationEvaluator(memory_budget=budget, workers=workers, verify=verify)
    zo = dz.CGE(model, loss=F.cross_entropy, evaluator=evaluator, sparsity=coordinates)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = memory("VmRSS")
    zo.estimate(x, y)
    zo.estimate(x, y)
    return memory("VmHWM") - before

estimate(2)  # imports, compiled loops, thread pools
print(json.dumps(estimate(int(sys.argv[5]))))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")


def peak(kind: str, budget: int, *, workers: int, verify: bool, batch: int) -> int:
    """Bytes that an estimate takes at its peak, beyond model and batch."""
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        kind,
        str(budget),
        str(workers),
        "verify" if verify else "trust",
        str(batch),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return int(json.loads(answer.stdout))


@pytest.mark.parametrize(
    ("kind", "budget", "batch"),
    [("conv", 360, 64), ("fallback", 360, 64), ("evaluated", 360, 64), ("attention", 360, 512)],
)
def test_the_peak_stays_within_the_budget(kind: str, budget: int, batch: int) -> None:
    used = peak(kind, budget * MEBI, workers=2, verify=True, batch=batch) / MEBI
    assert used <= budget, f"{used:.0f} MiB of {budget} MiB"
