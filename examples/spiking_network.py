r"""
A spiking network, without a surrogate gradient
===============================================

A neuron that fires or does not fire has no useful derivative, so spiking networks are usually trained with a made-up
one, the surrogate gradient. Function values need none: here the network that is trained is the network that spikes.
"""

# %%
# The network
# -----------
# Leaky integrate-and-fire neurons: every time step the potential decays, the input is added, and a neuron whose
# potential exceeds 1 fires and falls back by 1. Pixels of the digits are the current; the class is the output neuron
# with the highest potential at the end.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import deepzero as dz
from deepzero.data import BatchLoader, load_digits

train_data, test_data = (TensorDataset(*BatchLoader(s, batch_size=len(s)).batch(0, 0)) for s in load_digits())
torch.manual_seed(0)
TIMES = 8

# %%
# What you write
# --------------

# [your lines]
class Spiking(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 24), nn.Linear(24, 10)

    def forward(self, x):
        current, potential, total = self.hidden(x.flatten(1)), 0.0, 0.0
        for _ in range(TIMES):
            potential = 0.8 * potential + current
            spikes = (potential > 1.0).float()
            potential, total = potential - spikes, total + self.out(spikes)
        return total


model = Spiking()
zo = dz.CGE(model, loss=F.cross_entropy, step_size=0.1, stencil=dz.CENTRAL)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
loader = DataLoader(train_data, batch_size=64, shuffle=True)
result = dz.Trainer(model, zo, optimizer, loader, test=DataLoader(test_data, batch_size=360)).fit(epochs=4)
# [end]
print(result.summary)
