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
# Digits of 8x8 pixels, as spikes: every pixel fires once in 8 time steps, the brighter the earlier, and black ones
# never. An input is ``[n, 8, 64]``, time steps and pixels, of zeros and ones.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import deepzero as dz
from deepzero.data import load_digits


def spikes(dataset):
    """Pixels from 0 to 16 as the time steps at which they fire, and the labels."""
    pixels = dataset.inputs.flatten(1).long()
    when = torch.where(pixels > 0, (16 - pixels) // 2, -1)
    return TensorDataset((when[:, None] == torch.arange(8)[:, None]).float(), dataset.labels.long())


train_data, test_data = map(spikes, load_digits())
train, test = DataLoader(train_data, batch_size=64, shuffle=True), DataLoader(test_data, batch_size=360)
torch.manual_seed(0)

# %%
# What you write
# --------------
# Leaky integrate-and-fire neurons: a potential decays, input is added, and above 0.25 the neuron fires and falls by
# that. The step is nearly as large: ``step_size=0.2`` moves potentials so far that neurons fire at another time. So
# what is followed is the loss smoothed over that step.


# [your lines]
class Spiking(nn.Module):
    """24 neurons that spike, and 10 that collect."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 24), nn.Linear(24, 10)

    def forward(self, x):
        """What the outputs have collected in the end, ``[n, 10]``."""
        potential, collected = 0.0, 0.0
        for inputs in x.unbind(1):
            potential = 0.8 * potential + self.hidden(inputs)
            fired = (potential > 0.25).float()
            potential, collected = potential - 0.25 * fired, collected + self.out(fired)
        return collected


model = Spiking()
zo = dz.CGE(model, loss=F.cross_entropy, step_size=0.2, stencil=dz.CENTRAL)
trainer = dz.Trainer(model, zo, torch.optim.Adam(model.parameters(), lr=0.03), train, test=test)
result = trainer.fit(epochs=4)
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
# When the pixels and the hidden neurons fire, for the first digit that is taken for what it is:

k = (model(x).argmax(1) == y).nonzero()[0].item()
times = []
model.hidden.register_forward_hook(lambda *call: times.append(call[2][0]))
model(x[k : k + 1])
potential, fired = torch.zeros(24), []
for current in times:
    potential = 0.8 * potential + current.detach()
    fired.append(potential > 0.25)
    potential = potential - 0.25 * fired[-1].float()

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
for ax, seen, name in ((left, x[k], "pixel"), (right, torch.stack(fired), "neuron")):
    when, which = seen.nonzero(as_tuple=True)
    ax.plot(when + 1, which, "|", markersize=6)
    ax.set(xlabel="time step", ylabel=name, title=f"{name}s for a {y[k]}")
plt.show()

assert model.hidden.weight.grad is None or not model.hidden.weight.grad.any()
assert estimate.count_nonzero() > 0.2 * estimate.numel()
assert result.summary["test_accuracy"] > 0.85  # a guess is right in a tenth of the cases
