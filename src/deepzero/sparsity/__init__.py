"""Sparsity: scores -> layer-wise ratios -> a schedule -> the coordinates that a step queries.

The paper's pipeline (Algorithm 1 of Chen et al., 2024)::

    scores = dz.sparsity.zo_grasp(model, loss, x, y, queries=192, step_size=5e-3, seed=0)
    ratios = dz.sparsity.layer_ratios(scores, sparsity=0.9)
    zo = dz.CGE(model, loss=loss, sparsity=dz.DynamicRatios(ratios, every=5, unit="epoch"))
"""

from deepzero.sparsity.ratios import (
    cost_aware_ratios,
    layer_ratios,
    layer_ratios_from_masks,
    smart_ratio,
    uniform_ratios,
)
from deepzero.sparsity.schedules import Alternating, DynamicRatios, Score
from deepzero.sparsity.scores import fo_grasp, magnitude, random, zo_grasp
from deepzero.sparsity.selection import (
    LayerCount,
    SparsityWarning,
    Summary,
    masks_from_scores,
    random_coordinates,
    summarize,
)

__all__ = [
    "Alternating",
    "DynamicRatios",
    "LayerCount",
    "Score",
    "SparsityWarning",
    "Summary",
    "cost_aware_ratios",
    "fo_grasp",
    "layer_ratios",
    "layer_ratios_from_masks",
    "magnitude",
    "masks_from_scores",
    "random",
    "random_coordinates",
    "smart_ratio",
    "summarize",
    "uniform_ratios",
    "zo_grasp",
]
