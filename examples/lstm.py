r"""
An LSTM on sequences
====================

A recurrent network is estimated like any other: its time steps are unrolled in the exported graph, and a difference of
a weight is carried through all of them.
"""

# %%
# The sequences
# -------------
# The adding problem of Hochreiter and Schmidhuber (1997), as two classes: in every sequence two values are marked, one
# in its first and one in its second half, and their sum is positive or not. What counts lies far apart, so a network
# that forgets cannot know.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import deepzero as dz

LENGTH = 10


def sequences(count, seed):
    """Sequences ``[count, LENGTH, 2]`` of values and marks, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    values, marks = torch.randn(count, LENGTH, generator=generator), torch.zeros(count, LENGTH)
    first, second = torch.randint(0, LENGTH // 2, (2, count), generator=generator)
    marks[torch.arange(count), first] = marks[torch.arange(count), LENGTH // 2 + second] = 1.0
    return TensorDataset(torch.stack([values, marks], 2), ((values * marks).sum(1) > 0).long())


train = DataLoader(sequences(1024, seed=0), batch_size=64, shuffle=True)
test = DataLoader(sequences(1024, seed=1), batch_size=1024)
history = []
torch.manual_seed(0)

# %%
# What you write
# --------------
# The network, and a trainer for it. Its gradient is clipped, as is usual for recurrent networks, and a callback keeps
# what the run tells.


# [your lines]
class Reader(nn.Module):
    """An LSTM, and a layer that looks at its last state."""

    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        """Scores of the two classes, ``[n, 2]``."""
        return self.out(self.lstm(x)[0][:, -1])


model = Reader()
optimizer = torch.optim.Adam(model.parameters(), lr=0.06)
trainer = dz.Trainer(
    *(model, dz.CGE(model, loss=F.cross_entropy), optimizer, train),
    validation=test,
    callbacks=[lambda _, record: history.append(record)],
    clip_norm=1.0,
)
result = trainer.fit(epochs=7)
# [end]

# %%
# What came out
# -------------

summary = result.summary
print(f"accuracy {summary['validation_accuracy']:.1%} on sequences it was not trained on")
print(f"{summary['parameters']} weights, {summary['steps']} steps, {summary['queries']:,} queries")

steps = [record for record in history if record["kind"] == "step"]
epochs = [record for record in history if record["kind"] == "epoch"]
plt.figure(figsize=(6, 3.5), layout="constrained")
plt.plot([record["step"] for record in steps], [record["loss"] for record in steps], label="training")
plt.plot([record["step"] for record in epochs], [record["validation_loss"] for record in epochs], "o-", label="new")
plt.xlabel("step")
plt.ylabel("loss")
plt.legend()
plt.show()

assert summary["validation_accuracy"] > 0.9  # a guess is right in half of the cases
