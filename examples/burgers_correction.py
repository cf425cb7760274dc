r"""
Bring your own simulator: NumPy
===============================

A solver on a coarse grid is fast and wrong. A small network can learn to correct its state after every step, and it
learns best inside of the simulation, where it sees the states that its own corrections lead to. The solver here is
plain NumPy, so autograd cannot go through it. ``dz.Corrected`` puts the network around it and asks it for function
values instead.
"""

# %%
# The simulator
# -------------
# Burgers' equation, :math:`u_t + (u^2 / 2)_x = \nu u_{xx}`, on a ring: waves steepen into shocks, and the viscosity
# :math:`\nu` smooths them. A simulator is any object with two functions. ``arrays`` gives a state as arrays of n rows:
# first what a step changes, then what a simulation keeps, here its viscosity. ``step`` advances n simulations side by
# side.

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import deepzero as dz

CELLS, FINER, TIME_STEP = 32, 4, 0.01


class Burgers:
    """Finite volumes with the flux of Rusanov, and ``substeps`` of Euler's method in a time step."""

    numpy = True

    def __init__(self, substeps=1):
        self.substeps = substeps

    def arrays(self, state):
        """The state is a dict: velocity ``[n, cells]`` and viscosity ``[n, 1]``."""
        return state["velocity"], state["viscosity"]

    def step(self, u, viscosity):
        """``u`` one time step later."""
        width, dt = 1 / u.shape[1], TIME_STEP / self.substeps
        for _ in range(self.substeps):
            right = np.roll(u, -1, axis=1)
            speed = np.maximum(abs(u), abs(right))
            flux = (u * u + right * right) / 4 - (speed / 2 + viscosity / width) * (right - u)
            u = u - dt / width * (flux - np.roll(flux, 1, axis=1))
        return u


# %%
# The reference
# -------------
# The same solver with four times as many cells and a quarter of the time step. A coarse cell should hold the mean of
# its four fine cells.


def random_waves(count, seed):
    """A state of ``count`` simulations on the fine grid: a few waves each, and a viscosity."""
    draw = np.random.default_rng(seed)
    x = (np.arange(CELLS * FINER) + 0.5) / (CELLS * FINER)
    waves = np.arange(1, 4)
    phases = draw.uniform(0, 2 * np.pi, (count, 3, 1))
    sizes = draw.uniform(-1, 1, (count, 3, 1)) / waves[:, None]
    velocity = (sizes * np.sin(2 * np.pi * waves[:, None] * x + phases)).sum(1)
    viscosity = draw.uniform(0.001, 0.004, (count, 1))
    return {"velocity": torch.from_numpy(velocity), "viscosity": torch.from_numpy(viscosity)}


def coarse(velocity):
    """Means over four cells."""
    return velocity.unflatten(-1, (CELLS, FINER)).mean(-1)


def reference(state, steps):
    """Coarse velocities ``[n, 1 + steps, cells]``, the first ones included."""
    fine = dz.Corrected(Burgers(substeps=FINER), steps=steps)  # without a network: the solver alone
    with torch.no_grad():
        path = fine(state)
    return coarse(torch.cat([state["velocity"][:, None], path], dim=1))


STEPS, ROLLOUT = 4, 60
train_state, test_state = random_waves(12, seed=0), random_waves(1, seed=1)
train_path, test_path = reference(train_state, ROLLOUT), reference(test_state, ROLLOUT)


def windows(draw, count):
    """Starts anywhere in the training simulations, and what follows in ``STEPS`` steps."""
    rows = torch.randint(len(train_path), (count,), generator=draw)
    times = torch.randint(ROLLOUT - STEPS + 1, (count,), generator=draw)
    start = {"velocity": train_path[rows, times], "viscosity": train_state["viscosity"][rows]}
    follows = train_path[rows[:, None], times[:, None] + torch.arange(1, STEPS + 1)]
    return start, follows


# %%
# The network
# -----------
# Three convolutions of 5 cells around the ring. The last one begins at zero, so training begins at the solver itself.


class Correction(nn.Module):
    """Velocities and viscosities to an increment of the velocities."""

    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        ring = {"kernel_size": 5, "padding": 2, "padding_mode": "circular"}
        last = nn.Conv1d(width, 1, **ring)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            *(nn.Conv1d(2, width, **ring), nn.GELU()),
            *(nn.Conv1d(width, width, **ring), nn.GELU()),
            last,
        ).double()

    def forward(self, velocity, viscosity):
        """``[n, cells]``."""
        seen = torch.stack([velocity, (100 * viscosity).expand_as(velocity)], dim=1)
        return 0.1 * self.layers(seen)[:, 0]


# %%
# Training
# --------
# Four steps, each a step of the solver and then a correction. ``loss.backward()`` goes through the network as always.
# Where it meets the solver, the product with the solver's Jacobian is a difference of function values along every
# coordinate of a row.

network = Correction()
corrected = dz.Corrected(Burgers(), network, steps=STEPS, directions="coordinates")


def error(trajectory, follows):
    """Mean squared error, in units that are easy to read."""
    return 1e4 * (trajectory - follows).square().mean()


optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
UPDATES = 150
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
draw = torch.Generator().manual_seed(2)
losses = []
for _ in range(UPDATES):
    start, follows = windows(draw, 16)
    optimizer.zero_grad()
    loss = error(corrected(start), follows)
    loss.backward()
    optimizer.step()
    scheduler.step()
    losses.append(loss.item())
print(f"loss {np.mean(losses[:10]):.3f} -> {np.mean(losses[-10:]):.3f}")
print(f"{corrected.solver.queries:,} rows asked of the solver in {corrected.solver.calls:,} calls")

# %%
# A simulation that it has not seen
# ---------------------------------
# Sixty steps from a new start with a new viscosity, fifteen times as far as in training.

test_start = {"velocity": test_path[:, 0], "viscosity": test_state["viscosity"]}


def rollout(network):
    """``[ROLLOUT, cells]``."""
    with torch.no_grad():
        return dz.Corrected(Burgers(), network, steps=ROLLOUT)(test_start)[0]


paths = {"solver alone": rollout(None), "corrected": rollout(network)}
errors = {name: (path - test_path[0, 1:]).square().mean(1).sqrt() for name, path in paths.items()}
for name, by_step in errors.items():
    print(f"{name}: error {by_step.mean():.4f} over the rollout, {by_step[-1]:.4f} at its end")

# %%
# The same gradient from losses alone
# -----------------------------------
# ``dz.CGE(corrected, loss=...)`` trains the same module, too. It moves every weight and asks for the loss: all these
# networks advance together, as rows of one call of the solver, and the first step is asked once, because no weight
# reaches it. Here both gradients are taken at the trained weights, on two windows.


def gradient(backward):
    """Of all weights in a row, and how many rows of the solver it took."""
    network.zero_grad()
    before = corrected.solver.queries
    backward()
    return torch.cat([p.grad.flatten() for p in network.parameters()]), corrected.solver.queries - before


start, follows = windows(draw, 2)
around, around_rows = gradient(lambda: error(corrected(start), follows).backward())
zo = dz.CGE(corrected, loss=error, step_size=1e-5, stencil=dz.CENTRAL)
from_losses, loss_rows = gradient(lambda: zo.backward(start, follows))
cosine = torch.cosine_similarity(around, from_losses, dim=0).item()
print(f"{len(around)} weights: cosine of the two gradients {cosine:.9f}")
print(f"rows of the solver: {around_rows:,} by autograd around it, {loss_rows:,} by CGE")

# %%
# At the end of the rollout, and its error by step:

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
centres = (np.arange(CELLS) + 0.5) / CELLS
left.plot(centres, test_path[0, -1], "k--", label="reference")
for name, path in paths.items():
    left.plot(centres, path[-1], label=name)
    right.semilogy(np.arange(1, ROLLOUT + 1), errors[name], label=name)
left.set(xlabel="x", ylabel="velocity")
left.legend()
right.set(xlabel="step", ylabel="root mean squared error")
right.legend()
plt.show()

assert errors["corrected"].mean() < errors["solver alone"].mean() / 2
assert cosine > 0.999999
