r"""
A black box inside my network
=============================

Most of the network is yours and differentiable; one part in the middle can only be asked: a service, a simulator, a
model file, a chip. ``dz.Opaque`` makes that part a layer. Everything around it is trained by autograd as ever, and its
own part of the chain rule is estimated from its answers.
"""

# %%
# Ten lines
# ---------
# The black box here is a NumPy function. It could be any callable that takes a batch and returns a row for each row.

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import deepzero as dz

rng = np.random.default_rng(0)
secret = rng.normal(size=(16, 10)) / 4


def service(z: np.ndarray) -> np.ndarray:
    """Nobody can differentiate this."""
    return (np.maximum(z, 0.1 * z) @ secret).astype(np.float32)


torch.manual_seed(0)
box = dz.Opaque(service, numpy=True, queries=8)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), box)

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(300):
    chosen = torch.randint(1500, (64,))
    optimizer.zero_grad()
    F.cross_entropy(model(x[chosen]), y[chosen]).backward()
    optimizer.step()

with torch.no_grad():
    accuracy = float((model(x[1500:]).argmax(1) == y[1500:]).float().mean())
print(f"test accuracy {accuracy:.1%} after {box.queries:,} queries in {box.calls} calls")
assert accuracy > 0.8

# %%
# What happened in ``backward``
# -----------------------------
# Autograd brought the cotangent :math:`v` (the gradient of the loss with respect to the ten outputs) to the black box,
# exactly. There, for each image by itself, :math:`\langle v, f(z) \rangle` was differenced along 8 orthonormal
# directions, all images and directions in one call. Autograd took the result on through the layers in front.
#
# How good is such an estimate? With :math:`q` orthonormal directions in :math:`d` dimensions its squared relative error
# is :math:`d/q - 1`: 1 here, and 0 with all 16.

z = torch.randn(64, 16, dtype=torch.float64, requires_grad=True)


def true(z: torch.Tensor) -> torch.Tensor:
    """The service again, for autograd alone."""
    return F.leaky_relu(z, 0.1) @ torch.from_numpy(secret)


v = torch.randn(64, 10, dtype=torch.float64)
(exact,) = torch.autograd.grad(true(z), z, v)
wide = dz.Opaque(lambda z: np.maximum(z, 0.1 * z) @ secret, numpy=True, queries=8)
(estimate,) = torch.autograd.grad(wide(z), z, v)
error = float((estimate - exact).square().sum() / exact.square().sum())
print(f"squared relative error {error:.2f}, by the formula {16 / 8 - 1:.2f}")
assert abs(error - 1) < 0.3

# %%
# Fewer queries with a guess
# --------------------------
# A differentiable guess of the black box, given or learned from the answers that were paid for anyway, takes its part
# of the gradient over. What remains to be estimated is the difference, so the error shrinks with it; the mean stays
# right however bad the guess is.

guess = dz.Learned(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10)).double(), lr=3e-3, steps=50)
helped = dz.Opaque(lambda z: np.maximum(z, 0.1 * z) @ secret, numpy=True, queries=2, surrogate=guess)
errors = []
for _ in range(30):
    (estimate,) = torch.autograd.grad(helped(z), z, v)
    errors.append(float((estimate - exact).square().sum() / exact.square().sum()))
print(f"2 directions: first {errors[0]:.2f}, after 30 products {errors[-1]:.2f}; without a guess {16 / 2 - 1:.2f}")
assert errors[-1] < errors[0]
