"""The default: for every parameter the fastest exact way that there is, and one true sentence about what is slow."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from deepzero.errors import DrawError, GraphError, SlowQueriesWarning, UnbatchableError
from deepzero.evaluators.base import Answer, DivisibleEvaluator, Job, Preparation, StepQueries, require_repeatable
from deepzero.evaluators.batched import BatchedEvaluator
from deepzero.evaluators.costs import CostTable
from deepzero.evaluators.propagation import PropagationEvaluator
from deepzero.evaluators.sequential import SequentialEvaluator
from deepzero.graph.library import shape_key
from deepzero.graph.program import Program
from deepzero.graph.verify import Check
from deepzero.objective import NetworkObjective, Objective, asks_black_boxes, parameters_of
from deepzero.probes import Perturbations, coordinates_of

PROPAGATION = "propagation: differences are carried through the exported graph"
BATCHED = "batches of full forwards (torch.func.vmap)"
SEQUENTIAL = "one full forward a query"
NAMES = {PROPAGATION: "propagation", BATCHED: "batched", SEQUENTIAL: "sequential"}
HALF_TYPES = 2
"""Bytes of an entry below which a forward rounds away what a small step does."""


@dataclass
class _Plan:
    """Knowledge about one objective, from its steps so far.

    Attributes:
        refused: rung -> reason why it cannot be taken; by the shapes and modes for which that holds.
        warned: sentences of the warnings so far.
        rung: the one taken last.
    """

    refused: dict[Any, dict[str, str]] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    rung: str = ""


class AutomaticEvaluator(DivisibleEvaluator):
    """Answers for every program whose forward runs.

    For coordinates of a network: propagation where the program can be exported; there, operations without a rule are
    evaluated at both values (the fallback), and for a parameter that differences cannot follow to the loss, the
    operations behind it are run again at each of its queries. Else batches of forwards under ``vmap``; else one forward
    a query. For random directions: ``vmap``, then propagation, then one forward
    a query; on half-precision networks propagation first, because a forward there rounds away what a small step does,
    and with a :class:`~deepzero.Opaque` inside, because it asks least.
    Everything else, black boxes among it, is evaluated one by one.

    What is slower than propagation is said once, in a :class:`~deepzero.errors.SlowQueriesWarning`.

    Args:
        propagation: the evaluator that propagates; by default one that runs operations again where rules end.
        batched: the evaluator for batches of forwards.
        strict: raise the error of the first rung instead of going down.

    Raises:
        GraphError: with ``strict``, the program cannot be propagated.
        VerificationError: a difference rule is wrong.
    """

    exact = True
    """Loss differences of networks carry no rounding of the losses, where they are propagated."""

    def __init__(
        self,
        *,
        propagation: PropagationEvaluator | None = None,
        batched: BatchedEvaluator | None = None,
        strict: bool = False,
    ) -> None:
        self.propagation = propagation or PropagationEvaluator(strict=strict)
        self.batched = batched or BatchedEvaluator()
        self.strict = strict
        self._sequential = SequentialEvaluator()
        self._plans: WeakKeyDictionary[Any, _Plan] = WeakKeyDictionary()

    def prepare(self, queries: StepQueries) -> Preparation:
        """The step by the first rung that can take it."""
        objective, batch, perturbations = queries.objective, queries.batch, queries.perturbations
        if not isinstance(objective, NetworkObjective):
            return self._sequential.prepare(queries)
        plan = self._plans.setdefault(objective, _Plan())
        refused = plan.refused.setdefault(_situation(objective, batch), {})
        for rung in self._rungs(objective, perturbations):
            if rung in refused:
                continue
            try:
                prepared = self._take(rung, objective, queries)
            except (GraphError, UnbatchableError, DrawError) as error:
                if self.strict:
                    raise
                refused[rung] = str(error)
                continue
            plan.rung = rung
            self._tell(plan, refused, objective, batch, perturbations)
            return prepared
        raise AssertionError("one forward a query refuses nothing")

    def _rungs(self, objective: NetworkObjective, perturbations: Perturbations) -> tuple[str, ...]:
        if coordinates_of(perturbations) is not None:
            return PROPAGATION, BATCHED, SEQUENTIAL
        half = any(p.dtype.itemsize <= HALF_TYPES for p in parameters_of(objective).values())
        priced = asks_black_boxes(objective)  # vmap asks for its base as often as for a chunk
        return (PROPAGATION, BATCHED, SEQUENTIAL) if half or priced else (BATCHED, PROPAGATION, SEQUENTIAL)

    def _take(self, rung: str, objective: NetworkObjective, queries: StepQueries) -> Preparation:
        if rung == PROPAGATION:
            return self.propagation.prepare(queries)
        if rung == SEQUENTIAL:
            prepared = self._sequential.prepare(queries)
            require_repeatable(objective)
            return prepared
        prepared = self.batched.prepare(queries)
        require_repeatable(objective)
        return _with_first_answer(prepared) if prepared.jobs else prepared

    def _tell(
        self,
        plan: _Plan,
        refused: dict[str, str],
        objective: NetworkObjective,
        batch: tuple[Any, ...],
        perturbations: Perturbations,
    ) -> None:
        """Warn once of each slow way."""
        first = self._rungs(objective, perturbations)[0]
        sentences = []
        if plan.rung != first:
            sentences.append(f"queries are answered by {plan.rung}, because {refused[first]}")
        elif plan.rung == PROPAGATION:
            recomputed = self.propagation.recomputed(objective, batch)
            for reason, names in _grouped(recomputed).items():
                sentences.append(f"queries of {names} run everything behind the parameter again, because {reason}")
        for sentence in sentences:
            if sentence not in plan.warned:
                plan.warned.add(sentence)
                warnings.warn(f"{sentence}\n{ADVICE}", SlowQueriesWarning, stacklevel=5)

    def taken(self, objective: Objective) -> str:
        """The evaluator that answered last, by its name in ``evaluator=``; empty before the first step."""
        plan = self._plans.get(objective)
        return "" if plan is None else NAMES.get(plan.rung, "")

    def explain(self, objective: Objective, batch: tuple[Any, ...] | None) -> str:
        """The plan in words."""
        if not isinstance(objective, NetworkObjective):
            return f"{type(objective).__name__}: one evaluation a query"
        lines = []
        if batch is not None:
            lines += self._explained(objective, batch)
        plan = self._plans.get(objective)
        if plan is not None and plan.rung:
            lines.append(f"last step: {plan.rung}")
            for refused in plan.refused.values():
                lines += [f"not {rung.split(':')[0]}: {why}" for rung, why in refused.items()]
        return "\n".join(lines or ["nothing is known before the first estimate; give a batch: zo.explain(x, y)"])

    def _explained(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> list[str]:
        try:
            prepared = self.propagation.prepared(objective, batch)
        except GraphError as error:
            return [f"coordinates: {BATCHED} or {SEQUENTIAL}, because {error}"]
        program, check = prepared.program, prepared.check
        again = program.recomputed
        carried = [name for name in program.cones if name not in again]
        lines = [f"{PROPAGATION}: {len(carried)} of {len(program.cones)} parameters"]
        if program.fallbacks:
            lines.append(f"operations without a rule, evaluated at both values: {', '.join(program.fallbacks)}")
        lines += [
            f"{names}: operations run again at every query, because {reason}"
            for reason, names in _grouped(again).items()
        ]
        return [*lines, f"checked: {check}" if check is not None else "not checked (verify=False)"]

    def program(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> Program:
        """The exported program: see :meth:`PropagationEvaluator.program`."""
        return self.propagation.program(objective, batch)

    def check(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> Check | None:
        """The check of the program: see :meth:`PropagationEvaluator.check`."""
        return self.propagation.check(objective, batch)

    def costs(self, objective: NetworkObjective, *batch: Any, offset: float = 5e-3, repeats: int = 3) -> CostTable:
        """Measure the cost table: see :meth:`PropagationEvaluator.costs`."""
        return self.propagation.costs(objective, *batch, offset=offset, repeats=repeats)

    def work(self, objective: NetworkObjective, *batch: Any) -> dict[str, int]:
        """Bytes that a query writes, by parameter: see :meth:`PropagationEvaluator.work`."""
        return self.propagation.work(objective, *batch)

    def state_dict(self) -> dict[str, Any]:
        """The states of the evaluators that it chooses from."""
        return {"propagation": self.propagation.state_dict(), "batched": self.batched.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.propagation.load_state_dict(state["propagation"])
        self.batched.load_state_dict(state["batched"])


ADVICE = (
    "This is slower than propagation, and as right as a plain loop of forwards. zo.explain() shows the plan, strict="
    "True makes this an error"
)


def _with_first_answer(prepared: Preparation) -> Preparation:
    """Answer the first job right away: ``vmap`` shows only then whether it can."""
    first = prepared.jobs[0]
    (known,) = prepared.answer([first])

    def answer(some: Sequence[Job]) -> list[Answer]:
        others = iter(prepared.answer([job for job in some if job is not first]))
        return [known if job is first else next(others) for job in some]

    return replace(prepared, answer=answer)


def _situation(objective: NetworkObjective, batch: tuple[Any, ...]) -> Any:
    """The conditions of a refusal: shapes of the batch and modes of the modules."""
    return shape_key(batch), tuple(module.training for module in objective.model.modules())


def _grouped(recomputed: dict[str, str]) -> dict[str, str]:
    """Reason -> names of the parameters that it was found for."""
    groups: dict[str, list[str]] = {}
    for name, reason in recomputed.items():
        last = [line.split(": ", 1)[-1] for line in reason.splitlines() if "cannot be followed" in line]
        groups.setdefault(last[0] if last else reason, []).append(name)
    return {
        reason: ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        for reason, names in groups.items()
    }
