"""A defense from its data to a certified pair: classifier, denoiser, finetuning by queries, certification."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from deepzero import data
from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.files import read_from
from deepzero.models import Autoencoder, SimpleCNN
from deepzero.randomness import derive_seed, seeded_scope
from deepzero.tasks.defense import defense_config as names
from deepzero.tasks.defense.defended_classifier import (
    DefendedClassifier,
    Normalized,
    answers,
    load_target,
    require_answers,
    require_classifier,
)
from deepzero.tasks.defense.defense_config import DefenseConfig, from_record
from deepzero.tasks.defense.defense_methods import (
    Denoiser,
    Finetuning,
    finetuning,
    layer_shares,
    make_denoiser,
    student_network,
)
from deepzero.tasks.defense.noisy_images import CLEAN, LABEL, NOISY, NoisyBatches
from deepzero.tasks.staged_run import Stage, StagedRun, alone, concluded, existing_run, new_run, stop_request
from deepzero.tasks.task_config import StageConfig
from deepzero.tasks.task_data import read_data
from deepzero.training import Autograd, RunFolder, StopRequest, read_record, require_made_by
from deepzero.training.checkpoint_contents import snapshot
from deepzero.training.model_file import export_onnx
from deepzero.training.run_folder import RATIOS_FILE, RECORD, resumed_by, settings_from

CLASSIFIER = "classifier.onnx"
"""The model file of a classifier of our own, in the folder of its stage."""
DISTILLED_BATCH = 256
"""Images of a step of a student: its queries are one an image, so larger batches than a denoiser's cost less time."""
OWN = "our own"

Network = TypeVar("Network", bound=nn.Module)


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
        stages: folder of the stages that methods share (classifier, denoiser, autoencoder); by default in ``out``.
        data_dir: folder of the data set.
        max_seconds: stop after about that time, with everything saved.
        console: for progress; None to be silent.

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
        require_classifier(classifier)
    record = _record(config, classifier)
    with ExitStack() as stack:
        if (run := existing_run(path, config=record, resume=resume)) is not None:
            stack.enter_context(run)
            if (summary := run.read_summary()) is not None:
                return StagedRun(path, summary)
        splits = read_data(config.data, data_dir)
        if classifier is not None:
            require_answers(classifier, splits.train)
        run = run or stack.enter_context(new_run(path, config=record, notes={"stages": str(kept)}))
        stop = stop_request(max_seconds)
        return concluded(run, stop, partial(_Defense(config, splits, run, stop, console).result, classifier))


def settings_of(folder: Path) -> tuple[DefenseConfig, str | None]:
    """The configuration of a run, and the user's classifier if it has one.

    Raises:
        RunFolderError: the folder holds no defense.
    """
    whole = read_record(folder)
    require_made_by(folder, whole, "defend")
    record = whole["config"]
    with settings_from(folder):
        return from_record(record["defense"]), None if record["target"] == OWN else str(record["target"])


def _record(config: DefenseConfig, classifier: str | Path | None) -> dict[str, Any]:
    return {"defense": asdict(config), "target": OWN if classifier is None else str(classifier)}


def _require_budget(config: DefenseConfig) -> None:
    """Raise if the queries do not suffice for one step, as far as that is known before anything is trained."""
    directions = config.directions if config.method in names.USED_BY["directions"] else 0
    least = config.finetuning.batch_size * (1 + directions)
    if config.method in names.QUERYING and config.method != names.DISTILLED and config.budget < least:
        raise InvalidInputError(
            f"a step of {config.method} asks {least:,} times or more ({config.finetuning.batch_size} images), and the "
            f"budget is {config.budget:,}; give a larger budget" + (", or fewer directions" if directions else "")
        )


@dataclass(frozen=True)
class _Defense:
    """The stages of a run."""

    config: DefenseConfig
    splits: data.Splits
    run: RunFolder
    stop: StopRequest
    console: Console | None

    @property
    def stages(self) -> Path:
        """Folder of the stages that methods share."""
        return Path(self.run.record["stages"])

    def result(self, classifier: str | Path | None) -> dict[str, Any]:
        """Go through all stages, and return their part of the summary."""
        started = time.perf_counter()
        target = self.own_target() if classifier is None else load_target(classifier)
        if target.sha256 is not None:
            self.run.keep_input(f"the classifier {target.name}", target.sha256.encode())
        denoiser, queries = self.denoiser(target)
        self.run.write_weights(snapshot(denoiser))
        return {
            "method": self.config.method,
            "classifier": target.name,
            "classifier_sha256": target.sha256,
            "queries": queries,
            "seconds": round(time.perf_counter() - started, 3),
            "seed": self.config.seed,
        }

    # Stages that methods share ----------------------------------------------------------------------------------------

    def own_target(self) -> DefendedClassifier:
        """Our own classifier, trained on clean images, exported, and asked through its file."""
        train = self.splits.train
        channels = train.image_shape[0]
        network = self.built(SimpleCNN, depth=2, width=32, in_channels=channels, num_classes=train.num_classes)
        model = Normalized(network, train)
        self.shared("classifier", model, self.config.classifier, F.cross_entropy, target=LABEL, sigma=0.0)
        path = self.stages / "classifier" / CLASSIFIER
        with alone(path.parent, self.stop):
            if not path.exists():
                export_onnx(model, torch.zeros(2, *train.image_shape), path)
        behind_file = load_target(path)
        return DefendedClassifier(behind_file.ask, model, "our own, exported to ONNX", behind_file.sha256)

    def pretrained(self) -> Denoiser:
        """A denoiser that has learned to denoise."""
        config = self.config
        denoiser = self.built(make_denoiser, config.denoiser, self.splits.train.image_shape[0])
        settings = {"denoiser": asdict(config.denoiser)}
        self.shared(
            "denoiser", denoiser, config.pretraining, F.mse_loss, target=CLEAN, sigma=config.sigma, settings=settings
        )
        return denoiser

    def autoencoder(self) -> Autoencoder:
        """An autoencoder of clean images."""
        config = self.config
        model = self.built(Autoencoder, config.autoencoder)
        settings = {"autoencoder": config.autoencoder}
        self.shared("autoencoder", model, config.pretraining, F.mse_loss, target=CLEAN, sigma=0.0, settings=settings)
        return model

    def shared(
        self,
        name: str,
        model: nn.Module,
        stage: StageConfig,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        target: str,
        sigma: float,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Train a model by autograd in the folder of the stages."""
        batches = self.batches(name, self.splits.train, stage, int(stage.steps or 1), target=target, sigma=sigma)
        self.by_autograd(self.stages / name, model, stage, loss, batches, settings=settings or {})

    # The denoiser by the classifier's answers ------------------------------------------------------------------------

    def denoiser(self, target: DefendedClassifier) -> tuple[nn.Module, int]:
        """The network in front of the classifier, and the queries of its training."""
        config, images = self.config, self.splits.train
        if config.method == names.SMOOTHING:
            return nn.Identity(), 0
        denoiser = self.pretrained()
        if config.method == names.DENOISER:
            return denoiser, 0
        autoencoder = self.autoencoder() if config.method in names.AUTOENCODED else None
        spent = 0
        if config.loss == names.STABILITY:
            images = replace(images, labels=answers(target.ask, images))
            spent += len(images)
        student = ratios = None
        if config.method in (names.DISTILLED, names.OPAQUE):
            student = self.built(student_network, images)
        if config.method == names.DISTILLED and student is not None:
            spent += self.distil(student, target)
        if config.method == names.DEEPZERO and config.finetuned == names.ZO_GRASP:
            ratios, queries = self.ratios(denoiser, target, images)
            spent += queries
        fine = finetuning(
            config,
            denoiser,
            target.ask,
            white_box=target.white_box,
            autoencoder=autoencoder,
            student=student,
            ratios=ratios,
        )
        self.finetune(fine, images)
        return fine.denoiser, spent + (0 if fine.box is None else fine.box.queries)

    def distil(self, student: nn.Module, target: DefendedClassifier) -> int:
        """Fit a student to the classifier's scores of noisy images, by the budget of the other methods; its queries."""
        config, images = self.config, self.splits.train
        size = min(DISTILLED_BATCH, len(images), config.budget)
        steps = max(1, config.budget // size)

        def loss(output: Tensor, x: Tensor) -> Tensor:
            return F.mse_loss(output, target.ask(x))

        stage = StageConfig(learning_rate=1e-3, batch_size=size, steps=steps)
        batches = self.batches("student", images, stage, steps, target=NOISY)
        self.by_autograd(self.run.path / "student", student, stage, loss, batches, settings={})
        return steps * size

    def ratios(
        self, denoiser: Denoiser, target: DefendedClassifier, images: data.Dataset
    ) -> tuple[dict[str, float], int]:
        """Part of each convolution that a step takes, and the queries to find it; found once, and kept."""
        kept = self.run.read(RATIOS_FILE)
        if kept is None:
            batch = self.batches("ranking", images, self.config.finetuning, 1, target=LABEL).batch(0, 0)
            keep, queries = layer_shares(self.config, denoiser, target.ask, batch)
            kept = {"keep": keep, "queries": queries}
            self.run.write(RATIOS_FILE, kept)
        with read_from(self.run.path / RATIOS_FILE, advice="put it back, or start the run again with another --out"):
            shares = {name: float(share) for name, share in kept["keep"].items()}, int(kept["queries"])
        self.run.keep_input(RATIOS_FILE, kept)
        return shares

    def finetune(self, fine: Finetuning, images: data.Dataset) -> None:
        """Train the denoiser by the classifier's answers, within the budget."""
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
        Stage(
            folder=self.run.path / "finetuning",
            run=self.run,
            settings={"config": asdict(config)},
            config=stage,
            model=fine.model,
            kept=fine.denoiser,
            source=fine.source,
            batches=self.batches("finetuning", images, stage, steps, target=LABEL),
        ).train(self.stop, self.console)
        self._keep("finetuning", fine.denoiser)

    # Of every stage ---------------------------------------------------------------------------------------------------

    def built(self, make: Callable[..., Network], *args: Any, **options: Any) -> Network:
        """A network at initial weights that are a function of the seed."""
        with seeded_scope(derive_seed(self.config.seed, "weights"), torch.device("cpu")):
            return make(*args, **options)

    def batches(
        self,
        name: str,
        images: data.Dataset,
        stage: StageConfig,
        steps: int,
        *,
        target: str,
        sigma: float | None = None,
    ) -> NoisyBatches:
        """Batches of a stage, with noise of the configuration by default."""
        return NoisyBatches.of(
            images,
            batch_size=stage.batch_size,
            sigma=self.config.sigma if sigma is None else sigma,
            steps=steps,
            target=target,
            seed=derive_seed(self.config.seed, name) % 2**31,
        )

    def by_autograd(
        self,
        folder: Path,
        model: nn.Module,
        stage: StageConfig,
        loss: Callable[[Tensor, Tensor], Tensor],
        batches: NoisyBatches,
        *,
        settings: dict[str, Any],
    ) -> None:
        """Train a model by autograd in a folder in which other runs may be at work."""
        config = self.config
        common = {"data": asdict(config.data), "seed": config.seed, "sigma": config.sigma, "name": folder.name}
        with alone(folder, self.stop):
            Stage(
                folder=folder,
                run=self.run,
                settings={**common, **settings},
                config=stage,
                model=model,
                source=Autograd(model, loss=loss, seed=config.seed),
                batches=batches,
            ).train(self.stop, self.console)
        self._keep(folder.name, model)

    def _keep(self, stage: str, model: nn.Module) -> None:
        """Hold the run to the result of a stage, which a later process reads again."""
        self.run.keep_input(f"the result of the stage {stage}", safetensors.torch.save(snapshot(model)))


def load_pair(
    folder: Path, data_dir: str | Path | None = None
) -> tuple[DefenseConfig, nn.Module, DefendedClassifier, data.Splits]:
    """The denoiser and the classifier of a run that has finished, its configuration and its images.

    Raises:
        RunFolderError: the folder holds no defense that has finished.
    """
    config, classifier = settings_of(folder)
    run = RunFolder.reopen(folder, config=_record(config, classifier))
    summary = run.read_summary()
    if summary is None:
        raise RunFolderError(
            f"{folder} holds no defense that has finished; make one with `deepzero defend`, or go on with "
            f"`{resumed_by(run)}`"
        )
    splits = read_data(config.data, data_dir)
    channels = splits.train.image_shape[0]
    with seeded_scope(config.seed, torch.device("cpu")):  # initial weights, which are not kept
        front: nn.Module = make_denoiser(config.denoiser, channels)
        if config.method == names.SMOOTHING:
            front = nn.Identity()
        if config.method in names.AUTOENCODED:
            halves = Autoencoder(config.autoencoder)
            front = nn.Sequential(nn.Sequential(front, halves.encoder), halves.decoder)
    with read_from(run.weights, advice=run.written_again):
        front.load_state_dict(run.read_weights())
    with read_from(folder / RECORD, advice="train a new defense"):
        own = Path(run.record["stages"]) / "classifier" / CLASSIFIER
    target = load_target(own if classifier is None else classifier)
    if target.sha256 != summary.get("classifier_sha256"):
        raise RunFolderError(
            f"{target.name} is another classifier than the one that {folder} was trained for: its content has changed "
            "since; put the old file back, or train a new defense"
        )
    return config, front.eval(), target, splits
