"""Scores that rank weights, as ``dict[str, Tensor]`` in the parameters' shapes: GraSP, magnitude, and random ones.

GraSP ranks weights by their effect on the gradient flow, :math:`S = -\\theta \\odot H g` (eq. (2) of Chen et al., 2024,
after Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020): from function
values (ZO-GraSP) or from autograd (FO-GraSP). Both work on a copy of the model in ``dtype``, so the model is not
touched. The other two need no query.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from deepzero import validation
from deepzero.estimator import Estimator
from deepzero.evaluators import BatchedEvaluator, Evaluator
from deepzero.objective import BlackBox, Loss, NetworkObjective, device_of, parameters_of
from deepzero.probes import RandomProbes
from deepzero.randomness import derive_seed, seeded_scope, step_seed
from deepzero.sparsity.selection import trainable


def zo_grasp(
    model: nn.Module,
    loss: Loss,
    x: Any,
    y: Any,
    *,
    queries: int = 192,
    step_size: float = 5e-3,
    seed: int = 0,
    distribution: str = "gaussian",
    dtype: torch.dtype = torch.float64,
    evaluator: Evaluator | None = None,
) -> dict[str, Float[Tensor, " ..."]]:
    """ZO-GraSP (equation (3) of Chen et al., 2024): GraSP's scores from ``2 * (queries + 1)`` function values.

    .. math:: \\hat S = -\\theta \\odot
        \\frac{\\hat\\nabla\\ell(\\theta + \\mu \\hat g) - \\hat\\nabla\\ell(\\theta)}{\\mu},
        \\qquad \\hat g = \\hat\\nabla\\ell(\\theta)

    Both estimates are RGE over the *same* directions :math:`u_1 \\dots u_q`, so that with
    :math:`P = \\frac{1}{q}\\sum_k u_k u_k^T` the difference quotient is :math:`P H \\hat g + O(\\mu)`. Where the loss
    is quadratic it is :math:`P H \\hat g` exactly, whatever the step: the bias of a forward difference,
    :math:`\\frac{\\mu}{2} u^T H u`, is the same at both points. Scores tend to FO-GraSP's as queries grow and the
    step shrinks. (Over independent directions the difference would hold two unrelated errors, divided by the step.)

    Few queries say little about single weights: the cosine to FO-GraSP's scores is of the order of :math:`\\sqrt{q/d}`
    for :math:`d` parameters. For :math:`q \\ll d` the scores resemble :math:`\\theta` times noise, and layer-wise
    ratios made from them mostly tell the size of each layer's weights.

    The rounding error of a loss is divided by :math:`\\mu^2`, hence float64 by default. At large steps float32 does as
    well: on a fresh ResNet-20 at :math:`\\mu` = 5e-3 the scores of both have a cosine above 1 - 1e-9 (24 rademacher
    directions, 16 random images), and on a CPU float32 is seven times faster.

    Args:
        model: the network; its mode (train or eval) is respected, and no parameter, buffer or mode is changed.
        loss: ``loss(output, target)``; a ``nn.Module`` is copied to ``dtype`` as well.
        x: inputs; the paper uses 25 samples a class.
        y: targets.
        queries: :math:`q`, the number of directions.
        step_size: :math:`\\mu`, of both the directions and the move along :math:`\\hat g`.
        seed: of the directions (gaussian ones depend on ``dtype`` too) and of whatever the model draws, which are the
            same at both points.
        distribution: ``gaussian`` (the paper's), ``rademacher`` or ``sphere``.
        dtype: precision of all evaluations.
        evaluator: of the queries; by default ``vmap`` over 8 directions at a time. Memory grows with
            ``dz.BatchedEvaluator(chunk=...)``; ``dz.SequentialEvaluator()`` works for models that ``vmap`` refuses.

    Returns:
        Scores by parameter name, in the parameters' shapes and in ``dtype``.

    Raises:
        InvalidInputError: an argument is out of its domain.
        NonFiniteLossError: a loss was NaN or infinite.

    Example:
        >>> import torch.nn.functional as F
        >>> scores = zo_grasp(nn.Linear(4, 3), F.cross_entropy, torch.randn(8, 4), torch.randint(3, (8,)), queries=16)
        >>> {name: tuple(score.shape) for name, score in scores.items()}
        {'weight': (3, 4), 'bias': (3,)}
    """
    replica = _replica(model, loss, dtype)
    estimator = Estimator(
        replica,
        probes=RandomProbes(queries, distribution, seed),
        evaluator=evaluator or BatchedEvaluator(),
        step_size=step_size,
        seed=seed,
    )
    batch = _cast(x, dtype), _cast(y, dtype)
    parameters = parameters_of(replica)
    origin = {name: p.clone() for name, p in parameters.items()}
    start = estimator.estimate(*batch).gradients
    for name, p in parameters.items():
        p.add_(start[name], alpha=step_size)
    end = estimator.estimate(*batch).gradients
    return {name: -p * (end[name] - start[name]) / step_size for name, p in origin.items()}


def fo_grasp(
    model: nn.Module, loss: Loss, x: Any, y: Any, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, Float[Tensor, " ..."]]:
    """FO-GraSP, :math:`S = -\\theta \\odot H g` by two passes of autograd: **for comparison only**.

    This is the one function of the package that differentiates; no zeroth-order run calls it unless asked to.
    :math:`g` is over all trainable parameters, and logits are not divided by a temperature.

    Args:
        model: the network, in its mode; it is not changed.
        loss: ``loss(output, target)``, twice differentiable; a ``nn.Module`` is copied to ``dtype`` as well.
        x: inputs.
        y: targets.
        seed: of whatever the model draws.
        dtype: precision.

    Returns:
        Scores by parameter name, in the parameters' shapes and in ``dtype``.

    Example:
        >>> import torch.nn.functional as F
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = layer.weight.data.fill_(3.0)
        >>> fo_grasp(layer, F.mse_loss, torch.ones(1, 1), torch.zeros(1, 1))["weight"].item()  # l = w^2: g = 6, H = 2
        -36.0
    """
    replica = _replica(model, loss, dtype)
    parameters = {name: p for name, p in replica.model.named_parameters() if p.requires_grad}
    with torch.enable_grad(), seeded_scope(step_seed(seed, 0), device_of(parameters)):
        value = replica.loss_value(replica.model(_cast(x, dtype)), _cast(y, dtype))
        gradient = _gradients(value, parameters, create_graph=True)
        flow = torch.stack([(g * g.detach()).sum() for g in gradient.values()]).sum()
        product = _gradients(flow, parameters)
    return {name: -(p * product[name]).detach() for name, p in parameters.items()}


def magnitude(model: nn.Module | BlackBox) -> dict[str, Float[Tensor, " ..."]]:
    """:math:`S = |\\theta|` of every trainable parameter.

    Example:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[-3.0, 2.0]]))
        >>> magnitude(layer)["weight"].tolist()
        [[3.0, 2.0]]
    """
    return {name: p.abs() for name, p in trainable(model).items()}


def random(model: nn.Module | BlackBox, *, seed: int = 0) -> dict[str, Float64[Tensor, " ..."]]:
    """:math:`S \\sim U[0, 1)`, independent: ranked globally, these keep a uniformly random set of weights.

    A pure function of ``seed`` and the parameters' names and shapes, the same on every device.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> torch.equal(random(layer, seed=3)["weight"], random(layer, seed=3)["weight"])
        True
    """
    scores = {}
    for name, p in trainable(model).items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "random scores", name))
        scores[name] = torch.rand(p.shape, generator=generator, dtype=torch.float64)
    return scores


def _gradients(
    value: Float[Tensor, ""], parameters: dict[str, nn.Parameter], *, create_graph: bool = False
) -> dict[str, Float[Tensor, " ..."]]:
    """Autograd's gradients by name, 0 where ``value`` does not depend on a parameter."""
    if not value.requires_grad:
        return {name: torch.zeros_like(p) for name, p in parameters.items()}
    weights = list(parameters.values())
    gradients = torch.autograd.grad(value, weights, create_graph=create_graph, materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))


def _replica(model: nn.Module, loss: Loss, dtype: torch.dtype) -> NetworkObjective:
    """A copy of the network and of its loss in ``dtype``, free to be moved."""
    checked = NetworkObjective(model, loss)
    validation.floating("dtype", dtype)
    network, criterion = copy.deepcopy((checked.model, checked.loss))
    return NetworkObjective(network.to(dtype), criterion.to(dtype) if isinstance(criterion, nn.Module) else criterion)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
