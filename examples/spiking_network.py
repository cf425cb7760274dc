r"""
A spiking network, without a surrogate gradient
===============================================

A neuron that fires or does not fire has no useful derivative, so spiking networks are usually trained with a made-up
one, the surrogate gradient (Neftci et al., 2019). Function values need none: the network that spikes is trained as it
is.
"""

# %%
# What you have
# -------------
# The digits of scikit-learn, 8x8 pixels; and a class for the network below, whose neurons are leaky and integrate: in
# every time step a potential decays, its input is added, and if it is above 1 the neuron fires and falls by 1. A pixel
# is a constant current, and an output collects spikes.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import deepzero as dz
from deepzero.data import BatchLoader, load_digits

train_data, test_data = (TensorDataset(*BatchLoader(s, batch_size=len(s)).batch(0, 0)) for s in load_digits())
train, test = DataLoader(train_data, batch_size=64, shuffle=True), DataLoader(test_data, batch_size=360)
torch.manual_seed(0)

# %%
# What you write
# --------------
# The network as it is, and a step as large as its jumps: ``step_size=0.1`` moves potentials far enough that some
# neurons fire at another time. What is followed is the loss smoothed over that step.


# [your lines]
class Spiking(nn.Module):
    """24 neurons that spike, and 10 that collect."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 24), nn.Linear(24, 10)

    def forward(self, x):
        """What the outputs have collected in 8 time steps, ``[n, 10]``."""
        current, potential, collected = self.hidden(x.flatten(1)), 0.0, 0.0
        for _ in range(8):
            potential = 0.8 * potential + current
            spikes = (potential > 1.0).float()
            potential, collected = potential - spikes, collected + self.out(spikes)
        return collected


model = Spiking()
zo = dz.CGE(model, loss=F.cross_entropy, step_size=0.1, stencil=dz.CENTRAL)
trainer = dz.Trainer(model, zo, torch.optim.Adam(model.parameters(), lr=0.02), train, test=test)
result = trainer.fit(epochs=3)
# [end]

# %%
# What autograd sees
# ------------------
# Nothing, in front of the threshold: the hidden layer would stay as it is.

x, y = next(iter(test))
model.zero_grad()
F.cross_entropy(model(x), y).backward()
print("autograd's gradient of the hidden layer:", model.hidden.weight.grad)
estimate = zo.estimate(x, y).gradients["hidden.weight"]
print(f"from function values: norm {estimate.norm():.3f}, {(estimate != 0).float().mean():.0%} of the entries not zero")

# %%
# What came out
# -------------

print(f"test accuracy {result.summary['test_accuracy']:.1%} after {result.summary['queries']:,} queries")

# %%
# The potentials of the hidden neurons for one digit: the times at which each of them fires.

with torch.no_grad():
    current, potential, fired = model.hidden(x[:1].flatten(1))[0], torch.zeros(24), []
    for _ in range(8):
        potential = 0.8 * potential + current
        fired.append(potential > 1.0)
        potential = potential - fired[-1].float()
times, neurons = torch.stack(fired).nonzero(as_tuple=True)
plt.figure(figsize=(6, 3), layout="constrained")
plt.plot(times + 1, neurons, "|", markersize=8)
plt.xlabel("time step")
plt.ylabel("neuron")
plt.title(f"spikes for a {y[0]}, taken for a {model(x[:1]).argmax().item()}")
plt.show()

assert model.hidden.weight.grad is None or not model.hidden.weight.grad.any()
assert estimate.count_nonzero() > 0.2 * estimate.numel()
assert result.summary["test_accuracy"] > 0.85  # a guess is right in a tenth of the cases
