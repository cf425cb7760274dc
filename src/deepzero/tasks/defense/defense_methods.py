"""Training of the denoiser by a classifier that can only be queried: one gradient source a method."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from deepzero import data
from deepzero.errors import InvalidInputError
from deepzero.estimator import CGE
from deepzero.models import Autoencoder, DnCNN, UNetDenoiser
from deepzero.opaque import Learned, Opaque
from deepzero.sparsity import DynamicRatios, SparsityWarning, layer_ratios, zo_grasp
from deepzero.sparsity.selection import counts_from_ratios
from deepzero.tasks.black_box_sources import BlackBoxSource
from deepzero.tasks.defense import defense_config as names
from deepzero.tasks.defense.defended_classifier import Normalized, Scores
from deepzero.tasks.defense.defense_config import DefenseConfig, DenoiserConfig
from deepzero.training.gradient_sources import Autograd, GradientSource

Denoiser = DnCNN | UNetDenoiser
Part = TypeVar("Part")
RANKING = 192
"""Directions by which ZO-GraSP ranks, as in the paper."""


@dataclass
class Finetuning:
    """A network with a classifier at its end, and the gradient source of its trainable part.

    Attributes:
        model: noisy images to the classifier's scores.
        denoiser: the part that is kept: noisy images to inputs of the classifier.
        source: of gradients.
        queries_per_step: of the classifier, for a batch of one image.
    """

    model: nn.Module
    denoiser: nn.Module
    source: GradientSource
    queries_per_step: int

    @property
    def box(self) -> Opaque | None:
        """The black box of a method that queries it."""
        return next((module for module in self.model.modules() if isinstance(module, Opaque)), None)


def student_network(dataset: data.Dataset, width: int = 32) -> nn.Module:
    """A small convolutional classifier without batch statistics, for images in [0, 1]."""
    channels = dataset.image_shape[0]
    layers: list[nn.Module] = []
    for inward, outward, stride in ((channels, width, 1), (width, width, 2), (width, 2 * width, 2)):
        layers += [nn.Conv2d(inward, outward, 3, stride=stride, padding=1), nn.GroupNorm(4, outward), nn.GELU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, dataset.num_classes)]
    return Normalized(nn.Sequential(*layers), dataset)


def make_denoiser(config: DenoiserConfig, channels: int) -> Denoiser:
    """The network in front of the classifier, at initial weights."""
    if config.kind == "unet":
        return UNetDenoiser(channels=channels, width=config.width)
    return DnCNN(channels=channels, depth=config.depth, width=config.width)


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
        config: names the method, and its budget and directions.
        denoiser: pretrained.
        scores: of the black box, on images in [0, 1].
        white_box: the classifier itself, for ``fo-ds``.
        autoencoder: pretrained, for the methods that have one.
        student: a differentiable guess of the classifier: trained already for ``distilled``, as it learns for
            ``opaque``.
        ratios: for ``deepzero``: part of each convolution that a step takes, as :func:`layer_shares` finds; None: of
            the last one as many coordinates as there are directions.

    Raises:
        InvalidInputError: the method needs a part that is not there.
    """
    method, seed = config.method, config.seed
    match method:
        case names.FO_DS:
            classifier = _required(white_box, method, "a classifier that can be differentiated (a white box)")
            return _white(denoiser, classifier, seed=seed)
        case names.DISTILLED:
            return _white(denoiser, _required(student, method, "a student"), seed=seed)
        case names.ZO_DS:
            return _random(config, denoiser, scores)
        case names.ZO_AE_DS | names.ZO_AE_DS_CGE:
            return _coded(config, denoiser, scores, _required(autoencoder, method, "an autoencoder"))
        case names.DEEPZERO:
            return _coordinates(config, denoiser, scores, ratios)
        case names.OPAQUE:
            return _guided(config, denoiser, scores, _required(student, method, "a student"))
        case _:
            raise InvalidInputError(f"{method} trains nothing by the classifier")


def _required(part: Part | None, method: str, title: str) -> Part:
    if part is None:
        raise InvalidInputError(f"{method} needs {title}, and there is none")
    return part


def _around(
    model: nn.Module, denoiser: nn.Module, box: Opaque, *, directions: int, seed: int, guess: Learned | None = None
) -> Finetuning:
    """Autograd around a black box."""
    source = BlackBoxSource(Autograd(model, loss=F.cross_entropy, seed=seed), box, guess)
    return Finetuning(model, denoiser, source, 1 + directions * len(box.stencil.nodes))


def _white(denoiser: Denoiser, classifier: nn.Module, *, seed: int) -> Finetuning:
    """Autograd through a classifier."""
    classifier.eval().requires_grad_(False)
    model = nn.Sequential(denoiser, classifier)
    return Finetuning(model, denoiser, Autograd(model, loss=F.cross_entropy, seed=seed), 0)


def _random(config: DefenseConfig, denoiser: Denoiser, scores: Scores) -> Finetuning:
    """Random directions in the space of images."""
    box = Opaque(
        scores,
        directions="sphere",
        queries=config.directions,
        stencil="forward",
        step_size=config.step_size,
        max_queries=config.budget,
        seed=config.seed,
    )
    return _around(nn.Sequential(denoiser, box), denoiser, box, directions=config.directions, seed=config.seed)


def _coded(config: DefenseConfig, denoiser: Denoiser, scores: Scores, autoencoder: Autoencoder) -> Finetuning:
    """The decoder belongs to the black box, as in the authors' code; the encoder is trained with the denoiser."""
    decoder = autoencoder.decoder.eval().requires_grad_(False)
    coordinates = config.method == names.ZO_AE_DS_CGE
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
    model, kept = nn.Sequential(front, box), nn.Sequential(front, decoder)
    return _around(model, kept, box, directions=directions, seed=config.seed)


def _coordinates(
    config: DefenseConfig, denoiser: Denoiser, scores: Scores, ratios: Mapping[str, float] | None
) -> Finetuning:
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
    return Finetuning(model, denoiser, BlackBoxSource(zo, box), 1 + sum(counts.values()))


def layer_shares(
    config: DefenseConfig, denoiser: Denoiser, scores: Scores, batch: tuple[Tensor, Tensor]
) -> tuple[dict[str, float], int]:
    """Part of each convolution of the pretrained denoiser that ZO-GraSP keeps, and the queries to find it.

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


def _guided(config: DefenseConfig, denoiser: Denoiser, scores: Scores, student: nn.Module) -> Finetuning:
    """Orthonormal directions in the space of images, with a student as control variate."""
    guess = Learned(student, lr=1e-3, steps=2, seed=config.seed)
    box = Opaque(
        scores,
        queries=config.directions,
        stencil="forward",
        surrogate=guess,
        max_queries=config.budget,
        seed=config.seed,
    )
    model = nn.Sequential(denoiser, box)
    return _around(model, denoiser, box, directions=config.directions, seed=config.seed, guess=guess)
