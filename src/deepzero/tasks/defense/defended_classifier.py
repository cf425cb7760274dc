"""The classifier that is defended: a model file, a service, or a network of our own behind a model file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from deepzero import data
from deepzero.errors import InvalidInputError
from deepzero.opaque import HttpModel, OnnxModel
from deepzero.tasks.defense.noisy_images import pixels

ADDRESS = ("http://", "https://")
Scores = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n classes"]]


@dataclass(frozen=True)
class DefendedClassifier:
    """The classifier that is defended.

    Attributes:
        ask: images in [0, 1] to scores; all that a black box gives.
        white_box: the network behind it; None where it cannot be differentiated.
        name: in words.
        sha256: of the model file; None for a service.
    """

    ask: Scores
    white_box: nn.Module | None
    name: str
    sha256: str | None = None


def load_target(classifier: str | Path) -> DefendedClassifier:
    """A classifier in a file or behind an address."""
    text = str(classifier)
    model = HttpModel(text) if text.startswith(ADDRESS) else OnnxModel(text, threads=torch.get_num_threads())

    def ask(x: Tensor) -> Tensor:
        return torch.as_tensor(model(x.detach().cpu().numpy())).to(x.device)

    return DefendedClassifier(ask, None, text, digest(text) if isinstance(model, OnnxModel) else None)


def require_classifier(classifier: str | Path) -> None:
    """Raise unless a word is a file with the ending of a model, or an address."""
    text = str(classifier)
    if text.startswith(ADDRESS):
        return
    expected = "expected an .onnx file, or the address of a service that begins with http:// or https://"
    if "://" in text:
        raise InvalidInputError(f"{expected}; got {text}")
    load_target(text)  # raises if it is not there
    if Path(text).suffix.lower() != ".onnx":
        raise InvalidInputError(f"{text} is no model file; {expected}")


def require_answers(classifier: str | Path, images: data.Dataset) -> None:
    """Raise unless the user's classifier has scores for an image, one for each class; it is asked for a black one."""
    try:
        scores = load_target(classifier).ask(torch.zeros(1, *images.image_shape))
    except Exception as error:  # those of ONNX Runtime are of many kinds
        raise InvalidInputError(
            f"the classifier {classifier} does not answer for an image of shape {list(images.image_shape)}: {error}; "
            "expected an .onnx file, or the address of a service that is running"
        ) from error
    if list(scores.shape) != [1, images.num_classes]:
        raise InvalidInputError(
            f"the classifier {classifier} answers an image with {list(scores.shape[1:])} scores; expected one for each "
            f"of the {images.num_classes} classes"
        )


def digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Normalized(nn.Module):
    """A classifier that normalizes what it gets, so that noise is added in units of pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, dataset: data.Dataset) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(dataset.mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(dataset.std).reshape(-1, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits of images in [0, 1]."""
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits


def answers(scores: Scores, images: data.Dataset, batch: int = 500) -> Int64[Tensor, " n"]:
    """The classifier's label of every clean image: a query an image."""
    loader = data.BatchLoader(pixels(images), batch_size=batch)
    with torch.no_grad():
        return torch.cat([scores(x).argmax(1).cpu() for x, _ in loader.iterate()])


def accuracy(scores: Scores, images: data.Dataset) -> float:
    """The share of clean images whose label a classifier gives."""
    return float((answers(scores, images) == images.labels.cpu()).double().mean())
