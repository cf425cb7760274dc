"""What ``evaluator=`` and ``executor=`` of an estimator mean together."""

from __future__ import annotations

from deepzero.errors import InvalidInputError
from deepzero.evaluators.base import Evaluator
from deepzero.evaluators.executor import ExecutorEvaluator
from deepzero.evaluators.executor_pool import ExecutorSource
from deepzero.evaluators.journal import QueryJournal
from deepzero.evaluators.policy import QueryPolicy
from deepzero.evaluators.sequential import SequentialEvaluator
from deepzero.objective import BlackBox, Objective


def choose_evaluator(
    objective: Objective,
    evaluator: Evaluator | None,
    executor: ExecutorSource | None,
    *,
    policy: QueryPolicy | None,
    journal: QueryJournal | None,
) -> Evaluator | None:
    """The evaluator that was asked for, or a black box's default; None: the default of a network.

    Raises:
        InvalidInputError: the options contradict each other.
    """
    if executor is None:
        if policy is not None or journal is not None:
            raise InvalidInputError(
                "policy and journal go with executor=..., for example executor=ThreadPoolExecutor(8); an evaluator "
                "is given its own: evaluator=dz.ExecutorEvaluator(executor, policy=..., journal=...)"
            )
        return evaluator or (SequentialEvaluator() if isinstance(objective, BlackBox) else None)
    if evaluator is not None:
        raise InvalidInputError("give either evaluator=... or executor=..., not both")
    if not isinstance(objective, BlackBox):
        raise InvalidInputError(
            "executor=... is for black boxes, dz.BlackBox(fn, params); a network runs faster without it "
            "(dz.PropagationEvaluator()), and on several processes with torchrun"
        )
    return ExecutorEvaluator(executor, policy=policy, journal=journal)
