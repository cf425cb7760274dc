"""The certified accuracy of a defense: image after image, kept as they come, resumable."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepzero import validation
from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.files import JSON_BYTES, json_object, parsed, read_at_most, read_from, replace_file, to_json
from deepzero.tasks.defense.noisy_images import pixels
from deepzero.tasks.defense.smoothing import ABSTAIN, Certificate, Smoothed, certified_accuracy, require_reachable
from deepzero.tasks.defense.train_defense import load_pair
from deepzero.training import JsonLines, RunFolder, StopRequest, read_record

CERTIFICATES, RESULT = "certificates.jsonl", "certified.json"
RADII = (0.0, 0.25, 0.5, 0.75)
"""Radii of Tab. 2 of the paper, for noise of 0.25; those of other noise are scaled with it."""


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """Settings of a certification.

    Attributes:
        images: of the test set, evenly spaced; None: all.
        trials: N, noisy samples of an image.
        first: samples from which its class is guessed.
        alpha: chance that a certificate is wrong.
        radii: of the table; None: :data:`RADII` in units of the noise of 0.25.
        batch: images of one call.
        seed: of the noise.
    """

    images: int | None = 100
    trials: int = 10_000
    first: int = 100
    alpha: float = 0.001
    radii: tuple[float, ...] | None = None
    batch: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        validation.count("images", 1 if self.images is None else self.images)
        validation.count("trials", self.trials)
        validation.count("first", self.first)
        validation.probability("alpha", self.alpha, hint="0.001")
        for radius in self.radii or ():
            if not 0 <= radius < math.inf:
                raise InvalidInputError(f"radii must be numbers of at least 0, got {radius!r}; try 0, 0.25 and 0.5")

    def radii_for(self, sigma: float) -> tuple[float, ...]:
        """The radii of the table."""
        return tuple(radius * sigma / 0.25 for radius in RADII) if self.radii is None else self.radii


@dataclass(frozen=True)
class Certified:
    """The outcome of a certification.

    Attributes:
        folder: of the run.
        result: as in ``certified.json``; None if it was stopped before its end.
        stopped: reason of the stop.
    """

    folder: Path
    result: dict[str, Any] | None
    stopped: str | None = None


def certify(
    folder: str | Path,
    config: CertifyConfig | None = None,
    *,
    data_dir: str | Path | None = None,
    max_seconds: float | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Certified:
    """Certify the pair of denoiser and classifier in a run folder; goes on where it was interrupted.

    Args:
        folder: of a run of ``deepzero defend``.
        config: settings; the default ones if None.
        data_dir: folder of the data set.
        max_seconds: stop after about that time; certificates so far are kept.
        progress: called with images done, images in all, and seconds left.

    Raises:
        InvalidInputError: a radius cannot be certified with this noise and number of samples.
        RunFolderError: the folder holds no finished defense, or certificates of another configuration, or another
            process works in it.
    """
    path, config = Path(folder), config or CertifyConfig()
    task, front, target, splits = load_pair(path, data_dir)
    radii = config.radii_for(task.sigma)
    require_reachable(radii, task.sigma, config.trials, config.alpha)
    images = pixels(splits.test)
    count = len(images) if config.images is None else min(config.images, len(images))
    chosen = [k * len(images) // count for k in range(count)]

    def scores(x: Tensor) -> Tensor:
        return target.ask(front(x))

    smoothed = Smoothed(scores, task.sigma, images.num_classes, batch=config.batch, seed=config.seed)
    with ExitStack() as stack:
        stack.enter_context(RunFolder(path, read_record(path)))
        known, size = _known(path, config)
        started, before = time.perf_counter(), len(known)
        stop = stack.enter_context(StopRequest(max_seconds=max_seconds, work="image"))
        lines = stack.enter_context(closing(JsonLines(path / CERTIFICATES, start=size)))
        for done, index in enumerate(chosen):
            if index not in known:
                if stop.reason is not None:
                    return Certified(path, None, stop.reason)
                x = images.inputs[index].to(torch.float32) / images.scale
                known[index] = smoothed.certify(
                    x, number=index, trials=config.trials, first=config.first, alpha=config.alpha
                )
                lines.write({"image": index, **asdict(known[index])})
            if progress is not None:
                fresh = max(1, len(known) - before)
                progress(done + 1, count, (time.perf_counter() - started) / fresh * (count - done - 1))
    certificates = [known[index] for index in chosen]
    labels = [int(images.labels[index]) for index in chosen]
    result = {
        "sigma": task.sigma,
        "settings": asdict(config),
        "radii": list(radii),
        "certified_accuracy": certified_accuracy(certificates, labels, radii),
        "abstained": sum(c.answer == ABSTAIN for c in certificates) / count,
        "average_certified_radius": math.fsum(
            c.radius for c, label in zip(certificates, labels, strict=True) if c.answer == label
        )
        / count,
        "curve": curve(certificates, labels),
    }
    replace_file(path / RESULT, to_json(result))
    return Certified(path, result)


def curve(certificates: Sequence[Certificate], labels: Sequence[int]) -> list[list[float]]:
    """Certified accuracy against radius: ``[radius, accuracy]`` at each fall."""
    right = sorted(c.radius for c, label in zip(certificates, labels, strict=True) if c.answer == label)
    return [[radius, (len(right) - k) / len(labels)] for k, radius in enumerate(right)]


def _known(path: Path, config: CertifyConfig) -> tuple[dict[int, Certificate], int]:
    """Certificates that are there already, of this very configuration, and the bytes of their whole lines."""
    settings = path / "certify.json"
    own = json.loads(json.dumps({**asdict(config), "images": None, "radii": None}))
    if (path / CERTIFICATES).exists() and settings.exists():
        again = f"move {CERTIFICATES} away to certify all images again"
        if (there := json_object(settings, advice=again)) != own:
            raise RunFolderError(
                f"{path} holds certificates of other settings ({json.dumps(there)[:500]}); move "
                f"{CERTIFICATES} away, or certify with those"
            )
        with read_from(path / CERTIFICATES, advice=again):
            text = read_at_most(path / CERTIFICATES, JSON_BYTES)
            whole = text[: text.rfind(b"\n") + 1]  # a last line may have been cut off
            rows = [dict(parsed(line)) for line in whole.splitlines()]
            return {int(row.pop("image")): _certificate(row) for row in rows}, len(whole)
    replace_file(settings, to_json(own))
    return {}, 0


def _certificate(row: Mapping[str, Any]) -> Certificate:
    """The certificate in a line."""
    found = Certificate(**row)
    if type(found.answer) is not int or type(found.radius) not in (int, float) or not found.radius >= 0:
        raise TypeError(f"a certificate has the answer {found.answer!r} and the radius {found.radius!r}")
    return found
