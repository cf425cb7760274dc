"""How loss differences are computed: one interface, several implementations, the same numbers."""

from deepzero.evaluators.base import Evaluator, Measurement
from deepzero.evaluators.batched import BatchedEvaluator
from deepzero.evaluators.costs import CostTable
from deepzero.evaluators.propagation import PropagationEvaluator
from deepzero.evaluators.sequential import SequentialEvaluator

__all__ = ["BatchedEvaluator", "CostTable", "Evaluator", "Measurement", "PropagationEvaluator", "SequentialEvaluator"]
