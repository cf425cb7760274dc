"""Difference rules, one file a family of operations."""

from deepzero.graph.rules import (
    activation,
    convolution,
    linear,
    normalization,
    pointwise,
    pooling,
    reduction,
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
    "convolution",
    "fallback",
    "linear",
    "normalization",
    "pointwise",
    "pooling",
    "reduction",
    "rule",
    "shape",
    "softmax",
]
