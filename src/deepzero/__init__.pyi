from . import errors, sparsity
from .coordinates import Coordinates
from .doctor import Diagnosis, diagnose
from .errors import BlackBoxWarning, DeepZeroError, SlowQueriesWarning, WrittenParameterWarning
from .estimator import CGE, RGE, Estimate, Estimator
from .evaluators import (
    AutomaticEvaluator,
    BatchedEvaluator,
    DistributedEvaluator,
    PropagationEvaluator,
    SequentialEvaluator,
)
from .executors import ExecutorEvaluator, QueryJournal, QueryPolicy, query_key
from .objective import BlackBox, NetworkObjective
from .opaque import Conv, Corrected, Elementwise, Learned, Opaque, PerChannel, PerToken, Simulator
from .optimize import minimize, value_and_grad
from .run import Run, load_run
from .sparsity import Alternating, DynamicRatios
from .stencils import CENTRAL, FORWARD, Stencil
from .team import Team, joined
from .training import EarlyStopping, Trainer

__version__: str

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
    "EarlyStopping",
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
    "Run",
    "SequentialEvaluator",
    "Simulator",
    "SlowQueriesWarning",
    "Stencil",
    "Team",
    "Trainer",
    "WrittenParameterWarning",
    "diagnose",
    "errors",
    "joined",
    "load_run",
    "minimize",
    "query_key",
    "sparsity",
    "value_and_grad",
]
