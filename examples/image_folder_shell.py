r"""
Your own network on a folder of images, from the shell
======================================================

You have a folder of images, one folder for each class, and a network in a file of your own. Two commands train the
network and use it; there is no loop to write, and nothing about the images to configure.
"""

# %%
# The images
# ----------
# For this page they are drawn: 90 circles, squares and crosses of 16x16 pixels, each of another size, at another place.

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


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


work = Path(tempfile.mkdtemp())
for label, shape in enumerate(("circles", "crosses", "squares")):
    (work / "shapes" / shape).mkdir(parents=True)
    for k in range(90):
        draw(shape, seed=1000 * label + k).save(work / "shapes" / shape / f"{k:03}.png")

new = work / "new.png"  # an image without a label
draw("crosses", seed=99_999).save(new)

# %%
# What you write
# --------------
# The network, in ``my_net.py``. What it must know about the data is filled in where it has a parameter for it:
# ``num_classes``, ``input_shape``, ``in_channels``. And two commands: ``train`` finds out the size of the images, holds
# out a test set and normalizes; ``predict`` does the same to new images, from what it finds in the folder of the run.

# [your lines]
MY_NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, in_channels, num_classes):
        super().__init__(
            nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveMaxPool2d(1),
            nn.Flatten(), nn.Linear(16, num_classes),
        )
"""
TRAIN = "deepzero train --model my_net.py:Net --data shapes --out run"
PREDICT = "deepzero predict run new.png"
# [end]

# %%
# The commands
# ------------
# This page gives them to a shell, so to speak; you type them.

(work / "my_net.py").write_text(MY_NET)


def shell(command):
    """What a command of this installation prints."""
    _, *words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", "deepzero", *words], cwd=work, capture_output=True, text=True, check=False
    )
    print(f"$ {command}\n{done.stdout}{done.stderr}")
    done.check_returncode()
    return done.stdout


shell(TRAIN)

# %%
# And the new image:

answer = shell(PREDICT)

# %%
# For a script, ``--json`` gives the same as one line, and ``deepzero evaluate`` the score on the test set, which the
# training has not seen.

scores = json.loads(shell("deepzero evaluate run --json --quiet"))

assert "crosses" in answer
assert scores["accuracy"] > 0.8  # a guess is right in a third of the cases
