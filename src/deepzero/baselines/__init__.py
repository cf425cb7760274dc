"""The methods that the paper compares with: training without backpropagation, by other means than queries.

Each method is a gradient source for the training loop, as :class:`deepzero.Estimator` is: it fills ``p.grad``. They are
for comparison only; most of them look inside the network, which a black box does not allow. :func:`build` makes one by
name; autograd itself is :class:`deepzero.training.gradient_sources.Autograd`. A new one is a class with a ``name`` in a
file of its own, imported here.
"""

from deepzero.baselines.alignment import AlignAda, AlignProp, AlignZero
from deepzero.baselines.base import Baseline, build, names
from deepzero.baselines.feedback import DirectFeedbackAlignment, FeedbackAlignment
from deepzero.baselines.forward_gradient import LocalForwardGradient, RandomizedLimit, WeightForwardGradient
from deepzero.baselines.pattern_search import FastPatternSearch, PatternSearch, Polling

__all__ = [
    "AlignAda",
    "AlignProp",
    "AlignZero",
    "Baseline",
    "DirectFeedbackAlignment",
    "FastPatternSearch",
    "FeedbackAlignment",
    "LocalForwardGradient",
    "PatternSearch",
    "Polling",
    "RandomizedLimit",
    "WeightForwardGradient",
    "build",
    "names",
]
