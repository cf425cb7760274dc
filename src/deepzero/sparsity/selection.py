"""Sets of coordinates from ratios per layer or scores per weight, the rules that all choices share, and a summary.

There are two kinds of parameters. *Prunable* ones are thinned: by default those with two or more dimensions
(weights of convolutions, linear layers, embeddings). All others (biases, affine parameters of norms) are queried at
every step, since they are few and matter much: ResNet-20 has 1,386 of them beside 268,336 prunable weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Real
from torch import Tensor, nn

from deepzero import validation
from deepzero.coordinates import Coordinates
from deepzero.errors import InvalidInputError
from deepzero.objective import BlackBox, Parameters
from deepzero.randomness import derive_seed

RANKS = ("absolute", "signed")


class SparsityWarning(UserWarning):
    """A sparsity was adjusted, for example so that no layer is left without a coordinate."""


def trainable(model: nn.Module | BlackBox) -> dict[str, Float[Tensor, " ..."]]:
    """Trainable parameters by name, tied ones once: what can be queried."""
    if not isinstance(model, (nn.Module, BlackBox)):
        raise InvalidInputError(f"model must be a torch.nn.Module or a dz.BlackBox, got {type(model).__name__}")
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def prunable_names(parameters: Parameters, prunable: Collection[str] | None = None) -> list[str]:
    """Names of the parameters to thin, in the order of ``parameters``.

    Args:
        parameters: trainable parameters, or scores of the same shapes.
        prunable: names to thin; by default every parameter with two or more dimensions.

    Raises:
        InvalidInputError: a name is unknown, or nothing is left to thin.

    Example:
        >>> prunable_names(trainable(torch.nn.Linear(3, 2)))
        ['weight']
    """
    if prunable is None:
        names = [name for name, p in parameters.items() if p.dim() > 1]
    else:
        validation.known_names("prunable", prunable, parameters)
        names = [name for name in parameters if name in set(prunable)]
    if not names:
        raise InvalidInputError(
            "nothing to thin: no parameter has two or more dimensions; name the ones to thin, for example "
            f"prunable={list(parameters)[:1]}"
        )
    return names


def always_names(parameters: Parameters, thinned: Collection[str], always: Collection[str] | None = None) -> list[str]:
    """Names of the parameters that are queried in full, in the order of ``parameters``.

    Args:
        parameters: trainable parameters.
        thinned: names of the parameters that are thinned.
        always: names of the others to query in full; by default all of them, ``()`` for none.

    Raises:
        InvalidInputError: a name is unknown, or both thinned and always queried.
    """
    if always is None:
        return [name for name in parameters if name not in thinned]
    validation.known_names("always", always, parameters)
    both = sorted(set(always) & set(thinned))
    if both:
        raise InvalidInputError(
            f"always names {', '.join(both[:5])}, which are thinned; leave them out of one of the two"
        )
    return [name for name in parameters if name in set(always)]


def masks_from_scores(
    scores: Mapping[str, Real[Tensor, " ..."]],
    sparsity: float,
    *,
    rank: str = "absolute",
    prunable: Collection[str] | None = None,
    always: Collection[str] | None = None,
) -> dict[str, Bool[Tensor, " ..."]]:
    """Boolean masks that keep the best-ranked fraction ``1 - sparsity`` of all prunable weights together.

    Exactly :math:`N - \\mathrm{round}(\\text{sparsity} \\cdot N)` of the :math:`N` prunable weights are kept, at least
    one; of equal scores the earlier weight is. Layers may end up empty: that is what a global ranking says.

    Args:
        scores: one tensor per trainable parameter, in its shape.
        sparsity: fraction of the prunable weights to leave out, in [0, 1).
        rank: ``absolute`` keeps the largest :math:`|S|`, which suits every score here and is what the code of Chen
            et al., 2024 does. ``signed`` keeps the smallest :math:`S` and is meant for GraSP's scores: :math:`2 S_i` is
            to first order the change of :math:`\\|\\nabla\\ell\\|^2` when weight :math:`i` is removed, and Wang et al.,
            2020 remove the weights with the largest.
        prunable: names to thin; by default every parameter with two or more dimensions.
        always: names of the other parameters that are true everywhere (default: all); the rest are false everywhere.

    Raises:
        InvalidInputError: sparsity outside [0, 1), unknown rank or name, or a score that is not finite.

    Example:
        >>> scores = {"weight": torch.tensor([[3.0, -4.0], [1.0, 2.0]]), "bias": torch.zeros(1)}
        >>> masks_from_scores(scores, 0.5)["weight"].tolist()
        [[True, True], [False, False]]
        >>> masks_from_scores(scores, 0.5, rank="signed")["weight"].tolist()
        [[False, True], [True, False]]
    """
    validation.fraction("sparsity", sparsity)
    validation.choice("rank", rank, RANKS)
    validation.tensors("scores", scores, hint="scores = dz.sparsity.magnitude(model)")
    names = prunable_names(scores, prunable)
    full = always_names(scores, names, always)
    flat = torch.cat([_finite(name, scores[name]).reshape(-1) for name in names])
    order = torch.sort(-flat.abs() if rank == "absolute" else flat, stable=True).indices
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[order[: max(1, flat.numel() - round(sparsity * flat.numel()))]] = True
    parts = dict(zip(names, torch.split(mask, [scores[name].numel() for name in names]), strict=True))
    return {
        name: parts[name].reshape(score.shape) if name in parts else torch.full(score.shape, name in full)
        for name, score in scores.items()
    }


def _finite(name: str, score: Real[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    if not score.isfinite().all():
        raise InvalidInputError(
            f"the scores of {name} are not all finite; lower the step size of zo_grasp or check the model's losses"
        )
    return score.detach().to("cpu", torch.float64)


def check_ratios(ratios: Mapping[str, float]) -> dict[str, float]:
    """Accept keep ratios: numbers in (0, 1] by parameter name."""
    if not isinstance(ratios, Mapping):
        raise InvalidInputError(
            f"ratios must be numbers in (0, 1] by parameter name, got {ratios!r:.80}; for one number make them: "
            "dz.sparsity.uniform_ratios(model, 0.9)"
        )
    for name, ratio in ratios.items():
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise InvalidInputError(
                f"the keep ratio of {name} must lie in (0, 1], got {ratio!r}; 0.1 queries one in ten coordinates, and "
                "a parameter that has no ratio is queried in full"
            )
    return {name: float(ratio) for name, ratio in ratios.items()}


def counts_from_ratios(ratios: Mapping[str, float], parameters: Parameters) -> dict[str, int]:
    """Coordinates to keep of each layer: ``round(ratio * n)``, at least one (a warning names the layers raised to one).

    Example:
        >>> counts_from_ratios({"weight": 0.5}, trainable(torch.nn.Linear(3, 4)))
        {'weight': 6}
    """
    checked = check_ratios(ratios)
    validation.known_names("ratios", checked, parameters)
    counts = {name: round(checked[name] * p.numel()) for name, p in parameters.items() if name in checked}
    warn_empty([name for name, kept in counts.items() if kept == 0])
    return {name: max(1, kept) for name, kept in counts.items()}


def warn_empty(names: list[str]) -> None:
    """Warn of layers that keep one coordinate although their ratio rounds to none."""
    if names:
        warnings.warn(
            f"{', '.join(names)} would be left without a coordinate and {'keeps' if len(names) == 1 else 'keep'} one; "
            "lower the sparsity to query more of it",
            SparsityWarning,
            stacklevel=3,
        )


def random_coordinates(
    model: nn.Module | BlackBox, ratios: Mapping[str, float], *, seed: int = 0, always: Collection[str] | None = None
) -> Coordinates:
    """Coordinates drawn uniformly at random without replacement under layer-wise keep ratios.

    A pure function of the arguments, the same on every device; the global RNG is not touched.

    Args:
        model: whose trainable parameters are drawn from.
        ratios: keep ratios in (0, 1] by parameter name.
        seed: of the draw.
        always: names of the parameters without a ratio to query in full (default: all of them).

    Raises:
        InvalidInputError: a ratio outside (0, 1] or an unknown name.

    Example:
        >>> drawn = random_coordinates(torch.nn.Linear(10, 10), {"weight": 0.25}, seed=1)
        >>> drawn["weight"].numel(), drawn["bias"].numel()
        (25, 10)
    """
    parameters = trainable(model)
    counts = counts_from_ratios(ratios, parameters)
    return draw(parameters, counts, always_names(parameters, counts, always), seed)


def draw(parameters: Parameters, counts: Mapping[str, int], full: Collection[str], seed: int) -> Coordinates:
    """``counts[name]`` random coordinates of each thinned layer and every coordinate of the parameters in ``full``."""
    generator = torch.Generator()
    chosen = {}
    for name, p in parameters.items():
        if name in full:
            chosen[name] = torch.arange(p.numel())
        elif name in counts:
            generator.manual_seed(derive_seed(seed, name))
            chosen[name] = torch.randperm(p.numel(), generator=generator)[: counts[name]]
    return Coordinates(chosen)


@dataclass(frozen=True)
class LayerCount:
    """Coordinates kept of one parameter."""

    name: str
    kept: int
    size: int


@dataclass(frozen=True)
class Summary:
    """Coordinates kept of every trainable parameter; ``str()`` gives a table."""

    layers: tuple[LayerCount, ...]

    @property
    def kept(self) -> int:
        """All coordinates kept: the queries a step needs beside the base (with a forward stencil)."""
        return sum(layer.kept for layer in self.layers)

    @property
    def size(self) -> int:
        """All coordinates there are."""
        return sum(layer.size for layer in self.layers)

    def __str__(self) -> str:
        rows = [*self.layers, LayerCount("total", self.kept, self.size)]
        width = max(len(row.name) for row in rows)
        lines = (f"{row.name:<{width}} {row.kept:>11,} of {row.size:>11,} {row.kept / row.size:>7.2%}" for row in rows)
        return "\n".join(lines)


def summarize(model: nn.Module | BlackBox, coordinates: Coordinates) -> Summary:
    """Count the coordinates kept of each trainable parameter.

    Raises:
        InvalidInputError: the coordinates do not fit the model.

    Example:
        >>> import torch
        >>> print(summarize(nn.Linear(4, 2), Coordinates({"weight": torch.tensor([0, 5])})))
        weight           2 of           8  25.00%
        bias             0 of           2   0.00%
        total            2 of          10  20.00%
    """
    parameters = trainable(model)
    coordinates.check_fits(parameters)
    return Summary(
        tuple(
            LayerCount(name, coordinates[name].numel() if name in coordinates else 0, p.numel())
            for name, p in parameters.items()
        )
    )
