"""Resolve the ``evaluator``, ``strict`` and ``executor`` options of an estimator."""

from __future__ import annotations

from collections.abc import Callable

from deepzero.errors import InvalidInputError
from deepzero.evaluators.automatic import AutomaticEvaluator
from deepzero.evaluators.base import Evaluator
from deepzero.evaluators.batched import BatchedEvaluator
from deepzero.evaluators.propagation import PropagationEvaluator
from deepzero.evaluators.sequential import SequentialEvaluator
from deepzero.executors.executor_evaluator import ExecutorEvaluator
from deepzero.executors.policy import QueryPolicy
from deepzero.executors.pool import ExecutorSource
from deepzero.executors.query_journal import QueryJournal
from deepzero.objective import Objective, SendableObjective

NAMED: dict[str, Callable[[], Evaluator]] = {
    "auto": AutomaticEvaluator,
    "propagation": PropagationEvaluator,
    "batched": BatchedEvaluator,
    "sequential": SequentialEvaluator,
}


def choose_evaluator(
    objective: Objective,
    evaluator: Evaluator | str | None,
    executor: ExecutorSource | None,
    *,
    policy: QueryPolicy | None,
    journal: QueryJournal | None,
    strict: bool = False,
) -> Evaluator:
    """The evaluator that was asked for, or the default.

    Raises:
        InvalidInputError: the options contradict each other, or are not what they should be.
    """
    if executor is None:
        if policy is not None or journal is not None:
            raise InvalidInputError(
                "policy and journal go with executor=..., for example executor=ThreadPoolExecutor(8); an evaluator "
                "is given its own: evaluator=dz.ExecutorEvaluator(executor, policy=..., journal=...)"
            )
        return _evaluator(objective, evaluator, strict)
    if evaluator is not None:
        raise InvalidInputError("give either evaluator=... or executor=..., not both")
    if not isinstance(objective, SendableObjective):
        raise InvalidInputError(
            "executor=... is for black boxes, dz.BlackBox(fn, params); a network runs faster without it "
            '(evaluator="auto"), and on several processes with torchrun'
        )
    return ExecutorEvaluator(executor, policy=policy, journal=journal)


def _evaluator(objective: Objective, choice: Evaluator | str | type | None, strict: bool) -> Evaluator:
    if strict and choice not in (None, "auto"):
        raise InvalidInputError('strict=True goes with evaluator="auto"; other evaluators never change their way')
    if choice is None or choice == "auto":
        return SequentialEvaluator() if isinstance(objective, SendableObjective) else AutomaticEvaluator(strict=strict)
    if isinstance(choice, str):
        if choice not in NAMED:
            raise InvalidInputError(f"evaluator must be an evaluator or one of {', '.join(NAMED)}; got {choice!r}")
        return NAMED[choice]()
    if isinstance(choice, type) and choice in (
        AutomaticEvaluator,
        PropagationEvaluator,
        BatchedEvaluator,
        SequentialEvaluator,
    ):
        return _evaluator(objective, choice(), strict)
    if isinstance(choice, type) or not callable(getattr(choice, "measure", None)):
        raise InvalidInputError(
            f"evaluator must be an evaluator such as dz.SequentialEvaluator(), or one of {', '.join(NAMED)}; got "
            f"{choice!r}"
        )
    return choice
