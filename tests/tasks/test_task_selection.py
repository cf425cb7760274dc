"""Which coordinates a run queries, by every rule and pattern."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from deepzero import data, models
from deepzero.coordinates import StepContext, as_schedule
from deepzero.data.dataset import Dataset
from deepzero.evaluators import PropagationEvaluator
from deepzero.objective import NetworkObjective
from deepzero.sparsity import masks_from_scores, random, smart_ratio
from deepzero.sparsity.selection import counts_from_ratios, trainable
from deepzero.tasks import classification
from deepzero.tasks.classification.classification_config import (
    RATIOS,
    SCORES,
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.tasks.classification.classifier_setup import schedule
from deepzero.tasks.classification.coordinate_selection import InitialState, Ratios, Selection, prune, select
from deepzero.training import TrainingConfig

SPARSITY = 0.75


def config(**sparsity: object) -> ClassificationConfig:
    return ClassificationConfig(
        data=DataConfig(name="digits", batch_size=16, limit=64),
        model=ModelConfig(name="digits_cnn"),
        estimator=EstimatorConfig(method="fo"),
        sparsity=SparsityConfig(**{"sparsity": SPARSITY, "queries": 4, "per_class": 2} | sparsity),
        training=TrainingConfig(epochs=2, warmup_epochs=0, checkpoint_steps=2),
        seed=3,
    )


@pytest.fixture(scope="module")
def train_set() -> data.Dataset:
    return data.load("digits", limit=64).train


def model() -> torch.nn.Module:
    return models.build("digits_cnn", in_channels=1, image_size=8, seed=3)


def selected(
    chosen: ClassificationConfig, network: torch.nn.Module, train_set: data.Dataset, known: Ratios | None = None
) -> Selection:
    initial = InitialState(
        network,
        train_set,
        loss=F.cross_entropy,
        step_size=chosen.estimator.step_size,
        batch_size=chosen.data.batch_size,
        seed=chosen.seed,
        device=torch.device("cpu"),
    )
    return select(chosen.sparsity, initial, known)


def drawn(
    chosen: ClassificationConfig, network: torch.nn.Module, selection: Selection, step: int
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    batch = torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)
    context = StepContext(step, 0, NetworkObjective(network, F.cross_entropy), batch)
    return dict(
        as_schedule(schedule(chosen.sparsity, selection, step_size=5e-3, seed=chosen.seed)).coordinates(context)
    )


@pytest.mark.parametrize("ratios", RATIOS)
def test_every_rule_leaves_out_its_part_of_the_weights(ratios: str, train_set: Dataset) -> None:
    network = model()
    keep = selected(config(ratios=ratios), network, train_set).ratios.keep
    weights = {name: p for name, p in trainable(network).items() if p.dim() > 1}
    kept = sum(round(keep[name] * p.numel()) for name, p in weights.items())
    total = sum(p.numel() for p in weights.values())
    assert set(keep) == set(weights)
    if ratios == "cost-aware":  # equal in cost, not in number
        assert kept > (1 - SPARSITY) * total
    else:
        assert kept == pytest.approx((1 - SPARSITY) * total, abs=len(keep))


@pytest.mark.parametrize("weights", ["equal", "smart-ratio", "sensitivity"])
def test_cost_aware_ratios_take_the_work_of_smart_ratio_and_no_more(weights: str, train_set: Dataset) -> None:
    network = model()
    selection = selected(config(ratios="cost-aware", weights=weights), network, train_set)
    objective = NetworkObjective(network, F.cross_entropy)
    batch = train_set.inputs[:16].float(), train_set.labels[:16]
    work = PropagationEvaluator().work(objective, *batch)
    parameters = trainable(network)

    def cost(ratios: dict[str, float]) -> int:
        counts = counts_from_ratios(ratios, parameters)
        return sum(work[name] * counts.get(name, p.numel()) for name, p in parameters.items())

    budget = cost(smart_ratio(network, SPARSITY))
    one_of_each = sum(work[name] for name in selection.ratios.keep)
    assert budget - one_of_each <= cost(selection.ratios.keep) <= budget


def test_sensitivity_takes_a_few_queries_of_each_layer(train_set: Dataset) -> None:
    selection = selected(config(ratios="cost-aware", weights="sensitivity"), model(), train_set)
    assert selection.ratios.queries == 1 + 4 * 64  # each of the four layers has more than 64 weights


@pytest.mark.parametrize("ratios", SCORES)
def test_a_static_pattern_keeps_the_best_ranked_weights(ratios: str, train_set: Dataset) -> None:
    network = model()
    chosen = config(ratios=ratios, pattern="static")
    selection = selected(chosen, network, train_set)
    first, later = (drawn(chosen, network, selection, step) for step in (0, 7))
    assert all(torch.equal(first[name], later[name]) for name in first)
    if ratios == "random":
        best = masks_from_scores(random(network, seed=3), SPARSITY)
        assert all(torch.equal(selection.masks[name], best[name]) for name in best)


def test_a_dynamic_pattern_is_drawn_anew_and_known_ratios_are_not_sought_again(train_set: Dataset) -> None:
    network, known = model(), Ratios({"fc.weight": 0.5}, queries=11)
    chosen = config(ratios="zo-grasp")
    selection = selected(chosen, network, train_set, known)
    assert selection.ratios is known
    first, later = (drawn(chosen, network, selection, step)["fc.weight"] for step in (0, 7))
    assert len(first) == len(later) == 160
    assert not torch.equal(first, later)


def test_an_alternating_pattern_follows_the_weights(train_set: Dataset) -> None:
    chosen, network = config(pattern="alternating"), model()
    selection = selected(chosen, network, train_set)
    before = drawn(chosen, network, selection, 0)
    with torch.no_grad():
        network.fc.weight.mul_(100)
    after = drawn(chosen, network, selection, 0)
    assert len(after["fc.weight"]) > len(before["fc.weight"])


def test_zo_grasp_takes_its_queries(train_set: Dataset) -> None:
    assert selected(config(ratios="zo-grasp"), model(), train_set).ratios.queries == 2 * (4 + 1)


def test_pruned_weights_are_zero_and_stay_so(tmp_path: Path, train_set: Dataset) -> None:
    chosen = config(ratios="magnitude", pattern="static", prune=True)
    network = model()
    masks = selected(chosen, network, train_set).masks
    assert masks is not None
    result = classification.train(chosen, out=tmp_path / "run")
    for name, parameter in result.model.named_parameters():
        if parameter.dim() > 1:
            assert torch.count_nonzero(parameter[~masks[name]]) == 0
            assert torch.count_nonzero(parameter[masks[name]]) > 0
    prune(network, masks)
    assert sum(int(torch.count_nonzero(p)) for p in network.parameters() if p.dim() > 1) == sum(
        int(mask.sum()) for name, mask in masks.items() if mask.dim() > 1
    )


def test_a_pruned_run_resumes_bitwise(tmp_path: Path) -> None:
    chosen = config(ratios="zo-grasp", pattern="static", prune=True)
    whole = classification.train(chosen, out=tmp_path / "whole")
    broken = classification.train(chosen, out=tmp_path / "broken", max_seconds=1e-9)
    assert broken.stopped is not None
    again = classification.train(chosen, out=tmp_path / "broken", resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_the_learning_rate_follows_its_schedule(decay: str, tmp_path: Path) -> None:
    chosen = replace(config(), training=TrainingConfig(epochs=2, warmup_epochs=0, schedule=decay, learning_rate=0.5))
    classification.train(replace(chosen, sparsity=SparsityConfig()), out=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rates = [float(line.split('"learning_rate": ')[1].rstrip("}")) for line in lines if '"learning_rate"' in line]
    expected = {"constant": 0.5, "linear": 0.25, "cosine": 0.25}[decay]
    assert rates[0] == 0.5
    assert rates[len(rates) // 2] == pytest.approx(expected)
