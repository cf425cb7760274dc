r"""
A simulator in plain NumPy
==========================

A pole stands on a cart, and the cart's motor knows three commands: left, off, right. A small controller has to keep
the pole up. The simulator is ordinary NumPy code with a switch in the motor and an end to every fall, so there is
nothing to differentiate. For the estimator it is a black box: a dict of arrays in, a number out.
"""

# %%
# The simulator
# -------------
# The classic cart and pole (Barto, Sutton and Anderson, 1983), for many starts at once. The controller maps position,
# velocity, angle and angular velocity to one of the three commands.

import matplotlib.pyplot as plt
import numpy as np
import torch

import deepzero as dz

GRAVITY, CART, POLE, HALF_LENGTH, FORCE = 9.8, 1.0, 0.1, 0.5, 6.0  # SI units
TIME_STEP, STEPS = 0.04, 100
MAX_POSITION, MAX_ANGLE = 2.4, 0.5


def motor(gains, state):
    """-1, 0 or +1 for every start: a hidden layer, then a switch."""
    return np.rint(np.tanh(gains["out"] @ np.tanh(gains["hidden"] @ state)))


def accelerations(angle, spin, force):
    """Of the cart and of the pole."""
    sin, cos = np.sin(angle), np.cos(angle)
    push = (force + POLE * HALF_LENGTH * spin * spin * sin) / (CART + POLE)
    turn = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4 / 3 - POLE / (CART + POLE) * cos * cos))
    return push - POLE * HALF_LENGTH / (CART + POLE) * turn * cos, turn


def simulate(gains, starts):
    """Cost and angle, each ``[STEPS, starts]``. After a fall the cost is 1 and the angle NaN."""
    state, path = starts.copy(), []
    for _ in range(STEPS):
        cart, pole = accelerations(state[2], state[3], FORCE * motor(gains, state))
        state[1] += TIME_STEP * cart
        state[3] += TIME_STEP * pole
        state[::2] += TIME_STEP * state[1::2]
        path.append(state.copy())
    position, angle = np.stack(path, axis=1)[::2]
    up = np.logical_and.accumulate((np.abs(position) < MAX_POSITION) & (np.abs(angle) < MAX_ANGLE))
    offset = (position / MAX_POSITION) ** 2 + (angle / MAX_ANGLE) ** 2
    return np.where(up, offset / 2, 1), np.where(up, angle, np.nan)


def random_starts(count, seed):
    """Poles that lean and move a little, anywhere near the middle: ``[4, count]``."""
    spread = np.array([1.0, 0.5, 0.15, 0.3])
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4)).T * spread[:, None]


# %%
# The black box
# -------------
# The loss is the mean cost over 32 starts. They are the same at every query: the difference of two losses must mean a
# difference of the controllers.

train_starts, test_starts = random_starts(32, seed=0), random_starts(500, seed=1)


def loss(gains):
    """From 0 (every pole upright in the middle) to 1 (every pole falls at once)."""
    return simulate(gains, train_starts)[0].mean()


def new_gains():
    """The same 30 random gains every time."""
    draw = np.random.default_rng(1)
    return {"hidden": draw.normal(size=(6, 4)) / 2, "out": draw.normal(size=6) / 2}


# %%
# Two ways to spend queries
# -------------------------
# CGE asks on either side of every coordinate: 61 queries for one good gradient. RGE asks on either side along 10 random
# directions: 21 queries for a rough one, so it makes about three times as many steps. Both use steps large enough to
# throw switches. The optimizer is any of ``torch.optim``; it updates the NumPy arrays in place.

BUDGET = 2400


def tune(make_estimator, learning_rate):
    """Gains after about ``BUDGET`` queries; queries and loss at every step."""
    box = dz.BlackBox(loss, new_gains())
    zo = make_estimator(box)
    optimizer = torch.optim.Adam(box.parameters(), lr=learning_rate)
    history = []
    while zo.queries < BUDGET:
        optimizer.zero_grad()
        history.append((zo.queries, zo.backward().item()))
        optimizer.step()
    return box.values, history


runs = {
    "CGE": tune(lambda box: dz.CGE(box, step_size=0.3, stencil=dz.CENTRAL), 0.1),
    "RGE": tune(lambda box: dz.RGE(box, step_size=0.1, queries=10, stencil=dz.CENTRAL, seed=0), 0.05),
}

# %%
# The result
# ----------
# On 500 starts that neither of them has seen:


def share_up(gains):
    """Share of the unseen starts whose pole is up at the end."""
    return float(np.isfinite(simulate(gains, test_starts)[1][-1]).mean())


print(f"before: {share_up(new_gains()):.1%} of the poles stay up")
for name, (gains, history) in runs.items():
    (_, first), (queries, last) = history[0], history[-1]
    print(f"{name}: loss {first:.3f} -> {last:.3f} after {queries:,} queries, {share_up(gains):.1%} stay up")

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
for name, (_, history) in runs.items():
    left.semilogy(*zip(*history, strict=True), label=f"{name}, {len(history)} steps")
left.set(xlabel="queries", ylabel="loss")
left.legend()
seconds = TIME_STEP * np.arange(1, STEPS + 1)
right.plot(seconds, simulate(new_gains(), test_starts[:, :20])[1], color="tab:red", alpha=0.5)
right.plot(seconds, simulate(runs["CGE"][0], test_starts[:, :20])[1], color="tab:blue", alpha=0.5)
right.set(xlabel="time, s", ylabel="angle, rad", title="before (red) and after (blue)")
plt.show()

assert share_up(new_gains()) < 0.1
assert all(share_up(gains) > 0.99 for gains, _ in runs.values())
