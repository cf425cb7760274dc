r"""
Defend a model that you can only query
======================================

A classifier that others run, behind an API or in a model file, errs under noise and can be fooled by small changes of
its input. Nothing of it can be changed or differentiated. A small denoiser in front of it can be trained all the same,
from its answers, so that the pair is *certified*: its answer stays the same on a whole ball around an image.

The same from the command line: ``deepzero defend``, then ``deepzero certify``.
"""

# %%
# The classifier
# --------------
# Here it is one of our own, trained on digits of 8x8 pixels, written into an ONNX file and asked through that file
# alone; ``classifier="model.onnx"`` or ``classifier="https://..."`` takes somebody else's. Everything below happens
# within a budget of queries. The sizes are such that this page is made in a minute.

import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

from deepzero.recipes.defense_recipes import digits
from deepzero.tasks.defense import CertifyConfig, StageConfig, certify, defend

folder = Path(tempfile.mkdtemp())
config = replace(
    digits(),
    classifier=StageConfig(steps=400),
    pretraining=StageConfig(steps=150),
    budget=200_000,
)

# %%
# Three defenses
# --------------
# ``smoothing`` puts nothing in front: the classifier is asked about many noisy copies of an image, and the majority
# wins. ``denoiser`` has learned to take noise away, without a single query. ``opaque`` goes on from there: the
# classifier becomes a ``dz.Opaque`` layer at the end of the denoiser, its part of the chain rule is estimated along
# orthonormal directions, and a guess that learns from the answers takes over what it can.

results = {}
for method in ("smoothing", "denoiser", "opaque"):
    defended = defend(replace(config, method=method), out=folder / method, stages=folder / "stages")
    assert defended.summary is not None
    found = certify(folder / method, CertifyConfig(images=50, trials=1000, radii=(0.0, 0.35, 0.7)))
    assert found.result is not None
    results[method] = found.result
    shown = ", ".join(
        f"{a:.0%} at r = {r:g}" for r, a in zip(found.result["radii"], found.result["certified_accuracy"], strict=True)
    )
    print(f"{method}: {defended.summary['queries']:,} queries; certified accuracy {shown}")

# %%
# What is certain
# ---------------
# For each image noise is drawn 1,000 times. From how often the majority's class came, an exact (Clopper-Pearson) bound
# says within which radius the answer cannot change, with a confidence of 99.9 %. The curve shows the share of images
# that are answered rightly on a ball of each radius; its end is what 1,000 samples can certify at most.

for method, result in results.items():
    radii, shares = zip((0.0, result["certified_accuracy"][0]), *result["curve"], strict=True)
    plt.step(radii, shares, where="post", label=method)
plt.xlabel("radius")
plt.ylabel("certified accuracy")
plt.legend()
plt.show()

radius = {method: result["average_certified_radius"] for method, result in results.items()}
print({method: round(value, 3) for method, value in radius.items()})
assert radius["smoothing"] < radius["denoiser"] < radius["opaque"]
