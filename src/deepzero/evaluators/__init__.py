"""Loss differences: one interface, several implementations, the same numbers."""

from deepzero.evaluators.automatic import AutomaticEvaluator
from deepzero.evaluators.base import DivisibleEvaluator, Evaluator, Measurement, StepQueries
from deepzero.evaluators.batched import BatchedEvaluator
from deepzero.evaluators.costs import CostTable
from deepzero.evaluators.distributed import DistributedEvaluator
from deepzero.evaluators.propagation import PropagationEvaluator
from deepzero.evaluators.sequential import SequentialEvaluator

__all__ = [
    "AutomaticEvaluator",
    "BatchedEvaluator",
    "CostTable",
    "DistributedEvaluator",
    "DivisibleEvaluator",
    "Evaluator",
    "Measurement",
    "PropagationEvaluator",
    "SequentialEvaluator",
    "StepQueries",
]
