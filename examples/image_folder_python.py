r"""
Your own network on a folder of images, from Python
===================================================

As in :doc:`/gallery/examples/image_folder_shell`, but with your own ``Dataset``, ``DataLoader``, optimizer and
scheduler: ``dz.Trainer`` takes what you have, and adds checkpoints, validation, the choice of the best weights, and a
folder with everything in it.
"""

# %%
# What you already have
# ---------------------
# A ``Dataset`` that reads images. For this page they are drawn: stripes in three directions, 16x16 pixels.

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, random_split

import deepzero as dz

KINDS = {"across": (1, 0), "rising": (1, 1), "upright": (0, 1)}


def draw(kind, seed):
    """A noisy gray image of stripes, of a width and at a place of its own."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    phase = (KINDS[kind][0] * y + KINDS[kind][1] * x) / random.uniform(0.6, 1.2) + random.uniform(0, 6)
    noisy = 128 + 60 * np.sin(phase) + random.normal(0, 25, (16, 16))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


class Stripes(Dataset):
    """Image files in a folder for each class, as tensors ``[1, 16, 16]`` and class numbers."""

    def __init__(self, folder):
        self.classes = sorted(path.name for path in folder.iterdir())
        self.files = sorted(folder.glob("*/*.png"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, k):
        """Pixels from -1 to 1, and the number of the class."""
        pixels = np.asarray(Image.open(self.files[k]), dtype=np.float32)
        return torch.from_numpy(pixels / 127.5 - 1)[None], self.classes.index(self.files[k].parent.name)


work = Path(tempfile.mkdtemp())
for label, kind in enumerate(KINDS):
    (work / "stripes" / kind).mkdir(parents=True)
    for k in range(90):
        draw(kind, seed=1000 * label + k).save(work / "stripes" / kind / f"{k:03}.png")

everything = Stripes(work / "stripes")
train_set, validation_set, test_set = random_split(everything, [180, 30, 60], torch.Generator().manual_seed(0))
torch.manual_seed(0)

# %%
# What you write
# --------------
# The estimator takes the place of autograd. All else is PyTorch's.

# [your lines]
model = nn.Sequential(
    *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveMaxPool2d(1)),
    *(nn.Flatten(), nn.Linear(16, 3)),
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
trainer = dz.Trainer(
    *(model, dz.CGE(model, loss=F.cross_entropy), optimizer, DataLoader(train_set, batch_size=30, shuffle=True)),
    validation=DataLoader(validation_set, batch_size=30),
    test=DataLoader(test_set, batch_size=60),
    scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12),
    out=work / "run",
)
result = trainer.fit(epochs=12)
# [end]

# %%
# What came out
# -------------
# The weights are those with the lowest loss on the validation data; the test data were looked at once, with them.

summary = result.summary
print({name: summary[name] for name in ("steps", "queries", "selected_epoch", "validation_accuracy", "test_accuracy")})
print(*sorted(path.name for path in result.folder.iterdir()), sep=", ")

assert summary["test_accuracy"] > 0.8  # a guess is right in a third of the cases
