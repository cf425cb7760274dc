"""Layer-wise keep ratios: the fraction of each prunable layer that is queried.

By scores, by depth, the same everywhere, or by cost: under difference propagation a coordinate of the last layers costs
up to a hundred times less than one of the first, so a budget in seconds is not a budget in coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Real
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.objective import BlackBox, Parameters
from deepzero.sparsity.selection import always_names, masks_from_scores, prunable_names, trainable, warn_empty

MAX_EXPONENT = 10
"""Largest exponent of a cost: beyond it, the cheapest layer gets the whole budget."""


def layer_ratios(
    scores: Mapping[str, Real[Tensor, " ..."]],
    *,
    sparsity: float = 0.9,
    rank: str = "absolute",
    prunable: Collection[str] | None = None,
) -> dict[str, float]:
    """Keep ratios of the prunable layers after ranking all their weights together by any score.

    With ZO-GraSP's scores these are the paper's layer-wise pruning ratios (Sec. 4 of Chen et al., 2024). A layer of
    which the ranking keeps nothing keeps one coordinate, and a warning says so.

    Args:
        scores: one tensor per trainable parameter, from :func:`zo_grasp`, :func:`magnitude`, ...
        sparsity: fraction of the prunable weights to leave out, in [0, 1).
        rank: ``absolute`` or ``signed``, see :func:`masks_from_scores`.
        prunable: names to thin; by default every parameter with two or more dimensions.

    Example:
        >>> import torch
        >>> layer_ratios({"a": torch.tensor([[9.0, 1.0]]), "b": torch.tensor([[8.0, 7.0]])}, sparsity=0.25)
        {'a': 0.5, 'b': 1.0}
    """
    masks = masks_from_scores(scores, sparsity, rank=rank, prunable=prunable)
    return layer_ratios_from_masks(masks, prunable=prunable)


def layer_ratios_from_masks(
    masks: Mapping[str, Bool[Tensor, " ..."]], *, prunable: Collection[str] | None = None
) -> dict[str, float]:
    """Keep ratios of the prunable layers of boolean masks; an empty layer keeps one coordinate, with a warning.

    Example:
        >>> import torch
        >>> layer_ratios_from_masks({"weight": torch.tensor([[True, False, False, False]])})
        {'weight': 0.25}
    """
    validation.tensors("masks", masks, hint="masks = dz.sparsity.masks_from_scores(scores, 0.9)")
    names = prunable_names(masks, prunable)
    kept = {name: int(masks[name].count_nonzero()) for name in names}
    warn_empty([name for name in names if kept[name] == 0])
    return {name: max(1, kept[name]) / masks[name].numel() for name in names}


def uniform_ratios(
    model: nn.Module | BlackBox, sparsity: float, *, prunable: Collection[str] | None = None
) -> dict[str, float]:
    """The same keep ratio, ``1 - sparsity``, for every prunable layer.

    Example:
        >>> uniform_ratios(nn.Linear(4, 4), 0.75)
        {'weight': 0.25}
    """
    validation.fraction("sparsity", sparsity)
    return dict.fromkeys(prunable_names(trainable(model), prunable), 1 - sparsity)


def smart_ratio(
    model: nn.Module | BlackBox,
    sparsity: float,
    *,
    linear_keep: float | None = 0.3,
    prunable: Collection[str] | None = None,
) -> dict[str, float]:
    """Smart-Ratio (Su et al., "Sanity-Checking Pruning Methods", NeurIPS 2020): ratios fall with depth, no data.

    Layer :math:`l` of :math:`n` gets :math:`k_l \\propto (n - l + 1)^2 + (n - l + 1)`, linear layers (weights of two
    dimensions) a fixed ratio. The convolutions are scaled so that :math:`\\lfloor N (1 - \\text{sparsity}) \\rfloor` of
    all :math:`N` weights are kept; ratios above 1 are clipped and their surplus passes to the layers that follow, at
    last to the linear ones. A network of linear layers alone is scaled as if they were convolutions. The order of
    layers is that of ``named_parameters()``.

    Args:
        model: the network.
        sparsity: fraction of the prunable weights to leave out, in [0, 1).
        linear_keep: keep ratio of linear layers (0.3 is theirs); None treats them like convolutions.
        prunable: names to thin; by default every parameter with two or more dimensions.

    Raises:
        InvalidInputError: the linear layers alone keep more than the sparsity allows.

    Example:
        >>> from deepzero.models import cifar_resnet
        >>> ratios = smart_ratio(cifar_resnet(20), 0.9)
        >>> [round(ratio, 3) for ratio in ratios.values()][:3], ratios["fc.weight"]
        ([0.731, 0.662, 0.595], 0.3)
    """
    validation.fraction("sparsity", sparsity)
    parameters = trainable(model)
    names = prunable_names(parameters, prunable)
    fixed = _fixed_ratios(parameters, names, linear_keep)
    if len(fixed) == len(names):
        fixed = {}
    sizes = {name: parameters[name].numel() for name in names}
    budget = int(sum(sizes.values()) * (1 - sparsity)) - int(sum(sizes[name] * ratio for name, ratio in fixed.items()))
    if budget <= 0:
        raise InvalidInputError(
            f"sparsity {sparsity} is too high for this model: its linear layers, of which a part of "
            f"{linear_keep} is kept, leave nothing to convolutions; choose a smaller sparsity, or ratios='uniform' (or "
            "linear_keep=None, which treats linear layers like convolutions)"
        )
    depth = len(names)
    shares = {name: (depth - i) ** 2 + (depth - i) for i, name in enumerate(names) if name not in fixed}
    ratios, surplus = _spill(shares, sizes, budget)
    return {name: ratios[name] if name in ratios else _topped_up(fixed[name], sizes, fixed, surplus) for name in names}


def _fixed_ratios(parameters: Parameters, names: list[str], linear_keep: float | None) -> dict[str, float]:
    if linear_keep is None:
        return {}
    if not 0 < linear_keep <= 1:
        raise InvalidInputError(f"linear_keep must lie in (0, 1] or be None, got {linear_keep!r}; try linear_keep=0.3")
    return {name: linear_keep for name in names if parameters[name].dim() <= 2}


def _spill(shares: Mapping[str, int], sizes: Mapping[str, int], budget: int) -> tuple[dict[str, float], float]:
    """Ratios proportional to ``shares`` that keep ``budget`` weights, clipped at 1, and what no layer could take."""
    scale = budget / sum(share * sizes[name] for name, share in shares.items())
    ratios, surplus = {}, 0.0
    for name, share in shares.items():
        kept = scale * share * sizes[name] + surplus
        ratios[name] = min(1.0, kept / sizes[name])
        surplus = max(0.0, kept - sizes[name])
    return ratios, surplus


def _topped_up(ratio: float, sizes: Mapping[str, int], fixed: Mapping[str, float], surplus: float) -> float:
    """A linear layer's ratio with its share of what the convolutions, all full, could not take."""
    room = sum((1 - keep) * sizes[name] for name, keep in fixed.items())
    return ratio + (1 - ratio) * min(1.0, surplus / room) if room else ratio


def cost_aware_ratios(
    model: nn.Module | BlackBox,
    costs: Mapping[str, float],
    *,
    budget: float,
    exponent: float = 0.5,
    weights: Mapping[str, float] | None = None,
    prunable: Collection[str] | None = None,
    always: Collection[str] | None = None,
) -> dict[str, float]:
    """Keep ratios :math:`k_l = \\min(1, c \\, w_l \\, \\tau_l^{-a})` whose queries take ``budget`` per step.

    With :math:`n_l` coordinates that cost :math:`\\tau_l` each, :math:`c` solves

    .. math:: \\sum_l n_l k_l \\tau_l = \\text{budget} - \\sum_{\\text{always queried}} n \\tau

    under the condition that each layer keeps at least one coordinate. Counts are rounded down to whole coordinates, so
    the budget is never exceeded, and missed by less than one coordinate of each layer unless it pays for everything.

    Args:
        model: the network.
        costs: :math:`\\tau_l` of a query by parameter name: measured seconds (``CostTable.seconds_per_query()``), or
            ``PropagationEvaluator.work()``, which depends on shapes alone.
        budget: for all queries of a step, in the same unit.
        exponent: :math:`a`, 0 to 10; 0 ignores cost, 1 spends time in proportion to :math:`n_l w_l`.
        weights: :math:`w_l` > 0 by name: a sensitivity, or ``smart_ratio(model, 0.9)``; all 1 by default.
        prunable: names to thin; by default every parameter with two or more dimensions.
        always: names of the other parameters to query in full, which are paid first (default: all).

    Raises:
        InvalidInputError: a cost or weight is missing or not above 0, or the budget is too small for one coordinate of
            each layer (the message names the least one).

    Example:
        >>> layers = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
        >>> cost_aware_ratios(layers, {"0.weight": 4e-3, "1.weight": 1e-3}, budget=0.12)
        {'0.weight': 0.2, '1.weight': 0.4}
    """
    validation.positive("budget", budget, hint="1.0")
    if not 0 <= exponent <= MAX_EXPONENT:
        raise InvalidInputError(f"exponent must lie in [0, {MAX_EXPONENT}], got {exponent!r}; try exponent=0.5")
    parameters = trainable(model)
    names = prunable_names(parameters, prunable)
    full = always_names(parameters, names, always)
    tau = _positive_entries("costs", costs, [*names, *full])
    share = _positive_entries("weights", weights, names) if weights is not None else dict.fromkeys(names, 1.0)
    unit = min(tau[name] for name in names)
    layers = {
        name: _Layer(parameters[name].numel(), tau[name], share[name] * (tau[name] / unit) ** -exponent)
        for name in names
    }
    rest = budget - _require_affordable(budget, layers, parameters, {name: tau[name] for name in full})
    scale = _water_level(list(layers.values()), rest)
    return {name: max(1, math.floor(layer.kept(scale) + 1e-9)) / layer.size for name, layer in layers.items()}


@dataclass(frozen=True)
class _Layer:
    """A layer's number of coordinates, cost of a query, and the ratio it gets at scale 1."""

    size: int
    cost: float
    share: float

    def kept(self, scale: float) -> float:
        """Coordinates kept at a scale, between one and all."""
        return min(float(self.size), max(1.0, scale * self.share * self.size))


def _water_level(layers: list[_Layer], budget: float) -> float:
    """The scale at which the layers cost ``budget``: the cost is increasing and linear between breakpoints."""

    def spent(scale: float) -> float:
        return sum(layer.kept(scale) * layer.cost for layer in layers)

    low = 0.0
    for high in sorted({point for layer in layers for point in (1 / (layer.share * layer.size), 1 / layer.share)}):
        if spent(high) >= budget:
            below, above = spent(low), spent(high)
            return low + (high - low) * (budget - below) / (above - below) if above > below else low
        low = high
    return low


def _require_affordable(
    budget: float, layers: Mapping[str, _Layer], parameters: Parameters, full: Mapping[str, float]
) -> float:
    """The cost of the always-queried parameters, if the budget pays for them and one coordinate of each layer."""
    reserved = sum(parameters[name].numel() * cost for name, cost in full.items())
    least = reserved + sum(layer.cost for layer in layers.values())
    if budget < least:
        raise InvalidInputError(
            f"a budget of {budget:.3g} per step is too small: the least possible is {least:.3g}, {reserved:.3g} "
            f"for {len(full)} parameters that are always queried and {least - reserved:.3g} for one coordinate of "
            f"each of {len(layers)} layers; try budget={2 * least:.2g}, or always=() to leave the former out"
        )
    return reserved


def _positive_entries(what: str, table: Mapping[str, float], names: list[str]) -> dict[str, float]:
    missing = [name for name in names if name not in table]
    if missing:
        some = ", ".join(missing[:5])
        raise InvalidInputError(f"{what} has no entry for {some}; expected a number above 0 for each of {len(names)}")
    return {name: validation.positive(f"{what}[{name!r}]", table[name], hint="1e-3") for name in names}
