"""deepzero: train deep networks from function values alone."""

from deepzero import errors, sparsity
from deepzero.coordinates import Coordinates
from deepzero.doctor import Diagnosis, diagnose
from deepzero.errors import BlackBoxWarning, DeepZeroError, SlowQueriesWarning, WrittenParameterWarning
from deepzero.estimator import CGE, RGE, Estimate, Estimator
from deepzero.evaluators import (
    AutomaticEvaluator,
    BatchedEvaluator,
    DistributedEvaluator,
    ExecutorEvaluator,
    PropagationEvaluator,
    QueryJournal,
    QueryPolicy,
    SequentialEvaluator,
    query_key,
)
from deepzero.objective import BlackBox, NetworkObjective
from deepzero.opaque import Conv, Corrected, Elementwise, Learned, Opaque, PerChannel, PerToken, Simulator
from deepzero.optimize import minimize, value_and_grad
from deepzero.sparsity import Alternating, DynamicRatios
from deepzero.stencils import CENTRAL, FORWARD, Stencil
from deepzero.team import Team, joined

__version__ = "0.1.0"

__all__ = [
    "CENTRAL",
    "CGE",
    "FORWARD",
    "RGE",
    "Alternating",
    "AutomaticEvaluator",
    "BatchedEvaluator",
    "BlackBox",
    "BlackBoxWarning",
    "Conv",
    "Coordinates",
    "Corrected",
    "DeepZeroError",
    "Diagnosis",
    "DistributedEvaluator",
    "DynamicRatios",
    "Elementwise",
    "Estimate",
    "Estimator",
    "ExecutorEvaluator",
    "Learned",
    "NetworkObjective",
    "Opaque",
    "PerChannel",
    "PerToken",
    "PropagationEvaluator",
    "QueryJournal",
    "QueryPolicy",
    "SequentialEvaluator",
    "Simulator",
    "SlowQueriesWarning",
    "Stencil",
    "Team",
    "WrittenParameterWarning",
    "diagnose",
    "errors",
    "joined",
    "minimize",
    "query_key",
    "sparsity",
    "value_and_grad",
]
