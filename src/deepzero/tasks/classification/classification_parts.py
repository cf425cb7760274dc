"""The parts of an image-classification run, each made from its configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from deepzero import data, models
from deepzero.announce import announced
from deepzero.losses import LOSSES
from deepzero.tasks.classification.classification_config import ClassificationConfig, DataConfig
from deepzero.training import ModelFile, evaluate

EVALUATION_BATCH = 500

log = logging.getLogger("deepzero")


class OnImages(Protocol):
    """A configuration that says which images it is about."""

    @property
    def data(self) -> DataConfig:
        """Which images."""
        ...


def load_images(config: OnImages, data_dir: str | Path | None = None) -> data.Splits:
    """The images of a run: :func:`read_images` of its data."""
    return read_images(config.data, data_dir)


def read_images(images: DataConfig, data_dir: str | Path | None = None) -> data.Splits:
    """Images or a table; what was decided by a rule when they were read is said in the log.

    Raises:
        DataNotFoundError: the data set is not there.
    """
    with announced(f"reading {images.title}"):
        splits = data.load(
            images.name,
            path=images.path,
            data_dir=data_dir,
            validation=images.validation,
            test=images.test,
            target=images.target,
            image_size=images.image_size,
            limit=images.limit,
        )
    for note in splits.notes:
        log.info("%s", note)
    return splits


def make_model(config: ClassificationConfig, train_set: data.Dataset) -> nn.Module:
    """The network at its initial weights, for inputs such as these."""
    return models.build(
        config.model.name,
        num_classes=train_set.num_classes,
        input_shape=train_set.input_shape,
        seed=config.seed,
        **config.model.options,
    )


def training_batches(config: ClassificationConfig, train_set: data.Dataset, device: torch.device) -> data.BatchLoader:
    """Shuffled and augmented batches."""
    images = config.data
    augments = images.padding > 0 or images.flip
    return data.BatchLoader(
        train_set,
        batch_size=images.batch_size,
        shuffle=True,
        augmentation=data.Augmentation(padding=images.padding, flip=images.flip) if augments else None,
        drop_last=images.drop_last,
        seed=config.seed,
        device=device,
    )


def make_optimizer(config: ClassificationConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD over the trainable parameters."""
    return torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.training.learning_rate,
        momentum=config.training.momentum,
        weight_decay=config.training.weight_decay,
    )


def scorer(
    config: ClassificationConfig, images: data.Dataset, device: torch.device
) -> Callable[[nn.Module], dict[str, float]]:
    """What finds accuracy and loss of a model on some images."""
    batches = data.BatchLoader(images, batch_size=EVALUATION_BATCH, device=device)
    return lambda model: asdict(evaluate(model, batches.iterate(), LOSSES[config.loss]))


def model_file(config: ClassificationConfig, images: data.Dataset) -> ModelFile:
    """How the network is made again, and what goes in and comes out."""
    shape = list(images.input_shape)
    return ModelFile(
        target=config.model.name,
        arguments={
            "num_classes": images.num_classes,
            "input_shape": shape,
            "seed": config.seed,
            **config.model.options,
        },
        preprocessing=images.preprocessing.to_json(),
        classes=images.class_names,
        loss=config.loss,
        inputs={"shape": shape, "dtype": "float32"},
    )
