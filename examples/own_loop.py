r"""
One line of your own training loop
==================================

You have a PyTorch loop: your network, your loss, your optimizer, a learning-rate schedule, gradient clipping. To train
the same network from function values, replace ``loss.backward()`` by ``zo.backward(x, y)`` and leave the rest alone.
"""

# %%
# What you already have
# ---------------------
# A network with batch norm, a loss with label smoothing, and 1,438 training images of 8x8 digits.

import copy

import matplotlib.pyplot as plt
import torch
from torch import nn

import deepzero as dz
from deepzero.data import BatchLoader, load_digits

train_set, test_set = load_digits()
train_batches = BatchLoader(train_set, batch_size=64, shuffle=True, drop_last=True, seed=0)
x_test, y_test = BatchLoader(test_set, batch_size=len(test_set)).batch(0, 0)
criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
EPOCHS = 4


def new_model():
    """The same initial weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


# %%
# The loop
# --------
# It is the one everybody writes. The only thing we ask of ``backward`` is to fill ``p.grad`` and to return the loss.


def train(model, backward):
    """Train ``model``; the loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=EPOCHS * len(train_batches))
    losses = []
    for epoch in range(EPOCHS):
        for x, y in train_batches.iterate(epoch):
            optimizer.zero_grad()
            losses.append(backward(x, y).item())
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            scheduler.step()
    return losses


def accuracy(model):
    """Share of test images that are classified correctly."""
    model.eval()
    with torch.no_grad():
        correct = (model(x_test).argmax(1) == y_test).float().mean()
    model.train()
    return float(correct)


# %%
# With autograd
# -------------

first_order = new_model()


def backward(x, y):
    """What the loop did so far."""
    loss = criterion(first_order(x), y)
    loss.backward()
    return loss


exact_losses = train(first_order, backward)
exact_accuracy = accuracy(first_order)
print(f"autograd: test accuracy {exact_accuracy:.1%}")

# %%
# From function values
# --------------------
# The same loop, the same first weights, the same batches. The estimator asks for the loss once at every coordinate, and
# moves batch norm's running statistics once a step, as a training forward does.

zeroth_order = new_model()
zo = dz.CGE(zeroth_order, loss=criterion, step_size=1e-3)

losses = train(zeroth_order, zo.backward)
print(f"function values: test accuracy {accuracy(zeroth_order):.1%} after {zo.queries:,} queries in {zo.step} steps")

# %%
# How close are the gradients?
# ----------------------------
# ``estimate`` is ``backward`` without effects. We compare it with autograd on a copy of the network, at the first
# weights and at the last ones.


def cosine_to_autograd(model, x, y):
    """Cosine of the angle between the estimate and the exact gradient."""
    gradients = dz.CGE(model, loss=criterion, step_size=1e-3).estimate(x, y).gradients
    twin = copy.deepcopy(model)
    exact = torch.autograd.grad(criterion(twin(x), y), list(twin.parameters()))
    flat = torch.cat([gradients[name].flatten() for name, _ in model.named_parameters()])
    return float(torch.cosine_similarity(flat, torch.cat([g.flatten() for g in exact]), dim=0))


x, y = train_batches.batch(0, 0)
cosines = {name: cosine_to_autograd(model, x, y) for name, model in (("first", new_model()), ("last", zeroth_order))}
print("cosine to autograd:", ", ".join(f"{value:.5f} at the {name} weights" for name, value in cosines.items()))

# %%
# The two runs see almost the same gradients, so they take almost the same path.

fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.plot(exact_losses, label="loss.backward()")
ax.plot(losses, "--", label="zo.backward(x, y)")
ax.set(xlabel="step", ylabel="training loss")
ax.legend()
plt.show()

assert min(cosines.values()) > 0.999
assert accuracy(zeroth_order) > 0.95
assert abs(accuracy(zeroth_order) - exact_accuracy) < 0.015
