"""Difference rules, one file a family of operations."""

from deepzero.graph.rules import (
    activation,
    complex_values,
    convolution,
    cross_entropy,
    extrema,
    fourier,
    linear,
    losses,
    moments,
    normalization,
    pointwise,
    pooling,
    reduction,
    selection,
    shape,
    softmax,
)
from deepzero.graph.rules.base import RULES, rule
from deepzero.graph.rules.fallback import fallback
from deepzero.graph.rules.fused import batch_norm_relu
from deepzero.graph.rules.shape import SHAPE_ONLY

__all__ = [
    "RULES",
    "SHAPE_ONLY",
    "activation",
    "batch_norm_relu",
    "complex_values",
    "convolution",
    "cross_entropy",
    "extrema",
    "fallback",
    "fourier",
    "linear",
    "losses",
    "moments",
    "normalization",
    "pointwise",
    "pooling",
    "reduction",
    "rule",
    "selection",
    "shape",
    "softmax",
]
