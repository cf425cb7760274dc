"""Black boxes that are slow, unreliable or paid for: their queries on any ``concurrent.futures`` executor."""

from deepzero.executors.executor_evaluator import ExecutorEvaluator, QueryProgress
from deepzero.executors.policy import QueryPolicy
from deepzero.executors.pool import ExecutorSource
from deepzero.executors.problem import problem_of
from deepzero.executors.query_journal import QueryJournal
from deepzero.executors.worker import query_key

__all__ = [
    "ExecutorEvaluator",
    "ExecutorSource",
    "QueryJournal",
    "QueryPolicy",
    "QueryProgress",
    "problem_of",
    "query_key",
]
