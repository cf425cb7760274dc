"""Difference rules, one file a family of operations."""

from deepzero.graph.rules import (
    activation,
    attention,
    black_box,
    choices,
    complex_values,
    convolution,
    convolved_tail,
    cross_entropy,
    fourier,
    indexing,
    linear,
    moments,
    normalization,
    pair_losses,
    pointwise,
    pooling,
    reduction,
    resampling,
    shape,
    softmax,
)
from deepzero.graph.rules.base import RULES, TAKES_LOW_RANK, TAKES_RANK_ONE, in_kind_for, rule
from deepzero.graph.rules.fallback import fallback
from deepzero.graph.rules.normalization import batch_norm_relu
from deepzero.graph.rules.shape import SHAPE_ONLY

__all__ = [
    "RULES",
    "SHAPE_ONLY",
    "TAKES_LOW_RANK",
    "TAKES_RANK_ONE",
    "activation",
    "attention",
    "batch_norm_relu",
    "black_box",
    "choices",
    "complex_values",
    "convolution",
    "convolved_tail",
    "cross_entropy",
    "fallback",
    "fourier",
    "in_kind_for",
    "indexing",
    "linear",
    "moments",
    "normalization",
    "pair_losses",
    "pointwise",
    "pooling",
    "reduction",
    "resampling",
    "rule",
    "shape",
    "softmax",
]
