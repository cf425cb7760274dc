"""deepzero: train deep networks from function values alone."""

from deepzero.coordinates import Coordinates
from deepzero.errors import DeepZeroError
from deepzero.estimator import CGE, RGE, Estimate, Estimator
from deepzero.evaluators import BatchedEvaluator, PropagationEvaluator, SequentialEvaluator
from deepzero.objective import BlackBox, NetworkObjective
from deepzero.stencils import CENTRAL, FORWARD, Stencil

__version__ = "0.1.0"

__all__ = [
    "CENTRAL",
    "CGE",
    "FORWARD",
    "RGE",
    "BatchedEvaluator",
    "BlackBox",
    "Coordinates",
    "DeepZeroError",
    "Estimate",
    "Estimator",
    "NetworkObjective",
    "PropagationEvaluator",
    "SequentialEvaluator",
    "Stencil",
]
