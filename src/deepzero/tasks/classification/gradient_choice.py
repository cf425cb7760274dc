"""From a configuration to a source of gradients: an estimator, autograd, or a baseline."""

from __future__ import annotations

from torch import nn

from deepzero import baselines
from deepzero.estimator import CGE, RGE
from deepzero.evaluators import BatchedEvaluator, PropagationEvaluator
from deepzero.losses import LOSSES
from deepzero.tasks.classification.classification_config import STENCILS, ClassificationConfig
from deepzero.tasks.classification.coordinate_selection import Selection, divided, schedule
from deepzero.team import Team
from deepzero.training.gradient_sources import Autograd, GradientSource


def gradient_source(
    config: ClassificationConfig, model: nn.Module, selection: Selection, team: Team | None = None
) -> GradientSource:
    """What fills ``p.grad``; queries are divided among a team, autograd's gradient is found by each for itself.

    The model is at its initial weights, which some baselines keep.
    """
    choice, loss, seed = config.estimator, LOSSES[config.loss], config.seed
    if choice.method in baselines.names():
        return baselines.build(choice.method, model, loss=loss, seed=seed, **choice.options)
    if choice.method == "fo":
        return Autograd(model, loss=loss, sparsity=schedule(config, selection), seed=seed)
    if choice.method == "rge":
        return RGE(
            model,
            loss=loss,
            step_size=choice.step_size,
            queries=choice.queries,
            distribution=choice.distribution,
            stencil=STENCILS[choice.stencil],
            evaluator=divided(BatchedEvaluator(), team),
            seed=seed,
        )
    return CGE(
        model,
        loss=loss,
        step_size=choice.step_size,
        sparsity=schedule(config, selection),
        stencil=STENCILS[choice.stencil],
        evaluator=divided(PropagationEvaluator(), team),
        seed=seed,
    )
