r"""
A first training run without gradients
======================================

We train a small convolutional network with batch norm on handwritten digits. The only thing we ever ask of the loss is
its value. Nothing here calls ``loss.backward()``, except once, to check.
"""

# %%
# Data and network
# ----------------
# Scikit-learn ships 1,797 digits of 8x8 pixels. The network has two blocks of convolution, batch norm, ReLU and
# pooling.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import deepzero as dz
from deepzero.models import SimpleCNN

images, labels = load_digits(return_X_y=True)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
x_all = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)[order] / 16
y_all = torch.tensor(labels)[order]
x_train, y_train, x_test, y_test = x_all[:1500], y_all[:1500], x_all[1500:], y_all[1500:]


def new_model():
    """The same initial weights every time."""
    torch.manual_seed(0)
    return SimpleCNN(depth=2, width=12, in_channels=1)


model = new_model()
print(sum(p.numel() for p in model.parameters()), "parameters")

# %%
# One gradient from function values
# ---------------------------------
# ``dz.CGE`` is the coordinate-wise estimator: each parameter in turn is moved by ``step_size``, and the change of
# the loss, divided by the step, is its partial derivative. ``backward`` adds the result to ``p.grad``, as
# ``loss.backward()`` would.

x, y = x_train[:64], y_train[:64]
zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-4)
loss = zo.backward(x, y)
estimate = torch.cat([p.grad.flatten() for p in model.parameters()])
print(f"loss {loss:.4f} from {zo.queries} queries")

# %%
# How good is it? This network has a true gradient, so we can compare.

model.zero_grad()
F.cross_entropy(model(x), y).backward()
exact = torch.cat([p.grad.flatten() for p in model.parameters()])
cosine = F.cosine_similarity(estimate, exact, dim=0)
print(f"cosine {cosine:.6f}, relative error {(estimate - exact).norm() / exact.norm():.1e}")
assert cosine > 0.99

# %%
# Random directions need fewer queries, and pay for it: with 192 directions most of the estimate is noise.

rge = dz.RGE(model, loss=F.cross_entropy, step_size=1e-4, queries=192, seed=0)
noisy = torch.cat([g.flatten() for g in rge.estimate(x, y).gradients.values()])
print(f"cosine {F.cosine_similarity(noisy, exact, dim=0):.3f} from 192 random directions")

# %%
# An ordinary training loop
# -------------------------
# The loop is the one everybody writes; only the line that fills ``p.grad`` is different.


def train(model, zo, steps):
    """Train for some steps; the base loss of every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    draw = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        batch = torch.randint(len(x_train), (64,), generator=draw)
        optimizer.zero_grad()
        losses.append(float(zo.backward(x_train[batch], y_train[batch])))
        optimizer.step()
    return losses


def accuracy(model):
    """Share of test images that are classified correctly."""
    model.eval()
    with torch.no_grad():
        correct = (model(x_test).argmax(1) == y_test).float().mean()
    model.train()
    return float(correct)


model = new_model()
zo = dz.CGE(model, loss=F.cross_entropy, step_size=5e-3)
dense = train(model, zo, steps=200)
dense_queries, dense_accuracy = zo.queries, accuracy(model)
print(f"dense: test accuracy {dense_accuracy:.1%} after {dense_queries:,} queries")
assert dense_accuracy > 0.9

# %%
# A part of the coordinates
# -------------------------
# ZO-GraSP scores every weight from function values. The scores give each layer its share of the queries; within a
# layer the coordinates are drawn again at every step. Here 80 % of the convolutional and linear weights rest at
# any one step, and none rests for long.

model = new_model()
scores = dz.sparsity.zo_grasp(model, F.cross_entropy, x, y, queries=192, step_size=5e-3, seed=0)
ratios = dz.sparsity.layer_ratios(scores, sparsity=0.8)
for name, ratio in ratios.items():
    print(f"{name:20} {ratio:.3f}")

# %%

zo = dz.CGE(model, loss=F.cross_entropy, step_size=5e-3, sparsity=dz.DynamicRatios(ratios, every=1))
sparse = train(model, zo, steps=200)
print(f"sparse: test accuracy {accuracy(model):.1%} after {zo.queries:,} queries")
assert zo.queries < 0.5 * dense_queries

# %%
# Both curves, against what they cost:

fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, losses, queries in (("dense", dense, dense_queries), ("80 % sparse", sparse, zo.queries)):
    ax.plot([queries * (k + 1) / len(losses) for k in range(len(losses))], losses, label=name)
ax.set(xlabel="queries", ylabel="training loss")
ax.legend()
plt.show()

# %%
# Another objective
# -----------------
# Whatever has a value can be the objective. A closure takes the model and what ``backward`` is given; here it adds a
# penalty on the weights. ``explain`` says how the queries are answered.


def penalized(model, x, y):
    """Cross entropy with smoothed labels, and a penalty."""
    penalty = sum(p.square().sum() for p in model.parameters())
    return F.cross_entropy(model(x), y, label_smoothing=0.1) + 1e-3 * penalty


zo = dz.CGE(model, closure=penalized, step_size=1e-4)
estimate = torch.cat([g.flatten() for g in zo.estimate(x, y).gradients.values()])
exact = torch.cat([g.flatten() for g in torch.autograd.grad(penalized(model, x, y), list(model.parameters()))])
assert F.cosine_similarity(estimate, exact, dim=0) > 0.99
print(zo.explain())

# %%
# From here
# ---------
# ``deepzero train`` runs this pipeline with everything a real run needs: checkpoints, bitwise resume, metrics, a
# plot. ``deepzero doctor`` tells beforehand how long it will take and which step size to choose.
