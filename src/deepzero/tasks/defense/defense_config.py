"""The configuration of a defense: frozen records, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.models import AUTOENCODERS
from deepzero.tasks.task_config import DataConfig, StageConfig, record_of

SMOOTHING, DENOISER = "smoothing", "denoiser"
FO_DS, ZO_DS, ZO_AE_DS, ZO_AE_DS_CGE = "fo-ds", "zo-ds", "zo-ae-ds", "zo-ae-ds-cge"
DEEPZERO, DISTILLED, OPAQUE = "deepzero", "distilled", "opaque"
METHODS = {
    SMOOTHING: "the classifier itself under noise: nothing is trained",
    DENOISER: "a denoiser that has only learned to denoise: no query",
    FO_DS: "backpropagation through the classifier: what a white box allows, an upper bound",
    ZO_DS: "random directions in the space of images (RGE)",
    ZO_AE_DS: "random directions in the code of an autoencoder in front of the classifier (RGE)",
    ZO_AE_DS_CGE: "every coordinate of that code (CGE)",
    DEEPZERO: "coordinate-wise estimates of the denoiser's last layer, by difference propagation",
    DISTILLED: "a student that learned the classifier's answers, then backpropagation through it",
    OPAQUE: "ours: orthonormal directions in the space of images, with a guess that learns from the answers",
}
"""Ways to train the denoiser, in one line each."""
AUTOENCODED = (ZO_AE_DS, ZO_AE_DS_CGE)
QUERYING = (ZO_DS, *AUTOENCODED, DEEPZERO, DISTILLED, OPAQUE)
"""Methods that ask the black box while they train."""
TRAINING = (FO_DS, *QUERYING)
"""Methods that train the denoiser by the classifier."""
USED_BY = {
    "budget": QUERYING,
    "directions": (ZO_DS, ZO_AE_DS, DEEPZERO, OPAQUE),
    "loss": TRAINING,
    "learning_rate": TRAINING,
    "finetuned": (DEEPZERO,),
}
"""Settings that only some methods look at."""
LARGEST_SIGMA = 4.0
"""Beyond it a sigma is in other units."""
DENOISERS = ("dncnn", "unet")
STABILITY, CLASSIFICATION = "stability", "classification"
LOSSES = {
    STABILITY: "cross-entropy with the label that the classifier gives to the clean image",
    CLASSIFICATION: "cross-entropy with the true label",
}
"""Losses of the finetuning, in words."""
LAST_LAYER, ZO_GRASP = "last-layer", "zo-grasp"
FINETUNED = (LAST_LAYER, ZO_GRASP)
"""Weights that ``deepzero`` finetunes."""


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """The network in front of the classifier.

    Attributes:
        kind: ``dncnn`` or ``unet``.
        depth: convolutions of a DnCNN.
        width: channels between them.
    """

    kind: str = "dncnn"
    depth: int = 17
    width: int = 64

    def __post_init__(self) -> None:
        validation.choice("kind", self.kind, DENOISERS)
        validation.count("depth", self.depth, minimum=2)
        validation.count("width", self.width)


@dataclass(frozen=True, kw_only=True)
class DefenseConfig:
    """A defense: all that its result depends on, and nothing else.

    Attributes:
        data: the images.
        method: one of :data:`METHODS`.
        sigma: standard deviation of the noise, for pixels in [0, 1].
        denoiser: the network in front of the classifier.
        autoencoder: a name in :data:`deepzero.models.AUTOENCODERS`, for the methods that have one.
        classifier: the stage that trains a classifier of our own, if the user has none.
        pretraining: of the denoiser, and of the autoencoder, by mean squared error.
        finetuning: by the answers of the classifier.
        budget: queries of the classifier in the finetuning.
        directions: of a sample, or coordinates of a step; all of the code's for ``zo-ae-ds-cge``.
        loss: of the finetuning, one of :data:`LOSSES`.
        finetuned: by ``deepzero``: ``last-layer``, as the paper does, or ``zo-grasp``: the convolutions of all
            layers, as many coordinates of each as ZO-GraSP keeps on the pretrained denoiser.
        step_size: of the finite difference; None: by dtype and size.
        seed: of everything that is drawn.

    Raises:
        InvalidInputError: a value is out of its domain.
    """

    data: DataConfig
    method: str = OPAQUE
    sigma: float = 0.25
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    autoencoder: str = "digits-32"
    classifier: StageConfig = field(default_factory=lambda: StageConfig(steps=1000))
    pretraining: StageConfig = field(default_factory=lambda: StageConfig(steps=2000))
    finetuning: StageConfig = field(default_factory=lambda: StageConfig(learning_rate=1e-4))
    budget: int = 2_000_000
    directions: int = 192
    loss: str = STABILITY
    finetuned: str = LAST_LAYER
    step_size: float | None = 5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        validation.choice("method", self.method, METHODS)
        validation.positive("sigma", self.sigma, hint="0.25")
        if self.sigma > LARGEST_SIGMA:
            raise InvalidInputError(
                f"sigma is for pixels in [0, 1], and {self.sigma:g} would leave nothing of an image; for pixels in "
                f"[0, 255] divide by 255: sigma={self.sigma / 255:.2g}"
            )
        validation.choice("autoencoder", self.autoencoder, AUTOENCODERS)
        validation.choice("loss", self.loss, LOSSES)
        validation.choice("finetuned", self.finetuned, FINETUNED)
        validation.count("budget", self.budget)
        validation.count("directions", self.directions)
        validation.count("seed", self.seed, minimum=0)
        if self.step_size is not None:
            validation.positive("step_size", self.step_size, hint="5e-3")
        for name in ("classifier", "pretraining"):
            if getattr(self, name).steps is None:
                raise InvalidInputError(f"{name} asks nothing that could end it: give it steps, for example steps=1000")


def from_record(record: Mapping[str, Any]) -> DefenseConfig:
    """The configuration that a run folder keeps as JSON.

    Example:
        >>> from dataclasses import asdict
        >>> config = DefenseConfig(data=DataConfig(name="digits"), sigma=0.5)
        >>> from_record(asdict(config)) == config
        True
    """
    return record_of(DefenseConfig, record)
