"""A function in place of a training: :func:`minimize` in SciPy's convention, :func:`value_and_grad` in JAX's."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from deepzero import validation
from deepzero.arrays import BARE, Given, is_like_array
from deepzero.coordinates import Coordinates
from deepzero.errors import InvalidInputError
from deepzero.estimator import CGE, RGE, Estimator
from deepzero.evaluators import StepQueries
from deepzero.executors import ExecutorEvaluator, QueryJournal, QueryPolicy
from deepzero.executors.pool import ExecutorSource
from deepzero.extras import required_for
from deepzero.objective import Batch, BlackBox, parameters_of
from deepzero.orphans import end_with_parent
from deepzero.probes.coordinate import CoordinatePerturbations
from deepzero.stencils import CENTRAL, Stencil, as_stencil
from deepzero.step_sizes import NOISE_POINTS, FromNoise, StepSizeLike

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

METHODS = ("cge", "rge")
QUASI_NEWTON, ADAM, SGD = "l-bfgs-b", "adam", "sgd"
OPTIMIZERS = (QUASI_NEWTON, ADAM, SGD)
FINAL_REPEATS = 8
"""Queries of the result of a noisy function, whose mean and standard error are reported."""
CONVERGED, STEPS_SPENT, QUERIES_SPENT, STOPPED = 0, 1, 2, 3
MESSAGES = {
    CONVERGED: "the gradient, or the change of the function, is as small as it can be told",
    STEPS_SPENT: "max_steps were taken",
    QUERIES_SPENT: "the next step would take more than max_queries",
    STOPPED: "the callback raised StopIteration",
}
Bounds: TypeAlias = Any
"""``scipy.optimize.Bounds``, one pair ``(low, high)``, or a sequence of pairs; None in a pair for no bound."""


def minimize(
    fn: Callable[..., Any],
    x0: Given,
    args: tuple[Any, ...] = (),
    *,
    method: str = "cge",
    optimizer: str | Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    lr: float = 1e-2,
    step: StepSizeLike = None,
    stencil: Stencil | str = CENTRAL,
    queries: int = 32,
    bounds: Bounds | None = None,
    max_steps: int = 1000,
    max_queries: int | None = None,
    repeats: int = 1,
    workers: int | ExecutorSource = 1,
    policy: QueryPolicy | None = None,
    journal: QueryJournal | str | Path | None = None,
    callback: Callable[[OptimizeResult], Any] | None = None,
    seed: int = 0,
) -> OptimizeResult:
    """Minimize a function of which only values are known.

    Args:
        fn: called as ``fn(x, *args)``; returns a number. ``x`` is what ``x0`` is: an array, a tensor, or a dict of
            them; for a module a dict of its trainable parameters by name.
        x0: the point to begin at. It stays as it is, but for a module, whose parameters are moved. Numbers and lists
            become arrays.
        args: further arguments of ``fn``.
        method: ``"cge"``, every coordinate, or ``"rge"``, ``queries`` random directions a step.
        optimizer: ``"l-bfgs-b"`` (SciPy's, which wants a gradient almost without noise: the default with ``"cge"`` and
            ``repeats=1``), ``"adam"`` (the default otherwise), ``"sgd"``, or a function that makes any ``torch.optim``
            optimizer: ``lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)``.
        lr: of ``"adam"`` and ``"sgd"``.
        step: of the finite differences, in the forms of :func:`deepzero.CGE`; ``"auto"`` measures the noise of ``fn``
            first (7 queries) and chooses by it. Default: by dtype and size, and ``"auto"`` with ``repeats`` above 1.
        stencil: ``dz.CENTRAL`` (two queries a direction) or ``dz.FORWARD`` (one).
        queries: random directions of a step, for ``"rge"``.
        bounds: ``(low, high)`` for all entries, a pair for each, or ``scipy.optimize.Bounds``; None for no bound. No
            query leaves them: where one would, the point that is differenced is moved inwards by the step.
        max_steps: of the optimizer.
        max_queries: calls of ``fn``, those at the result included; the step that would exceed them is not begun.
        repeats: calls of a noisy ``fn`` at each point, of which the mean is taken.
        workers: processes that call ``fn`` at the same time (it must be importable there), or an executor, or a
            function that makes one.
        policy: time-outs, retries and limits of these calls.
        journal: a file that keeps every answer, so that a run that is started again pays for none twice.
        callback: called after every step with an ``OptimizeResult`` of ``x``, ``fun``, ``nit`` and ``nfev``; may raise
            ``StopIteration``.
        seed: of random directions.

    Returns:
        ``x`` (the best point that was seen), ``fun``, ``jac`` (the estimate at the last point), ``nfev``, ``nit``,
        ``success``, ``status`` and ``message``; with ``repeats`` above 1 ``fun`` is the mean of 8 further calls at
        ``x``, and ``standard_error`` its standard error.

    Raises:
        InvalidInputError: an argument is out of its domain, or ``max_queries`` does not allow a single step.
        MissingPackageError: SciPy is not installed.
        NonFiniteLossError: ``fn`` returned NaN or infinity.
        QueryError: a call failed for good.

    Example:
        >>> import numpy as np, deepzero as dz
        >>> found = dz.minimize(lambda x: float(((x - 3.0) ** 2).sum()), np.zeros(4), bounds=(0.0, 2.5))
        >>> found.x.round(3), found.success
        (array([2.5, 2.5, 2.5, 2.5]), True)
    """
    _scipy()
    if not callable(fn):
        raise InvalidInputError(f"fn must be callable as fn(x, *args) -> float, got {type(fn).__name__}")
    validation.choice("method", method, METHODS)
    noisy = validation.count("repeats", repeats) > 1
    make_optimizer = _optimizer(optimizer, method, noisy, lr)
    validation.count("max_steps", max_steps)
    if max_queries is not None:
        validation.count("max_queries", max_queries)
    x0 = _arrays(x0)
    if not isinstance(x0, (Tensor, np.ndarray, Mapping, nn.Module)):
        raise InvalidInputError(
            "x0 must be an array, a tensor, a list of numbers, a dict of arrays or a torch.nn.Module, got "
            f"{type(x0).__name__}"
        )
    with ExitStack() as stack:
        box = BlackBox(Repeated(fn, repeats) if noisy else fn, _own(x0))
        make = CGE if method == "cge" else partial(RGE, queries=queries)
        zo = make(
            box,
            step_size="auto" if step is None and noisy else step,
            stencil=stencil,
            seed=seed,
            **_execution(workers, policy, journal, stack),
        )
        directions = _size(box) if method == "cge" else queries
        search = _Search(
            fn=fn,
            args=args,
            variables=_Variables(x0, box, _limits(bounds, _size(box))),
            zo=zo,
            per_step=repeats * (1 + len(as_stencil(stencil).nodes) * directions),
            repeats=repeats,
            max_steps=max_steps,
            max_queries=max_queries,
            callback=callback,
        )
        search.require_a_step()
        if make_optimizer is None:
            search.by_scipy()
        else:
            search.by_torch(make_optimizer(list(box.parameters())))
        return search.result()


def value_and_grad(
    fn: Callable[..., Any],
    *,
    method: str = "cge",
    step: StepSizeLike = None,
    stencil: Stencil | str = CENTRAL,
    queries: int = 192,
    workers: int | ExecutorSource = 1,
    policy: QueryPolicy | None = None,
    seed: int = 0,
) -> Callable[..., tuple[float, Any]]:
    """A function that gives a value and an estimate of the gradient, from values alone.

    Args:
        fn: called as ``fn(x, *args)``; returns a number. ``x`` is an array, a tensor, or a dict of them.
        method: ``"cge"``, every coordinate, or ``"rge"``, ``queries`` random directions; those of the k-th call follow
            from ``seed`` and k.
        step: of the finite differences, in the forms of :func:`deepzero.CGE`.
        stencil: ``dz.CENTRAL`` or ``dz.FORWARD``.
        queries: random directions, for ``"rge"``.
        workers: as for :func:`minimize`.
        policy: as for :func:`minimize`.
        seed: of random directions.

    Returns:
        ``g(x, *args, **keywords) -> (value, gradient)``, the gradient in the form, shapes and dtypes of ``x``.

    Example:
        >>> import numpy as np, deepzero as dz
        >>> value, gradient = dz.value_and_grad(lambda p: float((p["w"] ** 2).sum()))({"w": np.array([1.0, 2.0])})
        >>> value, gradient["w"].round(6)
        (5.0, array([2., 4.]))
    """
    validation.choice("method", method, METHODS)
    make = CGE if method == "cge" else partial(RGE, queries=queries)
    calls = 0

    def estimated(x: Given, *args: Any, **keywords: Any) -> tuple[float, Any]:
        nonlocal calls
        x = _arrays(x)
        with ExitStack() as stack:
            box = BlackBox(fn, _own(x))
            execution = _execution(workers, policy, None, stack)
            zo = make(box, step_size=step, stencil=stencil, seed=seed, **execution)
            zo.step, calls = calls, calls + 1
            estimate = zo.estimate(*args, **keywords)
        return float(estimate.loss), _like(x, estimate.gradients)

    return estimated


@dataclass(frozen=True)
class Repeated:
    """The mean of several calls of a noisy function; can be sent to workers if the function can.

    Attributes:
        fn: the function.
        repeats: calls.
    """

    fn: Callable[..., Any]
    repeats: int

    def __call__(self, x: Any, *args: Any, **keywords: Any) -> Any:
        """The mean."""
        return math.fsum(float(self.fn(x, *args, **keywords)) for _ in range(self.repeats)) / self.repeats


@dataclass(frozen=True)
class _Variables:
    """The variables of a function: flat and in float64 for an optimizer, in the form of ``x0`` for the user.

    Attributes:
        x0: the form.
        box: the function, which holds them as parameters.
        limits: lower and upper bounds, flat; None without bounds.
    """

    x0: Given
    box: BlackBox
    limits: tuple[Tensor, Tensor] | None

    def flat(self) -> Tensor:
        """The parameters."""
        return torch.cat([p.double().flatten() for p in parameters_of(self.box).values()])

    def move(self, point: Tensor) -> None:
        """Set the parameters."""
        for part, p in zip(self._parts(point), parameters_of(self.box).values(), strict=True):
            p.copy_(part)

    def like_x0(self, flat: Tensor) -> Any:
        """Flat numbers in the form of ``x0``."""
        return _like(self.x0, dict(zip(self.box.values, self._parts(flat), strict=True)))

    def bounded(self, point: Tensor, margin: Tensor | float = 0.0) -> Tensor:
        """The point, moved inwards to a distance from the bounds."""
        if self.limits is None:
            return point
        low, high = self.limits
        return torch.minimum(torch.maximum(point, low + margin), high - margin)

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """Flat numbers in the shapes and dtypes of the parameters."""
        parameters = list(parameters_of(self.box).values())
        parts = torch.split(flat, [p.numel() for p in parameters])
        return [part.reshape(p.shape).to(p.dtype) for part, p in zip(parts, parameters, strict=True)]


@dataclass
class _Search:
    """A minimization in progress."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    variables: _Variables
    zo: Estimator
    per_step: int
    repeats: int
    max_steps: int
    max_queries: int | None
    callback: Callable[[OptimizeResult], Any] | None
    steps: int = 0
    status: int = CONVERGED
    best: float = math.inf
    best_point: Tensor | None = None
    slopes: Tensor | None = None

    @property
    def calls(self) -> int:
        """Calls of the function so far."""
        return self.repeats * self.zo.queries

    @property
    def final_calls(self) -> int:
        """Calls at the result."""
        return FINAL_REPEATS if self.repeats > 1 else int(self.variables.limits is not None)

    @property
    def next_calls(self) -> int:
        """Calls of the next step; before the first one a step size may measure the noise."""
        rule = self.zo.step_rule
        measures = isinstance(rule, FromNoise) and rule.noise is None
        return self.per_step + (self.repeats * (NOISE_POINTS + 1) if measures else 0)

    def require_a_step(self) -> None:
        """Raise :class:`InvalidInputError` unless the budget allows a step."""
        least = self.next_calls + self.final_calls
        if self.max_queries is not None and least > self.max_queries:
            raise InvalidInputError(
                f"a step takes {least:,} queries, more than max_queries={self.max_queries:,}; give more, "
                'dz.FORWARD, or fewer directions: method="rge", queries=...'
            )

    def by_scipy(self) -> None:
        """SciPy's L-BFGS-B, with estimates as gradients."""
        variables = self.variables
        values: dict[bytes, float] = {}

        def value_and_slopes(x: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
            value, slopes = self._estimate(torch.from_numpy(x.copy()))
            values[x.tobytes()] = value
            return value, slopes.numpy()

        def end_step(x: np.ndarray[Any, Any]) -> None:
            self._end_step(torch.from_numpy(x.copy()), values.get(x.tobytes(), self.best))

        limits = variables.limits
        try:
            found = _scipy().minimize(
                value_and_slopes,
                variables.flat().numpy(),
                jac=True,
                method="L-BFGS-B",
                bounds=None if limits is None else _scipy().Bounds(*(limit.numpy() for limit in limits)),
                callback=end_step,
                options={"maxiter": self.max_steps, "maxfun": 10**9},
            )
        except _EndError as end:
            self.status = end.status
        else:
            self.status = STEPS_SPENT if found.nit >= self.max_steps else CONVERGED
            if limits is not None and float(found.fun) <= self.best:
                self.best_point = torch.from_numpy(np.array(found.x))  # on the bounds, not a step inside

    def by_torch(self, optimizer: torch.optim.Optimizer) -> None:
        """Any ``torch.optim`` optimizer; points are put back into the bounds."""
        variables = self.variables
        try:
            while self.steps < self.max_steps:
                point = variables.flat()
                value, _ = self._estimate(point)
                variables.move(point)
                optimizer.step()
                variables.move(variables.bounded(variables.flat()))
                self._end_step(point, value)
            self.status = STEPS_SPENT
        except _EndError as end:
            self.status = end.status

    def result(self) -> OptimizeResult:
        """The best point; a noisy function is called there again, and one with bounds once: it was called inside."""
        assert self.best_point is not None
        assert self.slopes is not None
        self.variables.move(self.best_point)
        values, more = [self.best], {}
        if self.final_calls:
            values = self._values_at_best(self.best_point)
        if self.repeats > 1:
            more["standard_error"] = float(np.std(values, ddof=1)) / math.sqrt(self.final_calls)
        return _scipy().OptimizeResult(
            x=self.variables.like_x0(self.best_point),
            fun=math.fsum(values) / len(values),
            jac=self.variables.like_x0(self.slopes),
            nfev=self.calls + self.final_calls,
            nit=self.steps,
            success=self.status == CONVERGED or (self.status == STEPS_SPENT and self.repeats > 1),
            status=self.status,
            message=MESSAGES[self.status],
            **more,
        )

    def _estimate(self, point: Tensor) -> tuple[float, Tensor]:
        """Value and slopes near a point, flat, in float64; the slopes are left in ``.grad`` of the parameters, too.

        Raises:
            _EndError: the step would exceed the budget.
        """
        if self.max_queries is not None and self.calls + self.next_calls + self.final_calls > self.max_queries:
            raise _EndError(QUERIES_SPENT)
        at = self._inside(point)
        self.variables.move(at)
        parameters = list(self.variables.box.parameters())
        for parameter in parameters:
            parameter.grad = None
        value = float(self.zo.backward(*self.args))
        self.slopes = torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None])
        if value < self.best:
            self.best, self.best_point = value, at.clone()
        return value, self.slopes

    def _inside(self, point: Tensor) -> Tensor:
        """The point, moved inwards so far that no query leaves the bounds."""
        if self.variables.limits is None:
            return point
        low, high = self.variables.limits
        self.variables.move(point)
        sizes = self.zo.step_sizes()  # which may depend on the point
        named = self.variables.box.named_parameters()
        margin = torch.cat([torch.full((p.numel(),), sizes[name]) for name, p in named]).double()
        return self.variables.bounded(point, torch.minimum(margin * 1.01, (high - low) / 2))

    def _end_step(self, point: Tensor, value: float) -> None:
        """Count a step, and call the callback.

        Raises:
            _EndError: the callback raised ``StopIteration``, which SciPy is not to take for its own.
        """
        self.steps += 1
        if self.callback is None:
            return
        x = self.variables.like_x0(point)
        try:
            self.callback(_scipy().OptimizeResult(x=x, fun=value, nit=self.steps, nfev=self.calls))
        except StopIteration as stop:
            raise _EndError(STOPPED) from stop

    def _values_at_best(self, best_point: Tensor) -> list[float]:
        """The function at the result, by the workers and from the journal as every other query if it is called once."""
        x0, box, evaluator = self.variables.x0, self.variables.box, self.zo.evaluator
        if self.repeats == 1 and isinstance(evaluator, ExecutorEvaluator):
            nothing = CoordinatePerturbations(Coordinates({}), parameters_of(box))
            return [float(evaluator.measure(StepQueries(box, Batch(self.args), nothing, [1.0], seed=0)).loss)]
        single = BlackBox(self.fn, x0 if isinstance(x0, nn.Module) else self.variables.like_x0(best_point))
        return [float(single.evaluate(parameters_of(single), self.args, seed=0).loss) for _ in range(self.final_calls)]


class _EndError(Exception):
    """The search is over before its steps are: a status of :data:`MESSAGES`."""

    def __init__(self, status: int) -> None:
        super().__init__(MESSAGES[status])
        self.status = status


def _optimizer(
    optimizer: str | Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None, method: str, noisy: bool, lr: float
) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None:
    """The function that makes the ``torch.optim`` optimizer; None for SciPy's L-BFGS-B.

    Raises:
        InvalidInputError: the name is unknown, or the optimizer does not go with the method.
    """
    chosen = optimizer if optimizer is not None else (QUASI_NEWTON if method == "cge" and not noisy else ADAM)
    if callable(chosen):
        return chosen
    if not isinstance(chosen, str):
        raise InvalidInputError(
            "optimizer must be a name or a function of a list of parameters, for example "
            f"lambda parameters: torch.optim.SGD(parameters, lr=0.1); got {type(chosen).__name__}"
        )
    validation.choice("optimizer", chosen, OPTIMIZERS)
    if chosen == QUASI_NEWTON and method == "rge":
        raise InvalidInputError('optimizer="l-bfgs-b" wants a gradient without noise: use method="cge", or "adam"')
    if chosen == QUASI_NEWTON:
        return None
    return partial(
        torch.optim.Adam if chosen == ADAM else torch.optim.SGD, lr=validation.positive("lr", lr, hint="1e-2")
    )


def _own(x: Any) -> Any:
    """Copies that may be moved, of whole numbers in float64; a module is moved itself."""
    if isinstance(x, Tensor):
        return x.detach().clone()
    if isinstance(x, np.ndarray):
        return x.astype(np.float64) if x.dtype.kind in "iu" else x.copy()
    if isinstance(x, Mapping):
        return {name: _own(value) for name, value in x.items()}
    return x


def _arrays(x: Any) -> Any:
    """Arrays in place of numbers and lists, as SciPy takes them."""
    if isinstance(x, Mapping):
        return {name: _arrays(value) for name, value in x.items()}
    return np.array(x, dtype=np.float64) if is_like_array(x) else x


def _like(x: Given, values: dict[str, Tensor]) -> Any:
    """Tensors by name in the form of ``x``."""
    if isinstance(x, (Tensor, np.ndarray)):
        return _as(x, values[BARE])
    known = dict(x.named_parameters()) if isinstance(x, nn.Module) else x
    return {name: _as(known[name], value) for name, value in values.items()}


def _as(like: Any, value: Tensor) -> Any:
    return value.detach().clone() if isinstance(like, Tensor) else value.detach().numpy().copy()


def _size(box: BlackBox) -> int:
    return sum(p.numel() for p in box.parameters())


def _execution(
    workers: int | ExecutorSource,
    policy: QueryPolicy | None,
    journal: QueryJournal | str | Path | None,
    stack: ExitStack,
) -> dict[str, Any]:
    """Options of an estimator that say where queries run."""
    source: ExecutorSource | None = None
    if isinstance(workers, int):
        validation.count("workers", workers)
        if workers > 1:
            way = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
            source = partial(
                ProcessPoolExecutor,
                workers,
                mp_context=multiprocessing.get_context(way),
                initializer=end_with_parent,
                initargs=(get_temp_dir(),) if way == "forkserver" else (),
            )
        elif policy is not None or journal is not None:
            source = stack.enter_context(ThreadPoolExecutor(1))
    else:
        source = workers
    if source is None:
        return {}
    kept = stack.enter_context(QueryJournal(journal)) if isinstance(journal, (str, Path)) else journal
    evaluator = stack.enter_context(ExecutorEvaluator(source, policy=policy, journal=kept))
    return {"evaluator": evaluator}


def _scipy() -> Any:
    """The module ``scipy.optimize``.

    Raises:
        MissingPackageError: SciPy is not installed.
    """
    with required_for("dz.minimize"):
        from scipy import optimize  # noqa: PLC0415 - optional
    return optimize


def _limits(bounds: Bounds | None, size: int) -> tuple[Tensor, Tensor] | None:
    """Lower and upper bounds of all entries, flat."""
    if bounds is None:
        return None
    if isinstance(bounds, _scipy().Bounds):
        low, high = (np.broadcast_to(np.asarray(side, np.float64), size) for side in (bounds.lb, bounds.ub))
    else:
        pairs = [bounds] * size if len(bounds) == 2 and not isinstance(bounds[0], (tuple, list)) else list(bounds)
        if len(pairs) != size or any(not isinstance(pair, (tuple, list)) or len(pair) != 2 for pair in pairs):
            raise InvalidInputError(
                f"bounds must be (low, high) for all entries, or such a pair for each of the {size} entries, got "
                f"{len(pairs)} of them"
            )
        low = np.array([-math.inf if pair[0] is None else float(pair[0]) for pair in pairs])
        high = np.array([math.inf if pair[1] is None else float(pair[1]) for pair in pairs])
    if not (low < high).all():
        k = int(np.flatnonzero(~(low < high))[0])
        raise InvalidInputError(
            f"bounds of entry {k} are {low[k]:g} and {high[k]:g}; the first must be less than the second"
        )
    return torch.from_numpy(low.copy()), torch.from_numpy(high.copy())
