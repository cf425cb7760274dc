"""The doctor: it examines a network, a black box or an estimator before a run, and changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from deepzero import validation
from deepzero.coordinates import Coordinates, CoordinateSchedule
from deepzero.doctor.advice import advise
from deepzero.doctor.black_box_examination import MAX_QUERIES, examine_black_box
from deepzero.doctor.diagnosis import Diagnosis
from deepzero.doctor.forecast import LoopCosts, RunPlan
from deepzero.doctor.network_examination import examine_network
from deepzero.doctor.sweep import STEPS
from deepzero.errors import InvalidInputError, SlowQueriesWarning
from deepzero.estimator import CGE, Estimator
from deepzero.evaluators import Evaluator
from deepzero.objective import Closure, Loss, NetworkObjective, Objective
from deepzero.stencils import FORWARD, Stencil
from deepzero.step_sizes import StepSizeLike


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
        sparsity: coordinates that a run would query.
        stencil: ``dz.FORWARD`` or ``dz.CENTRAL``.
        evaluator: what answers the queries.
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
    zo = subject
    if isinstance(zo, Estimator):
        _require_no_choices(loss, closure, step_size, sparsity, evaluator)
    else:
        if isinstance(zo, nn.Module) and loss is closure is None and batch and callable(batch[0]):
            loss, batch = batch[0], batch[1:]
        zo = CGE(
            zo,
            loss=loss,
            closure=closure,
            step_size=step_size,
            sparsity=sparsity,
            stencil=stencil,
            evaluator=evaluator,
            seed=seed,
        )
    steps = None if steps is None else _checked_steps(steps)
    validation.positive("seconds", seconds, hint="20")
    if learning_rate is not None:
        validation.positive("learning_rate", learning_rate, hint="0.1")
    if isinstance(zo.objective, NetworkObjective):
        _require_no_plan(max_queries=max_queries, run_steps=run_steps, budget=budget, price_per_query=price_per_query)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SlowQueriesWarning)  # the diagnosis says so itself
            found = examine_network(
                zo, batch, learning_rate=learning_rate, steps=steps or STEPS, loop=loop, seconds=seconds
            )
    else:
        found = examine_black_box(
            zo,
            batch,
            learning_rate=learning_rate,
            steps=steps,
            loop=loop,
            max_queries=MAX_QUERIES if max_queries is None else max_queries,
            plan=RunPlan(run_steps, budget, price_per_query),
        )
    return replace(found, findings=advise(found, zo.objective, batch))


def examine(zo: Estimator, *batch: Any, **options: Any) -> Diagnosis:
    """Examine an estimator: :func:`diagnose`, with the options from ``learning_rate`` on."""
    return diagnose(zo, *batch, **options)


def _require_no_choices(*choices: Any) -> None:
    if any(choice is not None for choice in choices):
        raise InvalidInputError(
            "an estimator has a loss, a step size, coordinates and an evaluator of its own; leave out loss, closure, "
            "step_size, sparsity and evaluator"
        )


def _require_no_plan(**options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise InvalidInputError(f"{name} is for black boxes; leave it out for a network")


def _checked_steps(steps: Sequence[float]) -> list[float]:
    checked = sorted({validation.positive("steps", step, hint="[1e-4, 1e-3, 1e-2]") for step in steps})
    if len(checked) < 2:
        raise InvalidInputError(f"steps must be at least two step sizes, got {list(steps)!r}; try [1e-4, 1e-3, 1e-2]")
    return checked
