r"""
A compiled C step through ctypes
================================

Pendulums stand on motors and fall over, unless a controller holds them up. The physics is a C function, as in a game
engine or in the firmware of a test bench: it takes one step of many pendulums, and it knows nothing of gradients. The
controller is a small network in PyTorch, trained through the C code.
"""

# %%
# The step in C
# -------------
# One step of n pendulums by the method of Runge and Kutta. A row is the angle from upright, the angular velocity, and
# the torque of the motor; the torque is used up by the step, so it comes back as 0. Each pendulum has its own length.

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import deepzero as dz

SOURCE = r"""
#include <math.h>

static double turn(double angle, double spin, double torque, double length) {
    return 9.81 / length * sin(angle) - 0.1 * spin + torque / (length * length);
}

/* rows of (angle, spin, torque), and a length for each row; time in seconds, mass 1 kg */
void step(double *rows, const double *lengths, long n, double dt) {
    for (long k = 0; k < n; k++) {
        double *row = rows + 3 * k, length = lengths[k], weights[4] = {1, 2, 2, 1}, parts[4] = {0, 0.5, 0.5, 1};
        double speed = 0, force = 0, angle = 0, spin = 0;
        for (int stage = 0; stage < 4; stage++) {
            double s = row[1] + parts[stage] * dt * force;
            force = turn(row[0] + parts[stage] * dt * speed, s, row[2], length);
            speed = s;
            angle += weights[stage] * dt / 6 * speed;
            spin += weights[stage] * dt / 6 * force;
        }
        row[0] += angle;
        row[1] += spin;
        row[2] = 0;
    }
}
"""


def compiled(compiler, folder):
    """The function ``step`` from a shared library."""
    source, library = Path(folder) / "step.c", Path(folder) / "step.so"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", source, "-o", library, "-lm"], check=True)
    step = ctypes.CDLL(str(library)).step
    rows = np.ctypeslib.ndpointer(np.float64, flags="C_CONTIGUOUS")
    step.argtypes, step.restype = [rows, rows, ctypes.c_long, ctypes.c_double], None
    return step


# %%
# The simulator
# -------------
# Two functions are all that ``dz.Corrected`` asks for. The step may write into its arrays: it works on copies.

TIME_STEP = 0.05


class Pendulums:
    """Many pendulums side by side, advanced by the C function."""

    numpy = True

    def __init__(self, function):
        self.function = function

    def arrays(self, state):
        """Rows of angle, spin and torque, and the lengths that stay as they are."""
        return state["rows"], state["lengths"]

    def step(self, rows, lengths):
        """``rows`` one step later."""
        self.function(rows, lengths, len(rows), TIME_STEP)
        return rows


# %%
# The controller
# --------------
# ``dz.Corrected`` adds what the network returns to the state after each step. The only thing that this network adds is
# a torque, which the next step of the C code then feels.

TORQUE = 10.0  # N m, at most


class Controller(nn.Module):
    """Angle, angular velocity and length to a torque."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1)).double()

    def forward(self, rows, lengths):
        """``[n, 3]``, of which the last column is not zero."""
        angle, spin = rows[:, :1], rows[:, 1:2]
        seen = torch.cat([angle.sin(), angle.cos(), spin / 5, lengths], dim=1)
        return nn.functional.pad(TORQUE * torch.tanh(self.layers(seen)), (2, 0))


def leaning(count, seed):
    """Pendulums from 0.5 to 1.5 m long that lean and are falling already."""
    draw = np.random.default_rng(seed)
    rows = draw.uniform(-1, 1, (count, 3)) * [0.4, 0.5, 0]
    lengths = draw.uniform(0.5, 1.5, (count, 1))
    return {"rows": torch.from_numpy(rows), "lengths": torch.from_numpy(lengths)}


def cost(path):
    """Mean over all steps: 0 for pendulums that stand still upright without a torque."""
    angle, spin, torque = path.unbind(-1)
    return ((1 - angle.cos()) + 0.02 * spin.square() + 0.001 * torque.square()).mean()


# %%
# Training
# --------
# A step changes three numbers of each row, so 6 queries a row give the whole product with its Jacobian, and
# ``loss.backward()`` goes on to the step before. The loss covers a second and a half.

STEPS, UPDATES, ROWS = 30, 60, 16


def train(simulator):
    """The controller, and the cost at every update."""
    controller = Controller()
    corrected = dz.Corrected(simulator, controller, steps=STEPS, directions="coordinates")
    optimizer = torch.optim.Adam(controller.parameters(), lr=2e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    costs = []
    for update in range(UPDATES):
        optimizer.zero_grad()
        loss = cost(corrected(leaning(ROWS, seed=update)))
        loss.backward()
        nn.utils.clip_grad_norm_(controller.parameters(), max_norm=1.0)
        optimizer.step()
        scheduler.step()
        costs.append(loss.item())
    print(f"{corrected.solver.queries:,} rows in {corrected.solver.calls:,} calls of the C function")
    return controller, costs


# %%
# The result
# ----------
# Two hundred pendulums that it has not seen, for ten seconds, before and after. Where there is no compiler, nothing is
# run.


def angles(simulator, controller):
    """Of the unseen pendulums, ``[200, 200 steps]``, and the share that stays up; cost and share are printed."""
    with torch.no_grad():
        path = dz.Corrected(simulator, controller, steps=200)(leaning(200, seed=UPDATES))
    up = (path[:, :, 0].abs() < 1).all(1).double().mean().item()
    print(f"cost {cost(path).item():.4f}, {up:.1%} of the pendulums stay up for ten seconds")
    return path[:, :, 0], up


def main(compiler):
    """Compile, train, look."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        simulator = Pendulums(compiled(compiler, folder))
    before, up_before = angles(simulator, Controller())
    controller, costs = train(simulator)
    after, up = angles(simulator, controller)

    _, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
    left.semilogy(costs)
    left.set(xlabel="update", ylabel="cost")
    seconds = TIME_STEP * np.arange(1, 61)
    right.plot(seconds, before[:12, :60].T, color="tab:red", alpha=0.5)
    right.plot(seconds, after[:12, :60].T, color="tab:blue", alpha=0.5)
    right.set(xlabel="time, s", ylabel="angle, rad", ylim=(-4, 4), title="before (red) and after (blue)")
    plt.show()

    assert up_before < 0.05
    assert up > 0.99
    assert costs[-1] < 0.05 * costs[0]


compiler = shutil.which("cc") or shutil.which("gcc")
if compiler is None:
    print("there is no C compiler here (neither cc nor gcc is on the path), so nothing is run")
else:
    main(compiler)
