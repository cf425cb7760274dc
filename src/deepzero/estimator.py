"""The composition: probes -> evaluator -> stencil -> combine -> ``p.grad``."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from deepzero import validation
from deepzero.coordinates import Coordinates, CoordinateSchedule, StepContext, as_schedule
from deepzero.errors import CheckpointError, InvalidInputError, NonFiniteLossError, RowError
from deepzero.evaluator_choice import choose_evaluator
from deepzero.evaluators import Evaluator, Measurement, StepQueries
from deepzero.evaluators.distributed import load_evaluator
from deepzero.executors import ExecutorSource, QueryJournal, QueryPolicy
from deepzero.objective import (
    Batch,
    Closure,
    Loss,
    NetworkObjective,
    Objective,
    asks_black_boxes,
    constrained,
    first_query,
    forgives_black_boxes,
    owners_of,
    parameters_of,
    steady,
)
from deepzero.probes import CoordinateProbes, Perturbations, Probes, RandomProbes, coordinates_of
from deepzero.randomness import derive_seed, step_seed
from deepzero.stencils import FORWARD, Stencil, as_stencil
from deepzero.step_sizes import (
    NOISE_POINTS,
    FromNoise,
    StepSizeLike,
    as_step_size,
    relative_noise,
    require_representable,
)


@dataclass(frozen=True)
class Slopes:
    """Slopes of the loss along the :math:`K` directions of a step, and the loss differences that they are made of.

    Attributes:
        loss: base loss, 0-dim float64.
        values: the slopes; NaN or infinite where a loss was.
        differences: :math:`\\ell(\\theta + t_j p_k) - \\ell(\\theta)` at every node :math:`j` of the stencil.
        buffers: the objective's buffers as the base query leaves them.
    """

    loss: Tensor
    values: Float64[Tensor, " K"]
    differences: Float64[Tensor, "J K"]
    buffers: Mapping[str, Tensor]


@dataclass(frozen=True)
class Estimate:
    """A gradient estimate.

    Attributes:
        loss: base loss, 0-dim float64.
        gradients: by parameter name, in the parameters' shapes and dtypes; 0 on coordinates that were not queried.
        queries: function values it took, the base included.
        buffers: the model's buffers as the base query leaves them.
        skipped: directions without a slope, because a black box inside gave no answer and its policy skips.
    """

    loss: Tensor
    gradients: dict[str, Tensor]
    queries: int
    buffers: Mapping[str, Tensor]
    skipped: int = 0

    def __repr__(self) -> str:
        size = sum(g.numel() for g in self.gradients.values())
        norm = math.sqrt(sum(float(g.abs().double().square().sum()) for g in self.gradients.values()))
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return (
            f"Estimate(loss={float(self.loss):.6g}, gradient of norm {norm:.4g} and {size:,} entries, "
            f"queries={self.queries:,}{skipped})"
        )


class Estimator:
    """A zeroth-order gradient estimator: four independent choices, composed.

    Make one with :func:`CGE` or :func:`RGE`. Nothing is differentiated: a query records no autograd graph, unless the
    program itself differentiates inside.

    Attributes:
        queries: function values used so far.
        step: estimates made by :meth:`backward` so far.
        skipped: directions so far that a black box inside gave no answer for, and that its policy skips: they
            contribute nothing.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        probes: Probes,
        evaluator: Evaluator,
        stencil: Stencil | str = FORWARD,
        step_size: StepSizeLike = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        self.objective = objective
        self.probes = probes
        self.evaluator = evaluator
        self.stencil = as_stencil(stencil)
        self.step_rule = as_step_size(step_size, order=self.stencil.order)
        self.dtype = None if dtype is None else validation.floating("dtype", dtype)
        self.seed = validation.integer("seed", seed)
        self.queries = 0
        self.step = 0
        self.epoch = 0
        self.skipped = 0
        self._kept: dict[str, float] = {}
        require_representable(self.step_rule.of(parameters_of(objective)), parameters_of(objective))

    def __repr__(self) -> str:
        rule = self.step_rule.describe()
        return (
            f"{type(self).__name__}({self.objective!r}, probes={self.probes!r}, stencil={self.stencil.name}, "
            f"step_size={'by dtype' if rule is None else rule}, evaluator={type(self.evaluator).__name__}, "
            f"seed={self.seed}; {self.step:,} steps, {self.queries:,} queries so far)"
        )

    @property
    def step_size(self) -> float:
        """The step size :math:`\\mu`; where parameters have steps of their own, the largest of them now."""
        return max(self.step_sizes().values())

    def step_sizes(self) -> dict[str, float]:
        """Step size of each parameter at the present parameters."""
        return self.step_rule.of(parameters_of(self.objective))

    def estimate(self, *batch: Any, **keywords: Any) -> Estimate:
        """The estimate at the current parameters; changes nothing, so a second call gives the same bits."""
        with steady(self.objective):
            return self._estimate(Batch(batch, keywords))

    def _estimate(self, batch: Batch) -> Estimate:
        context = self.context(batch)
        directions = self.probes.draw(context)
        found = self.slopes(directions, batch, step_size=context.step_size)
        coordinates = coordinates_of(directions)
        if coordinates is not None:
            self._kept = coordinates.shares(parameters_of(self.objective))
        skipped = self._unanswered(found.differences)
        self._require_finite(found.differences.masked_fill(skipped, 0.0), directions, context.step_size)
        with torch.no_grad():
            slopes = found.values.masked_fill(skipped, 0.0)
            gradients = constrained(self.objective, directions.combine(slopes, self.dtype))
        return Estimate(found.loss, gradients, self.cost(directions), found.buffers, int(skipped.sum()))

    def directions(self, *batch: Any, **keywords: Any) -> Perturbations:
        """The :math:`K` directions :math:`p_k` of the next step: :math:`e_i` for CGE, :math:`u_k` for RGE.

        Args:
            *batch: as for :meth:`backward`; schedules may look at it.
            **keywords: likewise.

        Example:
            >>> import numpy as np, deepzero as dz
            >>> zo = dz.CGE(dz.BlackBox(lambda x: float((x**2).sum()), np.ones(3)))
            >>> directions = zo.directions()
            >>> len(directions), directions.describe(2), zo.cost(directions)
            (3, 'x[2]', 4)
        """
        return self.probes.draw(self.context(Batch(batch, keywords)))

    def slopes(
        self,
        directions: Perturbations,
        batch: tuple[Any, ...] = (),
        *,
        step_size: float | None = None,
        stencil: Stencil | str | None = None,
    ) -> Slopes:
        """Slopes along directions, with the random numbers of the next step; changes nothing.

        .. math:: s_k = \\frac{\\sum_j w_j \\, [\\ell(\\theta + t_j p_k) - \\ell(\\theta)]}{\\sum_j w_j t_j},
            \\qquad t_j = \\nu_j \\mu

        with nodes :math:`\\nu_j` and weights :math:`w_j` of the stencil. Where an evaluator forms
        :math:`\\theta + t_j p_k`, :math:`t_j` is what rounding leaves of it.

        Args:
            directions: those of :meth:`directions`, or some of them.
            batch: the arguments of an estimate, as a tuple or a :class:`~deepzero.objective.Batch`.
            step_size: :math:`\\mu`; the estimator's by default.
            stencil: the estimator's by default.

        Example:
            >>> import numpy as np, deepzero as dz
            >>> zo = dz.CGE(dz.BlackBox(lambda x: float((x**2).sum()), np.ones(3)))
            >>> zo.slopes(zo.directions(), step_size=0.5).values
            tensor([2.5000, 2.5000, 2.5000], dtype=torch.float64)
            >>> zo.slopes(zo.directions(), step_size=0.5, stencil=dz.CENTRAL).values
            tensor([2., 2., 2.], dtype=torch.float64)
        """
        chosen = self.stencil if stencil is None else as_stencil(stencil)
        size = self.context(batch).step_size if step_size is None else step_size
        queries = self.step_queries(directions, [node * size for node in chosen.nodes], batch)
        answers = self.measure(queries)
        with torch.no_grad():
            values = chosen.slopes(answers.differences, answers.taken(queries))
        return Slopes(answers.loss, values, answers.differences, answers.buffers)

    def step_queries(
        self, directions: Perturbations, offsets: Sequence[float], batch: tuple[Any, ...] = ()
    ) -> StepQueries:
        """The queries of the next step at some offsets :math:`t_j` along some directions, as evaluators take them."""
        return StepQueries(self.objective, batch, directions, offsets, step_seed(self.seed, self.step))

    def measure(self, queries: StepQueries) -> Measurement:
        """The answers to queries: ``[J, K]`` loss differences; changes nothing."""
        try:
            with steady(self.objective):
                return self.evaluator.measure(queries)
        except RowError as error:
            if error.job is not None:
                error.during(queries.describe(error.job.row, error.job.start + error.perturbation))
            raise

    def cost(self, directions: Perturbations) -> int:
        """Function values that an estimate along ``directions`` takes, the base included."""
        return 1 + len(self.stencil.nodes) * len(directions)

    def copy(self, *, objective: Objective | None = None, evaluator: Evaluator | None = None) -> Estimator:
        """Another estimator with the same choices and counters, on another objective or evaluator if one is given.

        What one of them counts or finds out (:attr:`queries`, the noise of the loss) does not reach the other.
        """
        twin = copy.copy(self)
        twin.step_rule = copy.copy(self.step_rule)
        twin.objective = self.objective if objective is None else objective
        twin.evaluator = self.evaluator if evaluator is None else evaluator
        return twin

    def _unanswered(self, differences: Tensor) -> Tensor:
        """``[q]``: directions that a black box's policy leaves out; all of them would be no estimate."""
        bad = (~differences.isfinite()).any(0)
        if not bool(bad.any()) or bool(bad.all()) or not forgives_black_boxes(self.objective):
            return torch.zeros_like(bad)
        return bad

    def _require_finite(self, differences: Tensor, directions: Perturbations, step_size: float) -> None:
        bad = (~differences.isfinite()).nonzero()
        if len(bad):
            row, k = bad[0].tolist()
            raise NonFiniteLossError(
                f"{len(bad)} of {differences.numel()} perturbed losses are not finite, the first at "
                f"{directions.describe(k)} moved by {self.stencil.nodes[row] * step_size:g}; lower the step size or "
                "the learning rate, or run `deepzero doctor`"
            )

    def context(self, batch: tuple[Any, ...]) -> StepContext:
        """The context of the next step: its number, the batch, and the step sizes of the parameters."""
        self._measure_noise(batch)
        sizes = self.step_sizes()
        require_representable(sizes, parameters_of(self.objective))
        unit = max(sizes.values())
        scales = {name: size / unit for name, size in sizes.items() if size != unit}
        return StepContext(self.step, self.epoch, self.objective, batch, scales, unit)

    def backward(self, *batch: Any, **keywords: Any) -> Tensor:
        """Add the estimate to ``p.grad`` of every trainable parameter, as ``loss.backward()`` would.

        Batch norm's running statistics move once, as in one training forward.

        Args:
            *batch: ``x, y`` with ``loss=...``; whatever follows the model in ``closure=...``; further arguments of
                ``fn`` for a black box. Dicts, lists and tuples of tensors are welcome.
            **keywords: likewise.

        Returns:
            The base loss, a 0-dim float64 tensor.

        Raises:
            NonFiniteLossError: a loss was NaN or infinite; no ``.grad`` and no buffer was changed.
        """
        estimate = self.estimate(*batch, **keywords)
        with torch.no_grad():
            for name, parameter in owners_of(self.objective).items():
                gradient = estimate.gradients[name].reshape(parameter.shape)
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        self.objective.commit(estimate.buffers)
        self.queries += estimate.queries
        self.skipped += estimate.skipped
        self.step += 1
        return estimate.loss

    def explain(self, *batch: Any, **keywords: Any) -> str:
        """The plan in words: the way each parameter's queries are run, its cost, and its check.

        Args:
            *batch: as for :meth:`backward`: makes the base query. Without it: what is known from the steps so far.
            **keywords: likewise.
        """
        explain = getattr(self.evaluator, "explain", None)
        name = type(self.evaluator).__name__
        if explain is None:
            return f"{name}: every query is one evaluation of the objective"
        arguments = Batch(batch, keywords) if batch or keywords else None
        return str(explain(self.objective, arguments))

    def _measure_noise(self, batch: tuple[Any, ...]) -> None:
        """``step_size="auto"``: the noise of the loss, once.

        Differences along coordinates that are propagated have none but rounding, unless a black box inside tells
        values alone.
        """
        rule = self.step_rule
        if not isinstance(rule, FromNoise) or rule.noise is not None:
            return
        exact = getattr(self.evaluator, "exact", False) and getattr(self.probes, "along_coordinates", False)
        if exact and not asks_black_boxes(self.objective):
            rule.noise = 0.0
            return
        parameters = parameters_of(self.objective)
        _, query = first_query(self.objective, parameters, batch, step_seed(self.seed, self.step))
        rule.noise = relative_noise(lambda moved: float(query(moved)), parameters, derive_seed(self.seed, "noise"))
        self.queries += NOISE_POINTS + 1

    def kept(self) -> dict[str, float]:
        """The share of each layer's coordinates that the last estimate was of, in [0, 1], in the objective's order.

        Layers are parameters of two or more dimensions. Empty before the first estimate, for random directions, and
        where no coordinate was left out.
        """
        return dict(self._kept)

    def set_epoch(self, epoch: int) -> None:
        """Announce the epoch to schedules that count epochs."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Counters and whatever the evaluator needs to give the same bits on resume, as JSON-able values."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "queries": self.queries,
            "skipped": self.skipped,
            "fixed": self.settings(),
            "evaluator": self.evaluator.state_dict(),
            **({"noise": self.step_rule.noise} if isinstance(self.step_rule, FromNoise) else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; the choices that shape the estimate must be the same."""
        needed = ("step", "epoch", "queries", "fixed", "evaluator")
        missing = [key for key in needed if not isinstance(state, Mapping) or key not in state]
        if missing:
            raise CheckpointError(
                f"this is no state of an estimator: it has no {missing[0]!r}; give what zo.state_dict() returned"
            )
        expected, found = self.settings(), state["fixed"]
        if expected != found:
            changed = ", ".join(f"{k}: {found.get(k)!r} -> {v!r}" for k, v in expected.items() if found.get(k) != v)
            raise CheckpointError(
                f"the checkpoint was made by another estimator ({changed}); resume with the same options"
            )
        self.step, self.epoch, self.queries = state["step"], state["epoch"], state["queries"]
        self.skipped = state.get("skipped", 0)
        if isinstance(self.step_rule, FromNoise):
            self.step_rule.noise = state.get("noise")
        load_evaluator(self.evaluator, state["evaluator"])

    def settings(self) -> dict[str, Any]:
        """The choices that shape the estimate, as JSON-able values; a run is resumed with the same."""
        return {
            "stencil": self.stencil.name,
            "step_size": self.step_rule.describe(),
            "dtype": None if self.dtype is None else str(self.dtype),
            "seed": self.seed,
            **self.probes.state(),
        }


def CGE(  # noqa: N802 - the field's name
    model: nn.Module | Objective,
    *,
    loss: Loss | None = None,
    closure: Closure | None = None,
    step_size: StepSizeLike = None,
    sparsity: CoordinateSchedule | Coordinates | Mapping[str, Tensor] | None = None,
    stencil: Stencil | str = FORWARD,
    evaluator: Evaluator | str | None = None,
    strict: bool = False,
    executor: ExecutorSource | None = None,
    policy: QueryPolicy | None = None,
    journal: QueryJournal | None = None,
    seed: int = 0,
) -> Estimator:
    """Coordinate-wise gradient estimation (equation (1) right and Sparse-CGE of Chen et al., 2024).

    .. math:: \\hat\\nabla\\ell(\\theta) = \\sum_{i \\in S} \\frac{\\ell(\\theta + \\mu e_i) - \\ell(\\theta)}{\\mu} e_i

    Args:
        model: a network, a :class:`~deepzero.BlackBox`, or another :class:`~deepzero.objective.Objective`.
        loss: for a network: ``loss(output, target)``, called with ``(model(x), y)``; one number, or one a sample, which
            are averaged in float64. A loss module's own parameters are estimated, too.
        closure: for a network, in place of ``loss``: ``closure(model, *batch, **keywords)``, which returns one number.
        step_size: :math:`\\mu`: a number (the paper's is 5e-3), numbers by parameter name, ``{"relative": r}`` (a share
            of each parameter's root mean square), ``"auto"`` (from dtype and measured noise), or None: the cube root of
            the dtype's rounding unit, times the parameter's root mean square where that is above 1.
        sparsity: which coordinates: all (default), ``Coordinates``, boolean masks, or a schedule.
        stencil: ``dz.FORWARD`` or ``dz.CENTRAL``.
        evaluator: how; ``"auto"`` (the default) takes for every parameter of a network the fastest exact way that there
            is, and one call after another for a black box.
        strict: what makes ``"auto"`` warn that it is slow is an error.
        executor: for a black box: a ``concurrent.futures`` executor on which its queries run, or a function that makes
            one; short for ``evaluator=dz.ExecutorEvaluator(executor, policy=policy, journal=journal)``.
        policy: with ``executor``: timeout, retries, limits.
        journal: with ``executor``: a file that keeps every answer.
        seed: seeds whatever the objective draws, such as dropout masks.

    Example:
        >>> import torch, torch.nn.functional as F, deepzero as dz
        >>> model = torch.nn.Linear(3, 2)
        >>> x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
        >>> zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-5)
        >>> value = zo.backward(x, y)
        >>> exact = torch.autograd.grad(F.cross_entropy(model(x), y), model.weight)[0]
        >>> torch.allclose(model.weight.grad, exact, atol=1e-4), zo.queries
        (True, 9)
    """
    objective = _objective(model, loss, closure)
    chosen = choose_evaluator(objective, evaluator, executor, policy=policy, journal=journal, strict=strict)
    return Estimator(
        objective,
        probes=CoordinateProbes(as_schedule(sparsity)),
        evaluator=chosen,
        stencil=stencil,
        step_size=step_size,
        seed=seed,
    )


def RGE(  # noqa: N802 - the field's name
    model: nn.Module | Objective,
    *,
    loss: Loss | None = None,
    closure: Closure | None = None,
    step_size: StepSizeLike = None,
    queries: int = 192,
    distribution: str = "gaussian",
    stencil: Stencil | str = FORWARD,
    evaluator: Evaluator | str | None = None,
    strict: bool = False,
    executor: ExecutorSource | None = None,
    policy: QueryPolicy | None = None,
    journal: QueryJournal | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Estimator:
    """Randomized gradient estimation (equation (1) left of Chen et al., 2024).

    .. math:: \\hat\\nabla\\ell(\\theta) = \\frac{1}{q} \\sum_{k=1}^q
        \\frac{\\ell(\\theta + \\mu u_k) - \\ell(\\theta)}{\\mu} u_k,
        \\qquad u_k \\sim N(0, I)

    Args:
        model: as for :func:`CGE`.
        loss: as for :func:`CGE`.
        closure: as for :func:`CGE`.
        step_size: :math:`\\mu`, in the forms of :func:`CGE`.
        queries: :math:`q`, the number of directions a step.
        distribution: ``gaussian``, ``rademacher``, or ``sphere`` (unit sphere, with its factor :math:`d`).
        stencil: ``dz.FORWARD`` or ``dz.CENTRAL`` (two queries a direction).
        evaluator: how; ``"auto"`` (the default) takes ``vmap`` over stacked directions for a network, or what is exact
            and next fastest where that cannot be; a loop for a black box.
        strict: what makes ``"auto"`` warn that it is slow is an error.
        executor: for a black box: a ``concurrent.futures`` executor on which its queries run, or a function that makes
            one; short for ``evaluator=dz.ExecutorEvaluator(executor, policy=policy, journal=journal)``.
        policy: with ``executor``: timeout, retries, limits.
        journal: with ``executor``: a file that keeps every answer.
        dtype: accumulation dtype of the sum over directions.
        seed: directions and the objective's own draws are a pure function of it and the step.

    Example:
        >>> import torch, torch.nn.functional as F, deepzero as dz
        >>> zo = dz.RGE(torch.nn.Linear(3, 2), loss=F.cross_entropy, queries=4, seed=0)
        >>> _ = zo.backward(torch.randn(8, 3), torch.randint(0, 2, (8,)))
        >>> zo.queries
        5
    """
    objective = _objective(model, loss, closure)
    chosen = choose_evaluator(objective, evaluator, executor, policy=policy, journal=journal, strict=strict)
    return Estimator(
        objective,
        probes=RandomProbes(queries, distribution, seed),
        evaluator=chosen,
        stencil=stencil,
        step_size=step_size,
        dtype=dtype,
        seed=seed,
    )


def _objective(model: Any, loss: Loss | None, closure: Closure | None) -> Objective:
    if isinstance(model, nn.Module):
        return NetworkObjective(model, loss, closure=closure)
    names = "owners" if callable(getattr(model, "owners", None)) else "named_parameters"
    missing = [name for name in (names, "evaluate", "commit") if not callable(getattr(model, name, None))]
    if missing and callable(model):
        raise InvalidInputError(
            f"model must be an nn.Module, got the {type(model).__name__} {model!r}; for a function of parameters use "
            f"dz.BlackBox(fn, params)"
        )
    if missing:
        raise InvalidInputError(
            "model must be an nn.Module with loss=... or closure=..., a dz.BlackBox(fn, params), or an objective with "
            f"named_parameters(), evaluate() and commit(); got {type(model).__name__}, which has no {missing[0]}()"
        )
    if loss is not None or closure is not None:
        raise InvalidInputError(f"a {type(model).__name__} returns its loss itself; leave out loss=... and closure=...")
    return model  # type: ignore[no-any-return]
