"""The composition: probes -> evaluator -> stencil -> combine -> ``p.grad``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepzero import validation
from deepzero.coordinates import Coordinates, CoordinateSchedule, StepContext, as_schedule
from deepzero.errors import CheckpointError, InvalidInputError, NonFiniteLossError
from deepzero.evaluators import (
    BatchedEvaluator,
    Evaluator,
    ExecutorSource,
    PropagationEvaluator,
    QueryJournal,
    QueryPolicy,
    choose_evaluator,
)
from deepzero.objective import BlackBox, Loss, NetworkObjective
from deepzero.probes import CoordinateProbes, Perturbations, Probes, RandomProbes
from deepzero.randomness import derive_seed
from deepzero.stencils import FORWARD, Stencil


@dataclass(frozen=True)
class Estimate:
    """A gradient estimate.

    Attributes:
        loss: base loss, 0-dim float64.
        gradients: by parameter name, in the parameters' shapes and dtypes; 0 on coordinates that were not queried.
        queries: function values it took, the base included.
        buffers: the model's buffers as the base query leaves them.
    """

    loss: Tensor
    gradients: dict[str, Tensor]
    queries: int
    buffers: dict[str, Tensor]


class Estimator:
    """A zeroth-order gradient estimator: four independent choices, composed.

    Make one with :func:`CGE` or :func:`RGE`. No autograd graph is ever built.

    Attributes:
        queries: function values used so far.
        step: estimates made by :meth:`backward` so far.
    """

    def __init__(
        self,
        objective: NetworkObjective | BlackBox,
        *,
        probes: Probes,
        evaluator: Evaluator,
        stencil: Stencil = FORWARD,
        step_size: float,
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        self.objective = objective
        self.probes = probes
        self.evaluator = evaluator
        self.stencil = stencil
        self.step_size = validation.positive("step_size", step_size, hint="5e-3")
        self.dtype = None if dtype is None else validation.floating("dtype", dtype)
        self.seed = seed
        self.queries = 0
        self.step = 0
        self.epoch = 0

    @torch.no_grad()
    def estimate(self, *batch: Any) -> Estimate:
        """The estimate at the current parameters; changes nothing, so a second call gives the same bits."""
        perturbations = self.probes.draw(StepContext(self.step, self.epoch, self.objective, batch))
        offsets = [node * self.step_size for node in self.stencil.nodes]
        seed = derive_seed(self.seed, "objective", self.step)
        answers = self.evaluator.measure(self.objective, batch, perturbations, offsets, seed)
        _require_finite(answers.differences, perturbations, offsets)
        slopes = self.stencil.slopes(answers.differences, self.step_size)
        gradients = perturbations.combine(slopes, self.dtype)
        return Estimate(answers.loss, gradients, 1 + answers.differences.numel(), answers.buffers)

    @torch.no_grad()
    def backward(self, *batch: Any) -> Tensor:
        """Add the estimate to ``p.grad`` of every trainable parameter, as ``loss.backward()`` would.

        Batch norm's running statistics move once, as in one training forward.

        Args:
            *batch: ``x, y`` for a network; further arguments of ``fn`` for a black box.

        Returns:
            The base loss, a 0-dim float64 tensor.

        Raises:
            NonFiniteLossError: a loss was NaN or infinite; no ``.grad`` and no buffer was changed.
        """
        estimate = self.estimate(*batch)
        for name, parameter in self._owners().items():
            gradient = estimate.gradients[name]
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        self.objective.commit(estimate.buffers)
        self.queries += estimate.queries
        self.step += 1
        return estimate.loss

    def set_epoch(self, epoch: int) -> None:
        """Announce the epoch to schedules that count epochs."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Counters and whatever the evaluator needs to give the same bits on resume, as JSON-able values."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "queries": self.queries,
            "fixed": self._fixed(),
            "evaluator": self.evaluator.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; the choices that shape the estimate must be the same."""
        expected, found = self._fixed(), state["fixed"]
        if expected != found:
            changed = ", ".join(f"{k}: {found.get(k)!r} -> {v!r}" for k, v in expected.items() if found.get(k) != v)
            raise CheckpointError(
                f"the checkpoint was made by another estimator ({changed}); resume with the same options"
            )
        self.step, self.epoch, self.queries = state["step"], state["epoch"], state["queries"]
        self.evaluator.load_state_dict(state["evaluator"])

    def _fixed(self) -> dict[str, Any]:
        return {
            "stencil": self.stencil.name,
            "step_size": self.step_size,
            "dtype": None if self.dtype is None else str(self.dtype),
            "seed": self.seed,
            **self.probes.state(),
        }

    def _owners(self) -> dict[str, nn.Parameter]:
        if isinstance(self.objective, BlackBox):
            return self.objective.named_gradients_owner()
        return {name: p for name, p in self.objective.model.named_parameters() if p.requires_grad}


def CGE(  # noqa: N802 - the field's name
    model: nn.Module | BlackBox,
    *,
    loss: Loss | None = None,
    step_size: float = 5e-3,
    sparsity: CoordinateSchedule | Coordinates | Mapping[str, Tensor] | None = None,
    stencil: Stencil = FORWARD,
    evaluator: Evaluator | None = None,
    executor: ExecutorSource | None = None,
    policy: QueryPolicy | None = None,
    journal: QueryJournal | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Estimator:
    """Coordinate-wise gradient estimation (eq. (1) right and Sparse-CGE of Chen et al., 2024).

    .. math:: \\hat\\nabla\\ell(\\theta) = \\sum_{i \\in S} \\frac{\\ell(\\theta + \\mu e_i) - \\ell(\\theta)}{\\mu} e_i

    Args:
        model: a network, or a :class:`~deepzero.BlackBox`.
        loss: ``loss(output, target)`` for a network; none for a black box.
        step_size: :math:`\\mu` (the paper's 5e-3 by default).
        sparsity: which coordinates: all (default), ``Coordinates``, boolean masks, or a schedule.
        stencil: ``dz.FORWARD`` or ``dz.CENTRAL``.
        evaluator: how; by default difference propagation for a network, one call after another for a black box.
        executor: for a black box: a ``concurrent.futures`` executor on which its queries run, or a function that makes
            one; short for ``evaluator=dz.ExecutorEvaluator(executor, policy=policy, journal=journal)``.
        policy: with ``executor``: timeout, retries, limits.
        journal: with ``executor``: a file that keeps every answer.
        dtype: accumulation dtype (no effect here: nothing is accumulated across coordinates).
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
    objective = _objective(model, loss)
    chosen = choose_evaluator(objective, evaluator, executor, policy=policy, journal=journal)
    return Estimator(
        objective,
        probes=CoordinateProbes(as_schedule(sparsity)),
        evaluator=chosen or PropagationEvaluator(),
        stencil=stencil,
        step_size=step_size,
        dtype=dtype,
        seed=seed,
    )


def RGE(  # noqa: N802 - the field's name
    model: nn.Module | BlackBox,
    *,
    loss: Loss | None = None,
    step_size: float = 5e-3,
    queries: int = 192,
    distribution: str = "gaussian",
    stencil: Stencil = FORWARD,
    evaluator: Evaluator | None = None,
    executor: ExecutorSource | None = None,
    policy: QueryPolicy | None = None,
    journal: QueryJournal | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Estimator:
    """Randomized gradient estimation (eq. (1) left of Chen et al., 2024).

    .. math:: \\hat\\nabla\\ell(\\theta) = \\frac{1}{q} \\sum_{k=1}^q
        \\frac{\\ell(\\theta + \\mu u_k) - \\ell(\\theta)}{\\mu} u_k,
        \\qquad u_k \\sim N(0, I)

    Args:
        model: a network, or a :class:`~deepzero.BlackBox`.
        loss: ``loss(output, target)`` for a network; none for a black box.
        step_size: :math:`\\mu`.
        queries: :math:`q`, the number of directions a step.
        distribution: ``gaussian``, ``rademacher``, or ``sphere`` (unit sphere, with its factor :math:`d`).
        stencil: ``dz.FORWARD`` or ``dz.CENTRAL`` (two queries a direction).
        evaluator: how; by default ``vmap`` over stacked directions for a network, a loop for a black box.
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
    objective = _objective(model, loss)
    chosen = choose_evaluator(objective, evaluator, executor, policy=policy, journal=journal)
    return Estimator(
        objective,
        probes=RandomProbes(queries, distribution, seed),
        evaluator=chosen or BatchedEvaluator(),
        stencil=stencil,
        step_size=step_size,
        dtype=dtype,
        seed=seed,
    )


def _objective(model: nn.Module | BlackBox, loss: Loss | None) -> NetworkObjective | BlackBox:
    if isinstance(model, BlackBox):
        if loss is not None:
            raise InvalidInputError("a BlackBox returns its loss itself; leave out loss=...")
        return model
    if loss is None:
        raise InvalidInputError("a network needs a loss, for example loss=torch.nn.functional.cross_entropy")
    return NetworkObjective(model, loss)


def _require_finite(differences: Tensor, perturbations: Perturbations, offsets: list[float]) -> None:
    bad = (~differences.isfinite()).nonzero()
    if len(bad):
        row, k = bad[0].tolist()
        raise NonFiniteLossError(
            f"{len(bad)} of {differences.numel()} perturbed losses are not finite, the first at "
            f"{perturbations.describe(k)} moved by {offsets[row]:g}; lower the step size or the learning rate, "
            "or run `deepzero doctor`"
        )
