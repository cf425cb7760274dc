"""A defense from its data to a certified pair: classifier, denoiser, finetuning by queries, certification."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from deepzero import data
from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.files import finite, replace_file, to_json
from deepzero.models import Autoencoder, SimpleCNN
from deepzero.opaque import HttpModel, OnnxModel
from deepzero.randomness import derive_seed, seeded_scope
from deepzero.tasks.classification.classification_parts import load_images
from deepzero.tasks.defense import defense_config as names
from deepzero.tasks.defense.defense_config import DefenseConfig, from_record
from deepzero.tasks.defense.defense_methods import Finetuning, finetuning, ranked
from deepzero.tasks.defense.defense_parts import (
    Normalized,
    Scores,
    answers,
    batches,
    make_denoiser,
    student_network,
)
from deepzero.tasks.training_stage import StageConfig, StagedRun, StoppedError, alone, opened, trained
from deepzero.training import Autograd, RunFolder, StopRequest, hardware, read_record, require_made_by, versions
from deepzero.training.checkpoint_contents import snapshot
from deepzero.training.model_file import export_onnx

CLASSIFIER = "classifier.onnx"
"""The model file of a classifier of our own, in the folder of its stage."""
RATIOS = "ratios.json"
"""Where a run keeps which part of each layer a step takes."""
DISTILLED_BATCH = 256
"""Images of a step of a student: its queries are one an image, so larger batches than a denoiser's cost less time."""
OWN = "our own"


@dataclass(frozen=True)
class Target:
    """The classifier that is defended.

    Attributes:
        ask: images in [0, 1] to scores, as anybody may ask.
        white_box: the network behind it, where there is one.
        name: in words.
        sha256: of the model file; None for a service.
    """

    ask: Scores
    white_box: nn.Module | None
    name: str
    sha256: str | None = None


def defend(
    config: DefenseConfig,
    *,
    out: str | Path,
    resume: bool = False,
    classifier: str | Path | None = None,
    stages: str | Path | None = None,
    data_dir: str | Path | None = None,
    max_seconds: float | None = None,
    console: Console | None = None,
) -> StagedRun:
    """Train a denoiser in front of a classifier, by one of :data:`~deepzero.tasks.defense.defense_config.METHODS`.

    Args:
        config: all that the result depends on, beside the classifier.
        out: a folder that is empty or not there; with ``resume``, that of a run with the same ``config``.
        resume: go on with an interrupted run.
        classifier: an ``.onnx`` file or the address of a service that takes images in [0, 1], which is asked once,
            for one image, before anything is trained; by default one of our own is trained and exported.
        stages: where stages that methods share (classifier, denoiser, autoencoder) are kept; by default in ``out``.
        data_dir: where the data set lies.
        max_seconds: stop after about so long, with everything saved.
        console: where to show progress.

    Raises:
        InvalidInputError: the method needs a white box, and there is none.
        RunFolderError: the folder holds another run.
    """
    path = Path(out)
    kept = Path(stages) if stages is not None else path / "stages"
    if kept.exists() and not kept.is_dir():
        raise RunFolderError(f"stages are kept in a folder, but {kept} is a file; choose another --stages")
    _require_budget(config)
    if classifier is not None:
        _require_classifier(classifier)
    run = RunFolder.reopen(path, config=_record(config, classifier)) if resume else None
    if run is None:
        RunFolder.require_free(path)
    elif run.summary is not None:
        return StagedRun(path, run.summary)
    splits = load_images(config, data_dir)
    if classifier is not None:
        _require_answers(classifier, splits.train)
    run = run or opened(path, config=_record(config, classifier), notes={"stages": str(kept)}, resume=False)
    with StopRequest(max_seconds=max_seconds) as stop:
        work = _Work(config, splits, path, Path(run.record["stages"]), stop, console)
        return work.defended(run, classifier)


def settings_of(folder: Path) -> tuple[DefenseConfig, str | None]:
    """The configuration of a run, and the classifier that it was given.

    Raises:
        RunFolderError: the folder holds no defense.
    """
    whole = read_record(folder)
    require_made_by(folder, whole, "defend")
    record = whole["config"]
    return from_record(record["defense"]), None if record["target"] == OWN else record["target"]


def _record(config: DefenseConfig, classifier: str | Path | None) -> dict[str, Any]:
    return {"defense": asdict(config), "target": OWN if classifier is None else str(classifier)}


def given_target(classifier: str | Path) -> Target:
    """A classifier in a file or behind an address."""
    text = str(classifier)
    model = (
        HttpModel(text)
        if text.startswith(("http://", "https://"))
        else OnnxModel(text, threads=torch.get_num_threads())
    )

    def ask(x: Tensor) -> Tensor:
        return torch.as_tensor(model(x.detach().cpu().numpy())).to(x.device)

    return Target(ask, None, text, digest(text) if isinstance(model, OnnxModel) else None)


def _require_classifier(classifier: str | Path) -> None:
    """Raise unless a word is a file with the ending of a model, or an address."""
    text = str(classifier)
    if text.startswith(("http://", "https://")):
        return
    expected = "expected an .onnx file, or the address of a service that begins with http:// or https://"
    if "://" in text:
        raise InvalidInputError(f"{expected}; got {text}")
    given_target(text)  # raises if it is not there
    if Path(text).suffix.lower() != ".onnx":
        raise InvalidInputError(f"{text} is no model file; {expected}")


def _require_answers(classifier: str | Path, images: data.Dataset) -> None:
    """Raise unless a classifier that was given has scores for an image, one for each class; a black one is asked."""
    try:
        scores = given_target(classifier).ask(torch.zeros(1, *images.image_shape))
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


def _require_budget(config: DefenseConfig) -> None:
    """Raise if the queries do not suffice for one step, as far as that is known before anything is trained."""
    directions = config.directions if config.method in names.USED_BY["directions"] else 0
    least = config.finetuning.batch_size * (1 + directions)
    if config.method in names.QUERYING and config.method != names.DISTILLED and config.budget < least:
        raise InvalidInputError(
            f"a step of {config.method} asks {least:,} times or more ({config.finetuning.batch_size} images), and the "
            f"budget is {config.budget:,}; give a larger budget" + (", or fewer directions" if directions else "")
        )


def digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Work:
    """A run while it goes on."""

    config: DefenseConfig
    splits: data.Splits
    folder: Path
    stages: Path
    stop: StopRequest
    console: Console | None

    def defended(self, run: RunFolder, classifier: str | Path | None) -> StagedRun:
        """All stages, one after the other."""
        started = time.perf_counter()
        try:
            target = self.target() if classifier is None else given_target(classifier)
            denoiser, queries = self.denoiser(target)
        except StoppedError as stopped:
            return StagedRun(self.folder, None, str(stopped))
        run.write_weights(snapshot(denoiser))
        summary = {
            "method": self.config.method,
            "classifier": target.name,
            "classifier_sha256": target.sha256,
            "queries": queries,
            "seconds": round(time.perf_counter() - started, 3),
            "seed": self.config.seed,
            "versions": versions(),
            "hardware": hardware(torch.device("cpu")),
            "config": run.record["config"],
        }
        run.write("summary.json", finite(summary))
        return StagedRun(self.folder, summary)

    def target(self) -> Target:
        """Our own classifier, trained on clean images, exported, and asked through its file."""
        train = self.splits.train
        channels = train.image_shape[0]
        model = Normalized(
            self.built(lambda: SimpleCNN(depth=2, width=32, in_channels=channels, num_classes=train.num_classes)), train
        )
        stage = self.config.classifier
        self.stage("classifier", model, stage, loss=F.cross_entropy, clean=False, sigma=0.0)
        path = self.stages / "classifier" / CLASSIFIER
        with alone(path.parent, self.stop):
            if not path.exists():
                export_onnx(model, torch.zeros(2, *train.image_shape), path)
        given = given_target(path)
        return Target(given.ask, model, "our own, exported to ONNX", given.sha256)

    def denoiser(self, target: Target) -> tuple[nn.Module, int]:
        """The network in front of the classifier, and what it asked."""
        config, train = self.config, self.splits.train
        channels = train.image_shape[0]
        if config.method == names.SMOOTHING:
            return nn.Identity(), 0
        denoiser = self.built(lambda: make_denoiser(config.denoiser, channels))
        self.stage("denoiser", denoiser, config.pretraining, loss=F.mse_loss, clean=True)
        if config.method == names.DENOISER:
            return denoiser, 0
        autoencoder = None
        if config.method in names.AUTOENCODED:
            autoencoder = self.built(lambda: Autoencoder(config.autoencoder))
            self.stage("autoencoder", autoencoder, config.pretraining, loss=F.mse_loss, clean=True, sigma=0.0)
        spent = 0
        if config.loss == names.STABILITY:
            train = replace(train, labels=answers(target.ask, train))
            spent += len(train)
        student = ratios = None
        if config.method in (names.DISTILLED, names.OPAQUE):
            student = self.built(lambda: student_network(train))
            if config.method == names.DISTILLED:
                spent += self.distil(student, target)
        if config.method == names.DEEPZERO and config.finetuned == names.ZO_GRASP:
            ratios, asked = self.ratios(denoiser, target, train)
            spent += asked
        fine = finetuning(
            config,
            denoiser,
            target.ask,
            white_box=target.white_box,
            autoencoder=autoencoder,
            student=student,
            ratios=ratios,
        )
        self.finetune(fine, train)
        return fine.denoiser, spent + (0 if fine.box is None else fine.box.queries)

    def distil(self, student: nn.Module, target: Target) -> int:
        """A student that fits the classifier's scores of noisy images, for as many queries as the others have."""
        config = self.config
        size = min(DISTILLED_BATCH, len(self.splits.train), config.budget)
        steps = max(1, config.budget // size)

        def loss(output: Tensor, x: Tensor) -> Tensor:
            return F.mse_loss(output, target.ask(x))

        stage = StageConfig(learning_rate=1e-3, batch_size=size, steps=steps)
        self.stage("student", student, stage, loss=loss, clean=False, itself=True)
        return steps * size

    def ratios(self, denoiser: Any, target: Target, images: data.Dataset) -> tuple[dict[str, float], int]:
        """Which part of each convolution a step takes; asked for once, and kept."""
        path = self.folder / RATIOS
        if not path.exists():
            stage = self.config.finetuning
            made = batches(self.config, stage, images, name="ranking", steps=1, clean=False)
            found, asked = ranked(self.config, denoiser, target.ask, made.batch(0, 0))
            replace_file(path, to_json({"keep": found, "queries": asked}))
        kept = json.loads(path.read_bytes())
        return kept["keep"], kept["queries"]

    def finetune(self, fine: Finetuning, images: data.Dataset) -> None:
        """By the classifier's answers."""
        config = self.config
        stage = config.finetuning
        size = min(stage.batch_size, len(images))
        per_step = (fine.queries_per_step or 1 + config.directions) * size
        if config.method in names.QUERYING and config.method != names.DISTILLED and per_step > config.budget:
            raise InvalidInputError(
                f"a step of {config.method} asks {per_step:,} times ({size} images), more than the budget of "
                f"{config.budget:,}; give a larger budget, smaller batches, or fewer directions"
            )
        steps = stage.steps or max(1, config.budget // per_step)
        made = batches(config, stage, images, name="finetuning", steps=steps, clean=False)
        reason = trained(
            self.folder / "finetuning",
            {"config": asdict(config)},
            model=fine.model,
            kept=fine.denoiser,
            source=fine.source,
            batches=made,
            stage=stage,
            stop=self.stop,
            console=self.console,
        )
        if reason is not None:
            raise StoppedError(reason)

    def stage(
        self,
        name: str,
        model: nn.Module,
        stage: StageConfig,
        *,
        loss: Any,
        clean: bool,
        sigma: float | None = None,
        itself: bool = False,
    ) -> None:
        """A stage by autograd, its weights left in ``model``; methods share all but those ``itself`` is true for.

        With ``itself`` the target is the noisy image; the stage lies in the folder of the run.
        """
        config = self.config
        folder = (self.folder if itself else self.stages) / name
        made = batches(
            config, stage, self.splits.train, name=name, steps=int(stage.steps or 1), clean=clean, sigma=sigma
        )
        made = _Itself(made) if itself else made  # type: ignore[assignment]
        shared = {"data": asdict(config.data), "seed": config.seed, "sigma": config.sigma, "name": name}
        more = {"denoiser": asdict(config.denoiser), "autoencoder": config.autoencoder}
        with alone(folder, self.stop):
            reason = trained(
                folder,
                {**shared, **({name: more[name]} if name in more else {})},
                model=model,
                kept=model,
                source=Autograd(model, loss=loss, seed=config.seed),
                batches=made,
                stage=stage,
                stop=self.stop,
                console=self.console,
            )
        if reason is not None:
            raise StoppedError(reason)

    def built(self, make: Any) -> Any:
        """A network at initial weights that are a function of the seed."""
        with seeded_scope(derive_seed(self.config.seed, "weights"), torch.device("cpu")):
            return make()


class _Itself:
    """Batches whose target is the noisy image itself."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def __len__(self) -> int:
        return len(self._made)

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Noisy images, twice."""
        x, _ = self._made.batch(epoch, index)
        return x, x


def load_pair(folder: Path, data_dir: str | Path | None = None) -> tuple[DefenseConfig, nn.Module, Target, data.Splits]:
    """The denoiser and the classifier of a run that has finished, its configuration and its images.

    Raises:
        RunFolderError: the folder holds no defense that has finished.
    """
    config, classifier = settings_of(folder)
    run = RunFolder.reopen(folder, config=_record(config, classifier))
    if run.summary is None:
        raise RunFolderError(
            f"{folder} holds no defense that has finished; make one with `deepzero defend`, or go on with "
            f"`deepzero defend --resume --out {folder}`"
        )
    splits = load_images(config, data_dir)
    channels = splits.train.image_shape[0]
    with seeded_scope(config.seed, torch.device("cpu")):  # initial weights, which are not kept
        front: nn.Module = make_denoiser(config.denoiser, channels)
        if config.method == names.SMOOTHING:
            front = nn.Identity()
        if config.method in names.AUTOENCODED:
            halves = Autoencoder(config.autoencoder)
            front = nn.Sequential(nn.Sequential(front, halves.encoder), halves.decoder)
    front.load_state_dict(run.read_weights())
    own = Path(run.record["stages"]) / "classifier" / CLASSIFIER
    target = given_target(own if classifier is None else classifier)
    if target.sha256 != run.summary["classifier_sha256"]:
        raise RunFolderError(
            f"{target.name} is another classifier than the one that {folder} was trained for: its content has changed "
            "since; put the old file back, or train a new defense"
        )
    return config, front.eval(), target, splits
