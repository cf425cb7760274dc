"""How loss differences are computed: one interface, several implementations, the same numbers."""

from deepzero.evaluators.automatic import AutomaticEvaluator
from deepzero.evaluators.base import DivisibleEvaluator, Evaluator, Measurement
from deepzero.evaluators.batched import BatchedEvaluator
from deepzero.evaluators.choice import choose_evaluator
from deepzero.evaluators.costs import CostTable
from deepzero.evaluators.distributed import DistributedEvaluator
from deepzero.evaluators.executor import ExecutorEvaluator
from deepzero.evaluators.executor_pool import ExecutorSource
from deepzero.evaluators.executor_progress import QueryProgress
from deepzero.evaluators.executor_worker import query_key
from deepzero.evaluators.journal import QueryJournal
from deepzero.evaluators.policy import QueryPolicy
from deepzero.evaluators.problem import problem_of
from deepzero.evaluators.propagation import PropagationEvaluator
from deepzero.evaluators.sequential import SequentialEvaluator

__all__ = [
    "AutomaticEvaluator",
    "BatchedEvaluator",
    "CostTable",
    "DistributedEvaluator",
    "DivisibleEvaluator",
    "Evaluator",
    "ExecutorEvaluator",
    "ExecutorSource",
    "Measurement",
    "PropagationEvaluator",
    "QueryJournal",
    "QueryPolicy",
    "QueryProgress",
    "SequentialEvaluator",
    "choose_evaluator",
    "problem_of",
    "query_key",
]
