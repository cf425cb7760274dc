"""The examination: every check in turn, on a few samples of what a run would do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from deepzero import validation
from deepzero.coordinates import Coordinates, CoordinateSchedule
from deepzero.doctor.advice import advise
from deepzero.doctor.black_box import MAX_QUERIES, RunPlan, examine_black_box
from deepzero.doctor.determinism import check_determinism, with_effect
from deepzero.doctor.diagnosis import Diagnosis
from deepzero.doctor.forecast import forecast
from deepzero.doctor.gradients import check_gradients, estimated_pairs, sampled_pairs
from deepzero.doctor.operations import check_operations, described, propagation_of
from deepzero.doctor.records import GradientCheck, LoopCosts, Operations, StepChoice, Sweep
from deepzero.doctor.reference import Exact, exact_gradients
from deepzero.doctor.sampling import exact_slopes, sample
from deepzero.doctor.sweep import STEPS, USELESS, choose_step, judged, run_sweep, with_step
from deepzero.doctor.trial import try_step
from deepzero.doctor.verdict import verdict
from deepzero.errors import InvalidInputError, NonFiniteLossError, SlowQueriesWarning
from deepzero.estimator import CGE, Estimate, Estimator
from deepzero.evaluators import (
    AutomaticEvaluator,
    BatchedEvaluator,
    Evaluator,
    PropagationEvaluator,
    SequentialEvaluator,
)
from deepzero.graph.rules.fallback import watch_fallbacks
from deepzero.objective import Closure, Loss, NetworkObjective, Objective, first_query, parameters_of, steady
from deepzero.probes import CoordinatePerturbations, Perturbations
from deepzero.randomness import step_seed
from deepzero.stencils import FORWARD, Stencil
from deepzero.step_sizes import StepSizeLike
from deepzero.stopwatch import median_seconds

MOST_SAMPLES, LEAST_SAMPLES = 64, 4
PER_PARAMETER = 4


def diagnose(
    subject: Estimator | nn.Module | Objective,
    *batch: Any,
    loss: Loss | None = None,
    closure: Closure | None = None,
    step_size: StepSizeLike = None,
    sparsity: CoordinateSchedule | Coordinates | Mapping[str, Tensor] | None = None,
    stencil: Stencil = FORWARD,
    evaluator: Evaluator | None = None,
    seed: int = 0,
    learning_rate: float | None = None,
    steps: Sequence[float] | None = None,
    loop: LoopCosts | None = None,
    seconds: float = 20.0,
    max_queries: int | None = None,
    run_steps: int | None = None,
    budget: int | None = None,
    price_per_query: float | None = None,
) -> Diagnosis:
    """Examine a network, a black box or an estimator before a run; nothing is changed.

    Args:
        subject: a network, a :class:`~deepzero.BlackBox` or another objective, of which coordinate-wise estimates are
            examined; or an estimator of any kind, as ``dz.RGE`` makes it.
        *batch: ``x, y`` for a network with a loss, which may also stand in front of them; what follows the model in a
            closure; further arguments of ``fn`` for a black box.
        loss: ``loss(output, target)``, for a network.
        closure: as for :func:`deepzero.CGE`, in place of ``loss``.
        step_size: as for :func:`deepzero.CGE`, like ``sparsity``, ``stencil``, ``evaluator`` and ``seed``; an estimator
            has its own.
        sparsity: which coordinates a run would query.
        stencil: ``dz.FORWARD`` or ``dz.CENTRAL``.
        evaluator: how queries are answered.
        seed: of the objective's own draws, and of the samples taken.
        learning_rate: try a step of this length along the estimate.
        steps: step sizes of the sweep, at least two.
        loop: what the training loop does beside its estimates, for a forecast of an epoch.
        seconds: about how long the sweep and the check of gradients may take, each; fewer samples are taken if needed.
        max_queries: function values that the examination of a black box may take; 128 by default. (A network's is
            bounded by ``seconds``.)
        run_steps: steps to forecast time and price of, for a black box; 100 by default, or what ``budget`` allows.
        budget: queries that a run of a black box may take.
        price_per_query: of a black box, in any currency.

    Raises:
        InvalidInputError: an argument is out of its domain, or has no effect on what is examined; a black box fails at
            the parameters as they are.

    Example:
        >>> import torch, torch.nn.functional as F
        >>> x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
        >>> diagnosis = diagnose(nn.Linear(3, 2), x, y, loss=F.cross_entropy, step_size=1e-4)
        >>> diagnosis.healthy, round(diagnosis.gradients.cosine, 3), diagnosis.forecast.queries
        (True, 1.0, 9)
        >>> import numpy as np, deepzero as dz
        >>> box = dz.BlackBox(lambda x: float((x**2).sum()), np.ones(3))
        >>> diagnosis = diagnose(box, price_per_query=0.01, run_steps=50)
        >>> diagnosis.queries.queries <= 128, diagnosis.run.queries, diagnosis.run.price
        (True, 200, 2.0)
    """
    if isinstance(subject, Estimator):
        _require_no_choices(loss, closure, step_size, sparsity, evaluator)
        zo = subject
    else:
        if isinstance(subject, nn.Module) and loss is closure is None and batch and callable(batch[0]):
            loss, batch = batch[0], batch[1:]
        zo = CGE(
            subject,
            loss=loss,
            closure=closure,
            step_size=step_size,
            sparsity=sparsity,
            stencil=stencil,
            evaluator=evaluator,
            seed=seed,
        )
    return examine(
        zo,
        *batch,
        learning_rate=learning_rate,
        steps=steps,
        loop=loop,
        seconds=seconds,
        max_queries=max_queries,
        run_steps=run_steps,
        budget=budget,
        price_per_query=price_per_query,
    )


def examine(
    zo: Estimator,
    *batch: Any,
    learning_rate: float | None = None,
    steps: Sequence[float] | None = None,
    loop: LoopCosts | None = None,
    seconds: float = 20.0,
    max_queries: int | None = None,
    run_steps: int | None = None,
    budget: int | None = None,
    price_per_query: float | None = None,
) -> Diagnosis:
    """Examine an estimator, as :func:`diagnose` does; the estimator, its model and its counters are left as they are.

    Args:
        zo: the estimator, of a network or of a black box.
        *batch: the arguments of an estimate.
        learning_rate: as for :func:`diagnose`, like all that follows.
        steps: step sizes of the sweep.
        loop: what the training loop does beside its estimates.
        seconds: of a network's examination, each part.
        max_queries: of a black box's.
        run_steps: steps to forecast, of a black box.
        budget: queries of a run, of a black box.
        price_per_query: of a black box.

    Raises:
        InvalidInputError: an argument is out of its domain, or nothing is to be estimated.
    """
    steps = None if steps is None else _checked_steps(steps)
    validation.positive("seconds", seconds, hint="20")
    if learning_rate is not None:
        validation.positive("learning_rate", learning_rate, hint="0.1")
    if not isinstance(zo.objective, NetworkObjective):
        plan = RunPlan(run_steps, budget, price_per_query)
        found, asked = examine_black_box(
            zo,
            batch,
            learning_rate=learning_rate,
            steps=steps,
            loop=loop,
            max_queries=MAX_QUERIES if max_queries is None else max_queries,
            plan=plan,
        )
        return _with_advice(found, asked, batch)
    for name, value in {
        "max_queries": max_queries,
        "run_steps": run_steps,
        "budget": budget,
        "price_per_query": price_per_query,
    }.items():
        if value is not None:
            raise InvalidInputError(f"{name} is for black boxes; leave it out for a network")
    steps = list(STEPS) if steps is None else steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowQueriesWarning)  # the diagnosis says so itself
        return _examined(_visit(zo, batch, seconds), learning_rate, steps, loop)


def _examined(visit: _Visit, learning_rate: float | None, steps: Sequence[float], loop: LoopCosts | None) -> Diagnosis:
    zo, batch = visit.zo, visit.batch
    determinism = check_determinism(zo.objective, batch, seed=visit.seed)
    if determinism.loss is None:
        return visit.advised(Diagnosis(determinism))
    query = visit.query_seconds()
    perturbations = visit.perturbations()
    operations = visit.make_usable(perturbations)
    exact = exact_gradients(zo.objective, batch, seed=visit.seed, loss=determinism.loss)
    sweep, slopes = visit.sweep(perturbations, steps, exact, query)
    found = Diagnosis(
        determinism=with_effect(determinism, zo.stencil, zo.step_size, slopes),
        operations=operations,
        plan=visit.plan(perturbations),
        sweep=sweep,
        step=choose_step(sweep, visit.evaluator, zo.stencil.name, zo.step_size),
    )
    try:
        predicted, estimate = forecast(zo, batch, perturbations, query_seconds=query, loop=loop)
    except (NonFiniteLossError, InvalidInputError) as error:
        return visit.advised(replace(found, failure=str(error)))
    gradients, recommended = visit.gradients(perturbations, exact, estimate, query, found.step)
    found = replace(found, step=_confirmed(found, gradients, recommended))
    trial = None
    if learning_rate is not None and estimate is not None:
        trial = try_step(zo.objective, batch, estimate, learning_rate, seed=visit.seed)
    return visit.advised(replace(found, gradients=gradients, forecast=predicted, trial=trial))


def _confirmed(
    found: Diagnosis, configured: GradientCheck | None, recommended: GradientCheck | None
) -> StepChoice | None:
    """The choice of a step with the errors of the larger check in place of the sweep's, where there is one."""
    choice, sweep = found.step, found.sweep
    if choice is None or sweep is None or sweep.autograd_disagrees or configured is None or recommended is None:
        return choice
    if configured.relative_error is None or recommended.relative_error is None:
        return choice
    samples = sum(layer.samples for layer in configured.layers)
    return judged(choice, recommended.relative_error, configured.relative_error, samples)


def _require_no_choices(*choices: Any) -> None:
    if any(choice is not None for choice in choices):
        raise InvalidInputError(
            "an estimator has a loss, a step size, coordinates and an evaluator of its own; leave out loss, closure, "
            "step_size, sparsity and evaluator"
        )


@dataclass
class _Visit:
    """An estimator, copied so that its evaluator can be replaced, and the batch it is examined on."""

    zo: Estimator
    batch: tuple[Any, ...]
    seed: int
    seconds: float

    @property
    def evaluator(self) -> str:
        """What the evaluator that answers is called."""
        return evaluator_name(self.zo.evaluator, self.zo.objective)

    def plan(self, perturbations: Perturbations) -> tuple[str, ...]:
        """How queries are run, in lines; nothing if the evaluator has one way only."""
        if not isinstance(self.zo.evaluator, AutomaticEvaluator):
            return ()
        batch = self.batch if isinstance(perturbations, CoordinatePerturbations) else None
        return tuple(self.zo.evaluator.explain(self.zo.objective, batch).splitlines())

    def perturbations(self) -> Perturbations:
        """The directions of the step."""
        perturbations = self.zo.directions(*self.batch)
        if len(perturbations) == 0:
            raise InvalidInputError("no coordinate is queried: give sparsity at least one coordinate")
        return perturbations

    def make_usable(self, perturbations: Perturbations) -> Operations | None:
        """Look at the operations and make a first measurement; where propagation fails, go on by full forwards."""
        zo, propagation = self.zo, propagation_of(self.zo.evaluator)
        if propagation is None or not isinstance(zo.objective, NetworkObjective):
            return None
        automatic = isinstance(zo.evaluator, AutomaticEvaluator)
        if automatic and not isinstance(perturbations, CoordinatePerturbations):
            self._measure(perturbations)
            if self.evaluator != "propagation":
                return None
        found = check_operations(propagation, zo.objective, self.batch)
        if found.problem is None or automatic:
            try:
                with watch_fallbacks() as fell:
                    self._measure(perturbations)
                if found.problem is None:
                    found = check_operations(propagation, zo.objective, self.batch, fell=fell)
                else:
                    found = replace(found, instead=self.evaluator)
            except InvalidInputError:
                raise
            except Exception as error:  # whatever it is, a report that names it helps more than a traceback
                found = replace(found, problem=described(error))
        if found.problem is not None and found.instead is None:
            zo.evaluator = SequentialEvaluator()
        return found

    def query_seconds(self) -> float:
        """Seconds of one full evaluation as a perturbed query makes it, not of the base query, which does more."""
        objective = self.zo.objective
        parameters = parameters_of(objective)
        with steady(objective):
            _, query = first_query(objective, parameters, self.batch, self.seed)
            return median_seconds(lambda: query(parameters), repeats=3)

    def _measure(self, perturbations: Perturbations) -> None:
        """A first measurement, of a few directions."""
        zo = self.zo
        few = sample(zo, perturbations, max(MOST_SAMPLES, len(parameters_of(zo.objective))))
        zo.slopes(few, self.batch, stencil=FORWARD)

    def sweep(
        self, perturbations: Perturbations, steps: Sequence[float], exact: Exact | None, query: float
    ) -> tuple[Sweep, Tensor | None]:
        """The sweep, and the slopes without noise: by autograd, or agreed upon; None if there is no agreement."""
        name = self.evaluator
        estimators = {name: self.zo, "sequential": self.zo.copy(evaluator=SequentialEvaluator())}
        affordable = self.seconds / query / (2 * len(estimators))
        if affordable / len(steps) < 2 * LEAST_SAMPLES:
            steps = steps[::2]
        count = max(LEAST_SAMPLES, min(MOST_SAMPLES, int(affordable / len(steps))))
        few = sample(self.zo, perturbations, count)
        true = None if exact is None else exact_slopes(few, exact.gradients)
        found, agreed = run_sweep(
            estimators,
            self.batch,
            few,
            steps=with_step(steps, self.zo.step_size),
            exact=None if exact is None or true is None else (exact.kind, true),
        )
        return found, true if true is not None or found.uncertainty >= USELESS else agreed

    def gradients(
        self,
        perturbations: Perturbations,
        exact: Exact | None,
        estimate: Estimate | None,
        query: float,
        choice: StepChoice | None,
    ) -> tuple[GradientCheck | None, GradientCheck | None]:
        """Sampled coordinates against autograd, at the configured and at the recommended step.

        Of random directions the whole of an estimate, at the configured step only.
        """
        if not isinstance(perturbations, CoordinatePerturbations):
            if estimate is None:
                return None, None
            checked = check_gradients(estimated_pairs(estimate.gradients, exact), exact)
            return replace(checked, expected_cosine=expected_cosine(self.zo, len(perturbations))), None
        zo, parameters = self.zo, len(perturbations.coordinates)
        most = max(MOST_SAMPLES, PER_PARAMETER * parameters)
        few = sample(zo, perturbations, max(parameters, min(most, int(self.seconds / query))))
        assert isinstance(few, CoordinatePerturbations)
        sizes = {name: len(index) for name, index in perturbations.coordinates.items()}

        def check(step: float) -> GradientCheck:
            slopes = zo.slopes(few, self.batch, step_size=step).values
            return check_gradients(sampled_pairs(few, slopes, exact), exact, sizes)

        configured = check(zo.step_size)
        if choice is None or exact is None:
            return configured, None
        return configured, configured if choice.step_size == zo.step_size else check(choice.step_size)

    def advised(self, found: Diagnosis) -> Diagnosis:
        """The diagnosis with its advice and its verdict."""
        return _with_advice(found, self.zo.objective, self.batch)


def _visit(zo: Estimator, batch: tuple[Any, ...], seconds: float) -> _Visit:
    """A visit that leaves the estimator as it is."""
    return _Visit(zo.copy(), batch, step_seed(zo.seed, zo.step), seconds)


def evaluator_name(evaluator: Evaluator, objective: Objective) -> str:
    """What the evaluator that answers the queries of an objective is called in a diagnosis."""
    if isinstance(evaluator, AutomaticEvaluator):
        return evaluator.taken(objective) or "automatic"
    names: dict[type, str] = {
        PropagationEvaluator: "propagation",
        BatchedEvaluator: "batched",
        SequentialEvaluator: "sequential",
    }
    return names.get(type(evaluator), type(evaluator).__name__)


def expected_cosine(zo: Estimator, queries: int) -> float:
    """The mean cosine of a gradient to its estimate from ``q`` gaussian directions, to first order in ``1 / d``."""
    dimension = sum(p.numel() for p in parameters_of(zo.objective).values())
    return math.sqrt(queries / (dimension + queries + 1))


def _checked_steps(steps: Sequence[float]) -> list[float]:
    checked = sorted({validation.positive("steps", step, hint="[1e-4, 1e-3, 1e-2]") for step in steps})
    if len(checked) < 2:
        raise InvalidInputError(f"steps must be at least two step sizes, got {list(steps)!r}; try [1e-4, 1e-3, 1e-2]")
    return checked


def _with_advice(found: Diagnosis, objective: Objective, batch: tuple[Any, ...]) -> Diagnosis:
    found = replace(found, findings=advise(found, objective, batch))
    return replace(found, verdict=verdict(found))
