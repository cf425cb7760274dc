"""How the denoiser is trained by a classifier that can only be asked: one gradient source a method."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from deepzero.errors import InvalidInputError
from deepzero.estimator import CGE
from deepzero.models import Autoencoder, DnCNN, UNetDenoiser
from deepzero.opaque import Learned, Opaque
from deepzero.sparsity import DynamicRatios, SparsityWarning, layer_ratios, zo_grasp
from deepzero.sparsity.selection import counts_from_ratios
from deepzero.tasks.defense import defense_config as names
from deepzero.tasks.defense.defense_config import DefenseConfig
from deepzero.tasks.defense.defense_parts import Scores
from deepzero.tasks.opaque_source import Asking
from deepzero.training.gradient_sources import Autograd, GradientSource

Denoiser = DnCNN | UNetDenoiser
RANKING = 192
"""Directions by which ZO-GraSP ranks, as in the paper."""


@dataclass
class Finetuning:
    """A network with a classifier at its end, and what fills the gradients of its trainable part.

    Attributes:
        model: noisy images to the classifier's scores.
        denoiser: the part that is kept: noisy images to what the classifier is given.
        source: of gradients.
        queries_per_step: of the classifier, for a batch of one image.
    """

    model: nn.Module
    denoiser: nn.Module
    source: GradientSource
    queries_per_step: int

    @property
    def box(self) -> Opaque | None:
        """The classifier, where it is asked."""
        return next((module for module in self.model.modules() if isinstance(module, Opaque)), None)


def finetuning(
    config: DefenseConfig,
    denoiser: Denoiser,
    scores: Scores,
    *,
    white_box: nn.Module | None = None,
    autoencoder: Autoencoder | None = None,
    student: nn.Module | None = None,
    ratios: Mapping[str, float] | None = None,
) -> Finetuning:
    """The network and the gradient source of a method.

    Args:
        config: says which.
        denoiser: pretrained.
        scores: the classifier as it can be asked, on images in [0, 1].
        white_box: the classifier itself, for ``fo-ds``.
        autoencoder: pretrained, for the methods that have one.
        student: a differentiable guess of the classifier: trained already for ``distilled``, as it learns for
            ``opaque``.
        ratios: for ``deepzero``: which part of each convolution a step takes, as :func:`ranked` finds; None: of the
            last one as many as there are directions.

    Raises:
        InvalidInputError: the method needs a part that is not there.
    """
    make = {
        names.FO_DS: _white,
        names.DISTILLED: _white,
        names.ZO_DS: _random,
        names.ZO_AE_DS: _coded,
        "zo-ae-ds-cge": _coded,
        names.DEEPZERO: _coordinates,
        names.OPAQUE: _guided,
    }
    if config.method not in make:
        raise InvalidInputError(f"{config.method} trains nothing by the classifier")
    given = {names.FO_DS: white_box, names.DISTILLED: student, names.OPAQUE: student}
    given |= dict.fromkeys(names.AUTOENCODED, autoencoder)
    extra = ratios if config.method == names.DEEPZERO else given.get(config.method)
    if config.method in given and extra is None:
        raise InvalidInputError(f"{config.method} needs {_NEEDS[config.method]}, and there is none")
    return make[config.method](config, denoiser, scores, extra)


_NEEDS = {
    names.FO_DS: "a classifier that can be differentiated (a white box)",
    names.DISTILLED: "a student",
    names.OPAQUE: "a student",
    **dict.fromkeys(names.AUTOENCODED, "an autoencoder"),
}


def _around(
    config: DefenseConfig,
    model: nn.Module,
    denoiser: nn.Module,
    box: Opaque,
    directions: int,
    guess: Learned | None = None,
) -> Finetuning:
    """Autograd around a black box."""
    source = Asking(Autograd(model, loss=F.cross_entropy, seed=config.seed), box, guess)
    return Finetuning(model, denoiser, source, 1 + directions * len(box.stencil.nodes))


def _white(config: DefenseConfig, denoiser: Denoiser, _: Scores, classifier: Any) -> Finetuning:
    classifier.eval().requires_grad_(False)
    model = nn.Sequential(denoiser, classifier)
    return Finetuning(model, denoiser, Autograd(model, loss=F.cross_entropy, seed=config.seed), 0)


def _random(config: DefenseConfig, denoiser: Denoiser, scores: Scores, _: Any) -> Finetuning:
    box = Opaque(
        scores,
        directions="sphere",
        queries=config.directions,
        stencil="forward",
        step_size=config.step_size,
        max_queries=config.budget,
        seed=config.seed,
    )
    return _around(config, nn.Sequential(denoiser, box), denoiser, box, config.directions)


def _coded(config: DefenseConfig, denoiser: Denoiser, scores: Scores, autoencoder: Any) -> Finetuning:
    """The decoder belongs to the black box, as in the authors' code; the encoder is trained with the denoiser."""
    decoder = autoencoder.decoder.eval().requires_grad_(False)
    coordinates = config.method == "zo-ae-ds-cge"
    box = Opaque(
        lambda z: scores(decoder(z)),
        directions="coordinates" if coordinates else "sphere",
        queries=None if coordinates else config.directions,
        stencil="central" if coordinates else "forward",
        step_size=config.step_size,
        max_queries=config.budget,
        seed=config.seed,
    )
    front = nn.Sequential(denoiser, autoencoder.encoder)
    size = int(config.autoencoder.split("-")[-1])
    directions = size if coordinates else config.directions
    return _around(config, nn.Sequential(front, box), nn.Sequential(front, decoder), box, directions)


def _coordinates(config: DefenseConfig, denoiser: Denoiser, scores: Scores, ratios: Any) -> Finetuning:
    """CGE over convolutions of the denoiser; the features in front of them are computed once a step."""
    denoiser.eval()  # as it will be used: statistics of the pretraining
    box = Opaque(scores, max_queries=config.budget, seed=config.seed)
    model = nn.Sequential(denoiser, box)
    denoiser.requires_grad_(False)
    kept = {"0.last.weight"} if ratios is None else set(ratios)
    weights = {name: p.requires_grad_() for name, p in model.named_parameters() if name in kept}
    if ratios is None:
        size = weights["0.last.weight"].numel()
        ratios = {"0.last.weight": min(1.0, config.directions / size)}
    counts = counts_from_ratios(ratios, weights)
    zo = CGE(
        model,
        loss=F.cross_entropy,
        step_size=config.step_size,
        sparsity=DynamicRatios(ratios, every=1, seed=config.seed),
        seed=config.seed,
    )
    return Finetuning(model, denoiser, Asking(zo, box), 1 + sum(counts.values()))


def ranked(
    config: DefenseConfig, denoiser: Denoiser, scores: Scores, batch: tuple[Tensor, Tensor]
) -> tuple[dict[str, float], int]:
    """How many coordinates of each convolution of the pretrained denoiser ZO-GraSP keeps, and what that asked.

    The sparsity is such that ``config.directions`` coordinates are kept.
    """
    front = copy.deepcopy(denoiser).eval().requires_grad_(False)
    model = nn.Sequential(front, Opaque(scores, seed=config.seed))
    weights = {name: p.requires_grad_() for name, p in model.named_parameters() if p.dim() > 1}
    size = sum(p.numel() for p in weights.values())
    step = 5e-3 if config.step_size is None else config.step_size
    found = zo_grasp(
        model, F.cross_entropy, *batch, queries=RANKING, step_size=step, seed=config.seed, dtype=batch[0].dtype
    )
    keep = min(1.0, config.directions / size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparsityWarning)  # the paper finds just that: most layers keep next to nothing
        ratios = layer_ratios(found, sparsity=1 - keep) if keep < 1 else dict.fromkeys(weights, 1.0)
    return ratios, 2 * (RANKING + 1) * len(batch[0])


def _guided(config: DefenseConfig, denoiser: Denoiser, scores: Scores, student: Any) -> Finetuning:
    guess = Learned(student, lr=1e-3, steps=2, seed=config.seed)
    box = Opaque(
        scores,
        queries=config.directions,
        stencil="forward",
        surrogate=guess,
        max_queries=config.budget,
        seed=config.seed,
    )
    return _around(config, nn.Sequential(denoiser, box), denoiser, box, config.directions, guess)
