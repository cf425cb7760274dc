"""Layer-wise keep ratios: what fraction of each prunable layer is queried."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from jaxtyping import Bool, Real
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.objective import BlackBox, Parameters
from deepzero.sparsity.selection import masks_from_scores, prunable_names, trainable, warn_empty


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
        wanted = scale * share * sizes[name] + surplus
        ratios[name] = min(1.0, wanted / sizes[name])
        surplus = max(0.0, wanted - sizes[name])
    return ratios, surplus


def _topped_up(ratio: float, sizes: Mapping[str, int], fixed: Mapping[str, float], surplus: float) -> float:
    """A linear layer's ratio with its share of what the convolutions, all full, could not take."""
    room = sum((1 - keep) * sizes[name] for name, keep in fixed.items())
    return ratio + (1 - ratio) * min(1.0, surplus / room) if room else ratio
