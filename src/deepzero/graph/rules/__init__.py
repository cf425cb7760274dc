"""Difference rules, one file a family of operations."""

from deepzero.graph.rules import (
    activation,
    attention,
    complex_values,
    convolution,
    cross_entropy,
    extrema,
    fourier,
    indexing,
    linear,
    moments,
    normalization,
    opaque,
    pointwise,
    pooling,
    reduction,
    resampling,
    shape,
    softmax,
    transposed,
)
from deepzero.graph.rules import choices as selection
from deepzero.graph.rules import pair_losses as losses
from deepzero.graph.rules.base import RULES, rule
from deepzero.graph.rules.fallback import fallback
from deepzero.graph.rules.fused import batch_norm_relu
from deepzero.graph.rules.shape import SHAPE_ONLY

__all__ = [
    "RULES",
    "SHAPE_ONLY",
    "activation",
    "attention",
    "batch_norm_relu",
    "complex_values",
    "convolution",
    "cross_entropy",
    "extrema",
    "fallback",
    "fourier",
    "indexing",
    "linear",
    "losses",
    "moments",
    "normalization",
    "opaque",
    "pointwise",
    "pooling",
    "reduction",
    "resampling",
    "rule",
    "selection",
    "shape",
    "softmax",
    "transposed",
]
