r"""
Your own network on a folder of images, from Python
===================================================

The same problem as in :doc:`/gallery/examples/image_folder_shell`, with your own ``Dataset``, ``DataLoader``,
optimizer and scheduler: ``dz.Trainer`` takes what you have, and adds checkpoints, validation, the choice of the best
weights, and a folder with everything in it.
"""

# %%
# What you already have
# ---------------------
# A ``Dataset`` that reads images. For this page they are drawn: circles, squares and crosses of 16x16 pixels.

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn
from torch.utils.data import DataLoader, Dataset, random_split

import deepzero as dz


def draw(shape, seed):
    """A noisy gray image of a shape."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 90, (16, 16), dtype=np.uint8))
    r = int(random.integers(3, 6))
    x, y = random.integers(r, 16 - r, 2).tolist()
    pen, box = ImageDraw.Draw(image), (x - r, y - r, x + r, y + r)
    if shape == "circles":
        pen.ellipse(box, outline=255, width=2)
    elif shape == "squares":
        pen.rectangle(box, outline=255, width=2)
    else:
        pen.line(box, fill=255, width=2)
        pen.line((x - r, y + r, x + r, y - r), fill=255, width=2)
    return image


class Shapes(Dataset):
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
for label, shape in enumerate(("circles", "crosses", "squares")):
    (work / "shapes" / shape).mkdir(parents=True)
    for k in range(90):
        draw(shape, seed=1000 * label + k).save(work / "shapes" / shape / f"{k:03}.png")

everything = Shapes(work / "shapes")
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
