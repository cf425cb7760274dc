"""The coordinates that a run queries: scores at the initial weights -> layer-wise ratios or masks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from deepzero.announce import announced
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
from deepzero.files import read_from
from deepzero.objective import NetworkObjective
from deepzero.sparsity import (
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
from deepzero.tasks.classification.classification_config import SparsityConfig
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

    @classmethod
    def from_file(cls, path: Path, content: Mapping[str, Any]) -> Ratios:
        """The ratios that a file held.

        Raises:
            RunFolderError: it held something else.
        """
        with read_from(path, advice="start the run again with another --out"):
            keep = {str(name): float(share) for name, share in content["keep"].items()}
            if not all(0 <= share <= 1 for share in keep.values()):
                raise ValueError("a share is not from 0 to 1")
            return cls(keep, int(content["queries"]))


@dataclass(frozen=True)
class Selection:
    """The choice before the first step of the coordinates of a run.

    Attributes:
        ratios: layer-wise keep ratios; none for a dense or an alternating run.
        masks: the coordinates of a static run; None if they change.
    """

    ratios: Ratios
    masks: Masks | None = None


@dataclass(frozen=True)
class InitialState:
    """The initial weights of a run, and all that they may be judged by.

    Attributes:
        model: at its initial weights.
        train_set: to score weights on.
        loss: of outputs and labels.
        step_size: of finite differences.
        batch_size: of the run.
        seed: of the run.
        device: of the model.
        team: the processes that divide the queries; None for this one alone.
        name: of the network, for messages.
    """

    model: nn.Module
    train_set: Dataset
    loss: Callable[[Tensor, Tensor], Tensor]
    step_size: float
    batch_size: int
    seed: int
    device: torch.device
    team: Team | None = None
    name: str = "initial"


def select(config: SparsityConfig, initial: InitialState, known: Ratios | None = None) -> Selection:
    """Choose at the initial weights, and prune the model if the configuration says so.

    Args:
        config: of the sparsity.
        initial: weights, and all that they may be judged by.
        known: the ratios that were found when the run was started.
    """
    if config.sparsity == 0 or config.pattern == "alternating":
        return Selection(Ratios({}))
    if known is not None and config.pattern == "dynamic":
        return Selection(known)
    selector = _Selector(config, initial)
    if config.pattern == "dynamic":
        return Selection(Ratios(selector.ratios(), selector.queries))
    masks = selector.masks()
    if config.prune:
        prune(initial.model, masks)
    kept = {name: mask.float().mean().item() for name, mask in masks.items() if mask.dim() > 1}
    return Selection(Ratios(kept, selector.queries), masks)


def prune(model: nn.Module, masks: Masks) -> None:
    """Set the weights outside the masks to zero, for good: their gradient is never estimated."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in masks:
                parameter.mul_(masks[name].to(parameter.device))


def divided(evaluator: DivisibleEvaluator, team: Team | None) -> Evaluator:
    """The evaluator, its work divided among a team if there is one."""
    return evaluator if team is None else DistributedEvaluator(evaluator, team)


class _Selector:
    """Finds ratios and masks at the initial weights, and counts its queries."""

    def __init__(self, config: SparsityConfig, initial: InitialState) -> None:
        self.config, self.initial, self.queries = config, initial, 0

    def ratios(self) -> dict[str, float]:
        """Layer-wise keep ratios by the configured rule."""
        sparsity, model = self.config.sparsity, self.initial.model
        match self.config.ratios:
            case "smart-ratio":
                return smart_ratio(model, sparsity)
            case "uniform":
                return uniform_ratios(model, sparsity)
            case "cost-aware":
                return self._cost_aware()
            case _:
                return layer_ratios(self._scores(), sparsity=sparsity)

    def masks(self) -> Masks:
        """The best-ranked coordinates, or a draw under the ratios of a rule that ranks none."""
        model = self.initial.model
        if self.config.ranks:
            return masks_from_scores(self._scores(), self.config.sparsity)
        drawn = random_coordinates(model, self.ratios(), seed=self.initial.seed)
        return drawn.masks({name: p.shape for name, p in trainable(model).items()})

    def _scores(self) -> dict[str, Tensor]:
        initial, seed = self.initial, self.initial.seed
        match self.config.ratios:
            case "random":
                return random(initial.model, seed=seed)
            case "magnitude":
                return magnitude(initial.model)
            case "fo-grasp":
                return fo_grasp(initial.model, initial.loss, *self._sample(), seed=seed)
        cost = 2 * (self.config.queries + 1)
        self.queries += cost
        with announced(f"scoring {initial.name} weights by ZO-GraSP ({cost} queries)"):
            return zo_grasp(
                initial.model,
                initial.loss,
                *self._sample(),
                queries=self.config.queries,
                step_size=initial.step_size,
                seed=seed,
                evaluator=divided(self._one_by_one_or_batched(), initial.team),
            )

    def _one_by_one_or_batched(self) -> DivisibleEvaluator:
        """The evaluator of the scores: float64 convolutions on a CPU take half the time one by one."""
        convolves = any(isinstance(module, CONVOLUTIONS) for module in self.initial.model.modules())
        return SequentialEvaluator() if convolves and self.initial.device.type == "cpu" else BatchedEvaluator()

    def _cost_aware(self) -> dict[str, float]:
        """Ratios that cost as much as Smart-Ratio's at the same sparsity, by the work of propagating a difference."""
        model = self.initial.model
        reference = smart_ratio(model, self.config.sparsity)
        objective = NetworkObjective(model, self.initial.loss)
        work = PropagationEvaluator(verify=False).work(objective, *self._batch)
        parameters = trainable(model)
        counts = counts_from_ratios(reference, parameters)
        budget = sum(work[name] * counts.get(name, p.numel()) for name, p in parameters.items())
        weights = None
        if self.config.weights != "equal":
            weights = reference if self.config.weights == "smart-ratio" else self._sensitivity()
        return cost_aware_ratios(model, work, budget=budget, exponent=self.config.exponent, weights=weights)

    def _sensitivity(self) -> dict[str, float]:
        """Root mean square of the partial derivatives of each layer, from an estimate on a few of its coordinates."""
        initial = self.initial
        parameters = {name: p for name, p in trainable(initial.model).items() if p.dim() > 1}
        ratios = {name: min(1.0, SAMPLES / p.numel()) for name, p in parameters.items()}
        chosen = random_coordinates(initial.model, ratios, seed=initial.seed, always=())
        zo = CGE(
            initial.model,
            loss=initial.loss,
            step_size=initial.step_size,
            sparsity=chosen,
            evaluator=divided(PropagationEvaluator(verify=False), initial.team),
            seed=initial.seed,
        )
        estimate = zo.estimate(*self._batch)
        self.queries += estimate.queries
        squares = {name: float(estimate.gradients[name].double().square().sum()) / len(chosen[name]) for name in chosen}
        least = max(max(squares.values()) * 1e-6, torch.finfo(torch.float64).tiny)
        return {name: math.sqrt(max(square, least)) for name, square in squares.items()}

    @cached_property
    def _batch(self) -> Batch:
        """A batch as the run's own, without augmentation."""
        initial = self.initial
        size = min(initial.batch_size, len(initial.train_set))
        loader = BatchLoader(initial.train_set, batch_size=size, shuffle=True, seed=initial.seed, device=initial.device)
        return loader.batch(0, 0)

    def _sample(self) -> Batch:
        """``per_class`` normalized images of each class, drawn at random."""
        train_set, count = self.initial.train_set, self.config.per_class
        order = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(self.initial.seed))
        labels = train_set.labels[order]
        chosen = [order[(labels == label).nonzero().squeeze(1)[:count]] for label in range(train_set.num_classes)]
        sample = train_set.subset(torch.cat(chosen))
        return BatchLoader(sample, batch_size=len(sample), device=self.initial.device).batch(0, 0)
