r"""
F1 as the loss
==============

One sample in eight is positive. A network that always says "no" is right seven times out of eight, and useless. The F1
score tells the difference. It counts hits, so it is piecewise constant and has no gradient; here it is the loss.
"""

# %%
# The data
# --------
# Positives are a shell around the origin, with noise at its border.

import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import deepzero as dz


def samples(count, seed):
    """Five numbers and a rare class."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator)
    score = x[:, 0] + 0.7 * x[:, 1] ** 2 + 0.5 * torch.randn(count, generator=generator)
    return TensorDataset(x, (score > 2.3).long())


train_data, test_data = samples(2000, seed=0), samples(4000, seed=1)
x, y = train_data.tensors
print(f"{y.float().mean():.1%} of the samples are positive")

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))

# %%
# A start
# -------
# Far from a good network F1 is flat: without a hit it is 0, whichever way the weights move. So the usual loss comes
# first. It makes the network right most of the time, and shy of positives.

optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
for _ in range(60):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def scores(model):
    """F1 and accuracy on the test data."""
    inputs, targets = test_data.tensors
    with torch.no_grad():
        predicted = model(inputs).argmax(1)
    return f1_score(targets, predicted), (predicted == targets).float().mean().item()


before = scores(model)

# %%
# What you write
# --------------
# The loss, and an estimator for it. Two choices make it work:
#
# - ``dz.RGE``: a query moves all weights at once, so many samples change sides. The mean slope along random directions
#   is the gradient of the score *smoothed* over the step, and the smoothed score is no longer piecewise constant.
# - ``step_size=0.1``: large enough that queries see something. With 1e-4 nearly all of them return the same score.
#
# The score is one of the whole batch, so the batch is large.


# [your lines]
def missed_f1(model, x, y):
    """0 for a perfect classifier, 1 for one without a hit."""
    return 1.0 - f1_score(y, model(x).argmax(1))


whole = dz.SequentialEvaluator()  # scikit-learn is asked by whole evaluations
zo = dz.RGE(model, closure=missed_f1, queries=32, step_size=0.1, stencil=dz.CENTRAL, seed=0, evaluator=whole)
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
trainer = dz.Trainer(model, zo, optimizer, DataLoader(train_data, batch_size=2000))
trainer.fit(epochs=40)
# [end]

# %%
# What came out
# -------------
# On data that was not trained on, more of the positives are found, and accuracy does not suffer.

after = scores(model)
print(f"before: F1 {before[0]:.3f}, accuracy {before[1]:.1%}")
print(f"after:  F1 {after[0]:.3f}, accuracy {after[1]:.1%}, {zo.queries:,} queries")


# %%
# How much a step sees, by its size: directions along which the score changes at all.


def seen(step_size):
    """Part of 64 directions."""
    options = {"queries": 64, "stencil": dz.CENTRAL, "seed": 1, "evaluator": dz.SequentialEvaluator()}
    losses = []
    watched = lambda model, x, y: losses.append(missed_f1(model, x, y)) or losses[-1]  # noqa: E731
    dz.RGE(model, closure=watched, step_size=step_size, **options).estimate(x, y)
    base, *others = losses
    return sum(loss != base for loss in others) / len(others)


shares = {step_size: seen(step_size) for step_size in (1e-4, 1e-3, 1e-2, 1e-1)}
print(", ".join(f"step {step_size:g}: {share:.0%}" for step_size, share in shares.items()))

assert after[0] > before[0] + 0.05
assert after[1] > before[1] - 0.01
assert shares[1e-4] < 0.5 < shares[1e-1]
