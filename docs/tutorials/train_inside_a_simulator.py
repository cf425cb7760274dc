r"""
Train a network inside a simulator
==================================

A coarse simulation is fast and wrong, a fine one is right and slow. A network that corrects the coarse one after every
step gives something in between, if it has learned what its corrections lead to: it has to be trained *inside* of the
simulation. Most simulators cannot be differentiated. This page trains such a network all the same, from runs of the
simulator.

``deepzero correct`` does the same for the flow around a cylinder, by PhiFlow's solver.
"""

# %%
# A simulator
# -----------
# Any object with two functions is one. ``arrays(state)`` gives the values that a step changes, and after them what a
# simulation keeps as it is; ``step(values, *constants)`` takes a step. Many simulations advance side by side, one a
# row. This one is in NumPy: Lorenz's equations for convection (1963), by Euler's method with steps that are too large.

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import deepzero as dz

STEP = 0.02


def velocity(x, rho):
    return np.stack(
        [
            10 * (x[:, 1] - x[:, 0]),
            x[:, 0] * (rho[:, 0] - x[:, 2]) - x[:, 1],
            x[:, 0] * x[:, 1] - 8 / 3 * x[:, 2],
        ],
        axis=1,
    )


class Euler:
    numpy = True  # arrays are NumPy's

    def arrays(self, state):
        return state["x"], state["rho"]

    def step(self, x, rho):
        return x + STEP * velocity(x, rho)


# %%
# The reference takes ten steps of Runge and Kutta's method in the same time. Training simulations start on the
# attractor, at four values of the constant :math:`\rho`; the test is at a fifth.


def right_step(x, rho):
    h = STEP / 10
    for _ in range(10):
        a = velocity(x, rho)
        b = velocity(x + h / 2 * a, rho)
        c = velocity(x + h / 2 * b, rho)
        d = velocity(x + h * c, rho)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x


def reference(rhos, steps, seed):
    generator = np.random.default_rng(seed)
    rho = np.repeat(np.array(rhos), 16)[:, None]
    x = generator.normal((1.0, 1.0, 20.0), 1.0, size=(len(rho), 3))
    frames = []
    for k in range(200 + steps):
        x = right_step(x, rho)
        if k >= 200:
            frames.append(x)
    return torch.tensor(np.stack(frames, axis=1)), torch.tensor(rho)


frames, rho = reference((26.0, 27.0, 29.0, 30.0), steps=200, seed=0)
test, test_rho = reference((28.0,), steps=51, seed=1)

# %%
# The network in the loop
# -----------------------
# ``dz.Corrected`` unrolls n steps, :math:`s_{i+1} = P(s_i) + C_\theta(P(s_i))`. The solver's step :math:`P` is a
# ``dz.Opaque``: autograd differentiates the network, and where it meets the solver, the solver's part of the chain rule
# is estimated from runs along orthonormal directions of each state. A state has three entries here, so three directions
# tell all; large states make do with a few, and each estimate is unbiased.


class Correction(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 3))
        nn.init.zeros_(self.layers[-1].weight)  # begin with the solver as it is
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x, rho):
        return self.layers(torch.cat([(x - centre) / spread, (rho - 28) / 2], dim=1))


centre, spread = frames.mean(dim=(0, 1)), frames.std(dim=(0, 1))
torch.manual_seed(0)
network = Correction().double()
corrected = dz.Corrected(Euler(), network, steps=4, queries=3)
optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)


def batch(size=64, steps=4):
    simulation = torch.randint(len(frames), (size,))
    start = torch.randint(frames.shape[1] - steps, (size,))
    following = torch.stack([frames[simulation, start + i] for i in range(1, steps + 1)], dim=1)
    return {"x": frames[simulation, start], "rho": rho[simulation]}, following


def loss(trajectory, following):
    return ((trajectory - following) / spread).square().mean()


for step in range(600):
    optimizer.zero_grad()
    state, following = batch()
    value = loss(corrected(state), following)
    value.backward()
    optimizer.step()
    schedule.step()
    if step % 200 == 0 or step == 599:
        print(f"step {step}: loss {value.item():.2e}")

print(f"{corrected.solver.queries:,} steps of single simulations in {corrected.solver.calls:,} calls of the solver")

# %%
# What came of it
# ---------------
# Fifty steps from states that it has never seen, at a constant that it was not trained on.


def errors(network):
    with torch.no_grad():
        found = dz.Corrected(Euler(), network, steps=50)({"x": test[:, 0], "rho": test_rho})
    return ((found - test[:, 1:]) / spread).abs().mean(dim=(0, 2))


alone, with_network = errors(None), errors(network)
print(f"mean error: the coarse solver alone {alone.mean():.4f}, corrected {with_network.mean():.4f}")
assert with_network.mean() < 0.2 * alone.mean()

plt.semilogy(alone, label="coarse solver alone")
plt.semilogy(with_network, label="corrected")
plt.xlabel("step")
plt.ylabel("mean absolute error (standard deviations)")
plt.legend()
plt.show()

# %%
# From function values alone
# --------------------------
# The network need not be differentiated either. An estimator moves one weight at a time; all perturbed networks advance
# together, as rows of one call, and the first step of the solver, which no weight has touched yet, is taken once.

state, following = batch(size=8)
zo = dz.CGE(corrected, loss=loss, step_size=1e-6, stencil=dz.CENTRAL)
before = corrected.solver.calls
estimate = zo.estimate(state, following)
print(f"{estimate.queries:,} values of the loss in {corrected.solver.calls - before} calls of the solver")
optimizer.zero_grad()
loss(corrected(state), following).backward()
slopes = torch.cat([estimate.gradients[name].flatten() for name, _ in corrected.named_parameters()])
exact = torch.cat([p.grad.flatten() for p in corrected.parameters()])
print(f"they agree with autograd around the solver to {float((slopes - exact).norm() / exact.norm()):.0e}")
assert torch.allclose(slopes, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
