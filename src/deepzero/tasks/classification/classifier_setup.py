"""A classifier before its first step: network, batches, coordinates and gradient source of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from deepzero import baselines, data, models
from deepzero.coordinates import CoordinateSchedule
from deepzero.estimator import CGE, RGE
from deepzero.evaluators import BatchedEvaluator, PropagationEvaluator
from deepzero.graph.cpu.expected_loops import compile_ahead
from deepzero.losses import LOSSES
from deepzero.sparsity import Alternating, DynamicRatios, Score, fo_grasp, zo_grasp
from deepzero.stopwatch import Stopwatch
from deepzero.tasks.classification.classification_config import (
    STENCILS,
    STORAGES,
    ClassificationConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.tasks.classification.coordinate_selection import (
    InitialState,
    Masks,
    Ratios,
    Selection,
    divided,
    select,
)
from deepzero.tasks.task_data import training_batches
from deepzero.team import Team
from deepzero.training import TrainingConfig
from deepzero.training.gradient_sources import Autograd, GradientSource


@dataclass(frozen=True)
class ClassifierSetup:
    """All that a training begins with.

    Attributes:
        model: at its initial weights, pruned if the run is to be.
        batches: to train on.
        selection: of the coordinates.
        source: of gradients.
        selection_seconds: time that the selection took.
    """

    model: nn.Module
    batches: data.BatchLoader
    selection: Selection
    source: GradientSource
    selection_seconds: float

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.model.parameters()).device


def set_up(
    config: ClassificationConfig,
    train_set: data.Dataset,
    device: torch.device,
    *,
    team: Team | None = None,
    known: Ratios | None = None,
) -> ClassifierSetup:
    """Make the parts of a run, each from its own part of the configuration.

    Args:
        config: of the run.
        train_set: to train on.
        device: to train on.
        team: the processes that divide the queries; None for this one alone.
        known: the ratios that were found when the run was started.
    """
    model = make_model(config.model, train_set, seed=config.seed).to(device)
    if config.estimator.method == "cge":
        compile_ahead(model, LOSSES[config.loss])
    batches = training_batches(config.data, train_set, seed=config.seed, device=device)
    watch = Stopwatch()
    initial = InitialState(
        model,
        train_set,
        loss=LOSSES[config.loss],
        step_size=config.estimator.step_size,
        batch_size=config.data.batch_size,
        seed=config.seed,
        device=device,
        team=team,
        name=config.model.name,
    )
    selection = select(config.sparsity, initial, known)
    seconds = watch.seconds()
    source = gradient_source(
        config.estimator,
        model,
        loss=LOSSES[config.loss],
        coordinates=schedule(config.sparsity, selection, step_size=config.estimator.step_size, seed=config.seed),
        seed=config.seed,
        team=team,
    )
    return ClassifierSetup(model, batches, selection, source, seconds)


def make_model(config: ModelConfig, train_set: data.Dataset, *, seed: int) -> nn.Module:
    """The network at its initial weights, for inputs such as these."""
    return models.build(
        config.name,
        num_classes=train_set.num_classes,
        input_shape=train_set.input_shape,
        seed=seed,
        **config.options,
    )


def make_optimizer(config: TrainingConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD over the trainable parameters."""
    return torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def gradient_source(
    config: EstimatorConfig,
    model: nn.Module,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    coordinates: CoordinateSchedule | Masks | None,
    seed: int,
    team: Team | None = None,
) -> GradientSource:
    """The estimator, autograd or baseline that fills ``p.grad``.

    A team divides queries; each of its processes finds autograd's gradient by itself.

    Args:
        config: of the estimator.
        model: at its initial weights, which some baselines keep.
        loss: of outputs and labels.
        coordinates: of every step; None for all. Random directions and baselines take none.
        seed: of directions and of the network's own draws.
        team: the processes that divide the queries; None for this one alone.
    """
    if config.method in baselines.names():
        return baselines.build(config.method, model, loss=loss, seed=seed, **config.options)
    if config.method == "fo":
        return Autograd(model, loss=loss, sparsity=coordinates, seed=seed)
    if config.method == "rge":
        return RGE(
            model,
            loss=loss,
            step_size=config.step_size,
            queries=config.queries,
            distribution=config.distribution,
            stencil=STENCILS[config.stencil],
            evaluator=divided(BatchedEvaluator(), team),
            seed=seed,
        )
    return CGE(
        model,
        loss=loss,
        step_size=config.step_size,
        sparsity=coordinates,
        stencil=STENCILS[config.stencil],
        evaluator=divided(
            PropagationEvaluator(storage=None if config.storage is None else STORAGES[config.storage]), team
        ),
        seed=seed,
    )


def schedule(
    config: SparsityConfig, selection: Selection, *, step_size: float, seed: int
) -> CoordinateSchedule | Masks | None:
    """The coordinates of every step, as an estimator takes them; ``step_size`` is that of an alternating ranking."""
    if selection.masks is not None:
        return selection.masks
    if config.sparsity == 0:
        return None
    if config.pattern == "alternating":
        return Alternating(config.sparsity, _score_of_step(config, step_size), seed=seed)
    return DynamicRatios(selection.ratios.keep, every=config.every, unit=config.unit, seed=seed)


def _score_of_step(config: SparsityConfig, step_size: float) -> Score:
    """The ranking of an alternating run (in float32, because it is called at every step)."""
    if config.ratios == "fo-grasp":
        return partial(fo_grasp, dtype=torch.float32)
    return partial(zo_grasp, queries=config.queries, step_size=step_size, dtype=torch.float32)
