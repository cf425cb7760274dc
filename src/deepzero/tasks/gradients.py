"""From a configuration to a source of gradients: scores, ratios, schedule, estimator."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepzero.coordinates import CoordinateSchedule
from deepzero.data import BatchLoader, Dataset
from deepzero.estimator import CGE, RGE
from deepzero.evaluators import (
    BatchedEvaluator,
    DistributedEvaluator,
    DivisibleEvaluator,
    Evaluator,
    PropagationEvaluator,
)
from deepzero.sparsity import DynamicRatios, layer_ratios, smart_ratio, uniform_ratios, zo_grasp
from deepzero.tasks.config import STENCILS, ClassificationConfig
from deepzero.team import Team
from deepzero.training.sources import Autograd, GradientSource

log = logging.getLogger("deepzero")


@dataclass(frozen=True)
class Ratios:
    """Layer-wise keep ratios (none for a dense run), and the function values that finding them took."""

    keep: dict[str, float]
    queries: int = 0


def find_ratios(
    config: ClassificationConfig, model: nn.Module, train: Dataset, device: torch.device, team: Team | None = None
) -> Ratios:
    """The layer-wise keep ratios of a run, at the model's initial weights; queries are divided among a team."""
    sparse = config.sparsity
    if sparse.sparsity == 0:
        return Ratios({})
    if sparse.ratios == "smart-ratio":
        return Ratios(smart_ratio(model, sparse.sparsity))
    if sparse.ratios == "uniform":
        return Ratios(uniform_ratios(model, sparse.sparsity))
    log.info("scoring %s weights by ZO-GraSP with %s directions", config.model.name, sparse.queries)
    x, y = _some_of_each_class(train, sparse.per_class, config.seed, device)
    scores = zo_grasp(
        model,
        F.cross_entropy,
        x,
        y,
        queries=sparse.queries,
        step_size=config.estimator.step_size,
        seed=config.seed,
        evaluator=_divided(BatchedEvaluator(), team),
    )
    return Ratios(layer_ratios(scores, sparsity=sparse.sparsity), queries=2 * (sparse.queries + 1))


def gradient_source(
    config: ClassificationConfig, model: nn.Module, ratios: Ratios, team: Team | None = None
) -> GradientSource:
    """What fills ``p.grad``; queries are divided among a team, autograd's gradient is found by each for itself."""
    choice, loss, seed = config.estimator, F.cross_entropy, config.seed
    stencil = STENCILS[choice.stencil]
    if choice.method == "rge":
        return RGE(
            model,
            loss=loss,
            step_size=choice.step_size,
            queries=choice.queries,
            distribution=choice.distribution,
            stencil=stencil,
            evaluator=_divided(BatchedEvaluator(), team),
            seed=seed,
        )
    schedule = _schedule(config, ratios)
    if choice.method == "fo":
        return Autograd(model, loss=loss, sparsity=schedule, seed=seed)
    return CGE(
        model,
        loss=loss,
        step_size=choice.step_size,
        sparsity=schedule,
        stencil=stencil,
        evaluator=_divided(PropagationEvaluator(), team),
        seed=seed,
    )


def _divided(evaluator: DivisibleEvaluator, team: Team | None) -> Evaluator:
    return evaluator if team is None else DistributedEvaluator(evaluator, team)


def _schedule(config: ClassificationConfig, ratios: Ratios) -> CoordinateSchedule | None:
    if not ratios.keep:
        return None
    return DynamicRatios(ratios.keep, every=config.sparsity.every, unit=config.sparsity.unit, seed=config.seed)


def _some_of_each_class(train: Dataset, count: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``count`` normalized images of each class, drawn at random."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    labels = train.labels[order]
    chosen = [order[(labels == label).nonzero().squeeze(1)[:count]] for label in range(train.num_classes)]
    sample = train.subset(torch.cat(chosen))
    return BatchLoader(sample, batch_size=len(sample), device=device).batch(0, 0)
