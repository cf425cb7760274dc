r"""
An LSTM on sequences
====================

A recurrent network like any other: the estimator unrolls it by itself. Here an LSTM reads sequences of a random walk
and says whether the walk was higher at its end than at its highest point so far in the first half.
"""

# %%
# The sequences
# -------------
# 40 steps each; what counts lies far apart, so a network that forgets cannot know.

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import deepzero as dz


def sequences(count, seed):
    """Two numbers a step, a value and a marker; the class: is the sum of the two marked values positive?"""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 20, generator=generator)
    marks = torch.zeros(count, 20)
    first, second = torch.randint(0, 10, (2, count), generator=generator)
    marks[torch.arange(count), first] = marks[torch.arange(count), 10 + second] = 1.0
    return TensorDataset(torch.stack([values, marks], 2), ((values * marks).sum(1) > 0).long())


train_data, test_data = sequences(1024, seed=0), sequences(512, seed=1)
torch.manual_seed(0)
# %%
# What you write
# --------------


# [your lines]
class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(2, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


model = Reader()
optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
loader = DataLoader(train_data, batch_size=64, shuffle=True)
test = DataLoader(test_data, batch_size=512)
trainer = dz.Trainer(model, dz.CGE(model, loss=F.cross_entropy), optimizer, loader, test=test, clip_norm=1.0)
result = trainer.fit(epochs=15)
# [end]
print(result.summary)
