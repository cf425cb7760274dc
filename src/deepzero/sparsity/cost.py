"""Ratios under a budget: cheap layers are queried more.

Under difference propagation a coordinate of the last layers costs up to a hundred times less than one of the first, so
a budget in seconds is not a budget in coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.objective import BlackBox, Parameters
from deepzero.sparsity.selection import always_names, prunable_names, trainable

MAX_EXPONENT = 10


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
        always: which other parameters are queried in full, and paid first (default: all).

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
    """What the always-queried parameters cost, if the budget pays for them and one coordinate of each layer."""
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
