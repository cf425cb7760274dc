"""Which coordinates a run queries: scores at the initial weights -> ratios or masks -> a schedule."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from deepzero.announce import announced
from deepzero.coordinates import CoordinateSchedule
from deepzero.data import BatchLoader, Dataset
from deepzero.data.loader import Batch
from deepzero.estimator import CGE
from deepzero.evaluators import (
    BatchedEvaluator,
    DistributedEvaluator,
    DivisibleEvaluator,
    Evaluator,
    PropagationEvaluator,
    SequentialEvaluator,
)
from deepzero.losses import LOSSES
from deepzero.objective import NetworkObjective
from deepzero.sparsity import (
    Alternating,
    DynamicRatios,
    Score,
    cost_aware_ratios,
    fo_grasp,
    layer_ratios,
    magnitude,
    masks_from_scores,
    random,
    random_coordinates,
    smart_ratio,
    uniform_ratios,
    zo_grasp,
)
from deepzero.sparsity.selection import counts_from_ratios, trainable
from deepzero.tasks.classification.classification_config import ClassificationConfig
from deepzero.team import Team

log = logging.getLogger("deepzero")

SAMPLES = 64
"""Coordinates of a layer from which its sensitivity is estimated."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Masks = Mapping[str, Bool[Tensor, " ..."]]


@dataclass(frozen=True)
class Ratios:
    """Layer-wise keep ratios (none for a dense run), and the function values that finding them took."""

    keep: dict[str, float]
    queries: int = 0


@dataclass(frozen=True)
class Selection:
    """What is known before the first step about the coordinates of a run.

    Attributes:
        ratios: layer-wise keep ratios; none for a dense or an alternating run.
        masks: the coordinates of a static run; None if they change.
    """

    ratios: Ratios
    masks: Masks | None = None


def select(
    config: ClassificationConfig,
    model: nn.Module,
    train: Dataset,
    device: torch.device,
    team: Team | None = None,
    known: Ratios | None = None,
) -> Selection:
    """Choose at the model's initial weights, and prune it if the run is to; queries are divided among a team.

    Args:
        config: of the run.
        model: at its initial weights.
        train: training images, to score weights on.
        device: where the model is.
        team: the processes of the run.
        known: the ratios that were found when the run was started.
    """
    sparse = config.sparsity
    if sparse.sparsity == 0 or sparse.pattern == "alternating":
        return Selection(Ratios({}))
    if known is not None and sparse.pattern == "dynamic":
        return Selection(known)
    start = _Start(config, model, train, device, team)
    if sparse.pattern == "dynamic":
        return Selection(Ratios(start.ratios(), start.queries))
    masks = start.masks()
    if sparse.prune:
        prune(model, masks)
    kept = {name: mask.float().mean().item() for name, mask in masks.items() if mask.dim() > 1}
    return Selection(Ratios(kept, start.queries), masks)


def schedule(config: ClassificationConfig, selection: Selection) -> CoordinateSchedule | Masks | None:
    """The coordinates of every step, as an estimator takes them."""
    sparse = config.sparsity
    if selection.masks is not None:
        return selection.masks
    if sparse.sparsity == 0:
        return None
    if sparse.pattern == "alternating":
        return Alternating(sparse.sparsity, _score_of_step(config), seed=config.seed)
    return DynamicRatios(selection.ratios.keep, every=sparse.every, unit=sparse.unit, seed=config.seed)


def prune(model: nn.Module, masks: Masks) -> None:
    """Set the weights outside the masks to zero, where they stay: their gradient is never estimated."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in masks:
                parameter.mul_(masks[name].to(parameter.device))


def divided(evaluator: DivisibleEvaluator, team: Team | None) -> Evaluator:
    """The evaluator, its work divided among a team if there is one."""
    return evaluator if team is None else DistributedEvaluator(evaluator, team)


class _Start:
    """The initial weights and what may be looked at there; counts its queries."""

    def __init__(
        self,
        config: ClassificationConfig,
        model: nn.Module,
        train: Dataset,
        device: torch.device,
        team: Team | None,
    ) -> None:
        self.config, self.model, self.train, self.device, self.team = config, model, train, device, team
        self.loss = LOSSES[config.loss]
        self.queries = 0

    def ratios(self) -> dict[str, float]:
        """Layer-wise keep ratios by the configured rule."""
        sparse = self.config.sparsity
        match sparse.ratios:
            case "smart-ratio":
                return smart_ratio(self.model, sparse.sparsity)
            case "uniform":
                return uniform_ratios(self.model, sparse.sparsity)
            case "cost-aware":
                return self._cost_aware()
            case _:
                return layer_ratios(self._scores(), sparsity=sparse.sparsity)

    def masks(self) -> Masks:
        """The best-ranked coordinates, or a draw under the ratios of a rule that ranks none."""
        sparse, seed = self.config.sparsity, self.config.seed
        if sparse.ranks:
            return masks_from_scores(self._scores(), sparse.sparsity)
        drawn = random_coordinates(self.model, self.ratios(), seed=seed)
        return drawn.masks({name: p.shape for name, p in trainable(self.model).items()})

    def _scores(self) -> dict[str, Tensor]:
        sparse, seed = self.config.sparsity, self.config.seed
        match sparse.ratios:
            case "random":
                return random(self.model, seed=seed)
            case "magnitude":
                return magnitude(self.model)
            case "fo-grasp":
                return fo_grasp(self.model, self.loss, *self._sample(sparse.per_class), seed=seed)
        cost = 2 * (sparse.queries + 1)
        self.queries += cost
        with announced(f"scoring {self.config.model.name} weights by ZO-GraSP ({cost} queries)"):
            return zo_grasp(
                self.model,
                self.loss,
                *self._sample(sparse.per_class),
                queries=sparse.queries,
                step_size=self.config.estimator.step_size,
                seed=seed,
                evaluator=divided(self._one_by_one_or_batched(), self.team),
            )

    def _one_by_one_or_batched(self) -> DivisibleEvaluator:
        """How scores are asked: float64 convolutions on a CPU take half the time one by one."""
        convolves = any(isinstance(module, CONVOLUTIONS) for module in self.model.modules())
        return SequentialEvaluator() if convolves and self.device.type == "cpu" else BatchedEvaluator()

    def _cost_aware(self) -> dict[str, float]:
        """Ratios that cost as much as Smart-Ratio's at the same sparsity, by the work of propagating a difference."""
        sparse = self.config.sparsity
        reference = smart_ratio(self.model, sparse.sparsity)
        objective = NetworkObjective(self.model, self.loss)
        work = PropagationEvaluator(verify=False).work(objective, *self._batch)
        parameters = trainable(self.model)
        counts = counts_from_ratios(reference, parameters)
        budget = sum(work[name] * counts.get(name, p.numel()) for name, p in parameters.items())
        weights = None
        if sparse.weights != "equal":
            weights = reference if sparse.weights == "smart-ratio" else self._sensitivity()
        return cost_aware_ratios(self.model, work, budget=budget, exponent=sparse.exponent, weights=weights)

    def _sensitivity(self) -> dict[str, float]:
        """Root mean square of the partial derivatives of each layer, from an estimate on a few of its coordinates."""
        parameters = {name: p for name, p in trainable(self.model).items() if p.dim() > 1}
        ratios = {name: min(1.0, SAMPLES / p.numel()) for name, p in parameters.items()}
        chosen = random_coordinates(self.model, ratios, seed=self.config.seed, always=())
        zo = CGE(
            self.model,
            loss=self.loss,
            step_size=self.config.estimator.step_size,
            sparsity=chosen,
            evaluator=divided(PropagationEvaluator(verify=False), self.team),
            seed=self.config.seed,
        )
        estimate = zo.estimate(*self._batch)
        self.queries += estimate.queries
        squares = {name: float(estimate.gradients[name].double().square().sum()) / len(chosen[name]) for name in chosen}
        least = max(max(squares.values()) * 1e-6, torch.finfo(torch.float64).tiny)
        return {name: math.sqrt(max(square, least)) for name, square in squares.items()}

    @cached_property
    def _batch(self) -> Batch:
        """A batch as the run's own, without augmentation."""
        size = min(self.config.data.batch_size, len(self.train))
        return BatchLoader(self.train, batch_size=size, shuffle=True, seed=self.config.seed, device=self.device).batch(
            0, 0
        )

    def _sample(self, per_class: int) -> Batch:
        """``per_class`` normalized images of each class, drawn at random."""
        train, seed = self.train, self.config.seed
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        labels = train.labels[order]
        chosen = [order[(labels == label).nonzero().squeeze(1)[:per_class]] for label in range(train.num_classes)]
        sample = train.subset(torch.cat(chosen))
        return BatchLoader(sample, batch_size=len(sample), device=self.device).batch(0, 0)


def _score_of_step(config: ClassificationConfig) -> Score:
    """What an alternating run ranks its weights by (in float32, because it is called at every step)."""
    sparse = config.sparsity
    if sparse.ratios == "fo-grasp":
        return partial(fo_grasp, dtype=torch.float32)
    return partial(zo_grasp, queries=sparse.queries, step_size=config.estimator.step_size, dtype=torch.float32)
