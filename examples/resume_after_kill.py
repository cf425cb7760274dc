r"""
Killed in the middle, and resumed
=================================

A training is killed with SIGKILL: no warning, no chance to save anything. Started again by the same command it goes on
from its last checkpoint, and ends with the weights that it would have had anyway, to the last bit.
"""

# %%
# What you write
# --------------
# A training with an ``out`` folder and ``fit(resume="auto")``: it goes on if the folder holds a run, else it begins.
# Shuffling, dropout and momentum are there to make it hard; all that they depend on is in the checkpoints.

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch

TRAINING = """
import sys
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import deepzero as dz

# [your lines]
torch.manual_seed(0)
x = torch.randn(320, 20)
data = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())
model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 2))
trainer = dz.Trainer(
    model,
    dz.CGE(model, loss=F.cross_entropy, seed=0),
    torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
    DataLoader(data, batch_size=32, shuffle=True),
    out=sys.argv[1],
    checkpoint_steps=25,
)
trainer.fit(epochs=40, resume="auto")
# [end]
"""

work = Path(tempfile.mkdtemp())
(work / "training.py").write_text(TRAINING)


def start(folder):
    """Start the training in a process of its own."""
    return subprocess.Popen([sys.executable, "training.py", folder], cwd=work, stderr=subprocess.DEVNULL)


def steps(folder):
    """Steps that it has noted so far."""
    notes = work / folder / "metrics.jsonl"
    return notes.read_text().count('"kind": "step"') if notes.exists() else 0


# %%
# Killed
# ------

process = start("killed")
while steps("killed") < 110 and process.poll() is None:
    time.sleep(0.01)
process.send_signal(signal.SIGKILL)
process.wait()
print(f"killed after {steps('killed')} of 400 steps; exit code {process.returncode}")
print("checkpoints:", *sorted(path.name for path in (work / "killed" / "checkpoints").glob("step-*")))
assert process.returncode == -signal.SIGKILL
assert not (work / "killed" / "model.safetensors").exists()

# %%
# The same command again
# ----------------------
# And, to compare, the same training in one go in another folder.

runs = [start("killed"), start("unbroken")]
assert [process.wait() for process in runs] == [0, 0]

resumed, unbroken = (safetensors.torch.load_file(work / name / "model.safetensors") for name in ("killed", "unbroken"))
for name, weight in resumed.items():
    print(f"{name:9} {tuple(weight.shape)!s:10} the same bits: {torch.equal(weight, unbroken[name])}")
print("steps noted:", steps("killed"), "and", steps("unbroken"))

assert all(torch.equal(weight, unbroken[name]) for name, weight in resumed.items())
assert steps("killed") == steps("unbroken") == 400
