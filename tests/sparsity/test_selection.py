"""Global ranking keeps exact counts; random draws are exact, uniform and a function of their seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deepzero import BlackBox
from deepzero.errors import InvalidInputError
from deepzero.sparsity import (
    SparsityWarning,
    layer_ratios_from_masks,
    magnitude,
    masks_from_scores,
    random,
    random_coordinates,
)
from deepzero.sparsity.selection import counts_from_ratios, prunable_names, trainable


def net() -> nn.Module:
    """Weights of 24, 40 and 15 entries; biases and norm of 8, 8, 8 and 3."""
    return nn.Sequential(nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.Embedding(5, 8), nn.Linear(5, 3))


WEIGHTS = {"0.weight": 24, "2.weight": 40, "3.weight": 15}


def test_by_default_convolutions_linear_layers_and_embeddings_are_thinned() -> None:
    assert prunable_names(trainable(net())) == list(WEIGHTS)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.999), st.sampled_from(["absolute", "signed"]), st.integers(0, 5))
def test_the_global_count_is_exact_and_the_others_are_true_everywhere(sparsity: float, rank: str, seed: int) -> None:
    scores = random(net(), seed=seed)
    masks = masks_from_scores(scores, sparsity, rank=rank)
    kept = sum(int(masks[name].sum()) for name in WEIGHTS)
    assert kept == max(1, 79 - round(sparsity * 79))
    assert all(mask.all() for name, mask in masks.items() if name not in WEIGHTS)
    assert {name: mask.shape for name, mask in masks.items()} == {name: p.shape for name, p in trainable(net()).items()}


@pytest.mark.parametrize(("sparsity", "queries"), [(0.8, 55_053), (0.9, 28_220), (0.95, 14_803), (0.99, 4_069)])
def test_resnet20_has_the_papers_number_of_queries(sparsity: float, queries: int) -> None:
    models = pytest.importorskip("deepzero.models")
    masks = masks_from_scores(random(models.cifar_resnet(20)), sparsity)
    assert sum(int(mask.sum()) for mask in masks.values()) == queries


def test_kept_weights_rank_at_least_as_high_as_all_others() -> None:
    scores = {
        "a": torch.randn(6, 7, generator=torch.Generator().manual_seed(0)),
        "b": torch.linspace(-1, 1, 30).view(5, 6),
    }
    absolute = masks_from_scores(scores, 0.7)
    signed = masks_from_scores(scores, 0.7, rank="signed")
    flat = torch.cat([score.flatten() for score in scores.values()])
    kept_absolute = torch.cat([mask.flatten() for mask in absolute.values()])
    kept_signed = torch.cat([mask.flatten() for mask in signed.values()])
    assert flat[kept_absolute].abs().min() >= flat[~kept_absolute].abs().max()
    assert flat[kept_signed].max() <= flat[~kept_signed].min()


def test_of_equal_scores_the_earlier_is_kept() -> None:
    masks = masks_from_scores({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, 0.25)
    assert [mask.flatten().tolist() for mask in masks.values()] == [[True] * 4, [True, True, False, False]]


def test_prunable_and_always_can_be_named() -> None:
    scores = random(net())
    thinned = masks_from_scores(scores, 0.5, prunable=["0.bias"], always=["3.bias"])
    kept = {name: int(mask.sum()) for name, mask in thinned.items()}
    assert kept == dict.fromkeys(scores, 0) | {"0.bias": 4, "3.bias": 3}


@pytest.mark.parametrize(
    ("sparsity", "options"),
    [
        (1.0, {}),
        (-0.1, {}),
        (float("nan"), {}),
        (0.5, {"rank": "abs"}),
        (0.5, {"prunable": ["nowhere"]}),
        (0.5, {"prunable": []}),
        (0.5, {"always": ["nowhere"]}),
        (0.5, {"always": ["0.weight"]}),
    ],
)
def test_bad_rankings_are_refused(sparsity: float, options: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        masks_from_scores(random(net()), sparsity, **options)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    "wrong", [[torch.ones(2, 2)], torch.ones(2, 2), {"weight": 1.0}], ids=["list", "one", "number"]
)
def test_scores_and_masks_are_tensors_by_name(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match="scores must be tensors by parameter name"):
        masks_from_scores(wrong, 0.5)
    with pytest.raises(InvalidInputError, match="masks must be tensors by parameter name"):
        layer_ratios_from_masks(wrong)


def test_scores_must_be_finite() -> None:
    with pytest.raises(InvalidInputError, match="finite"):
        masks_from_scores({"a": torch.tensor([[1.0, float("nan")]])}, 0.5)


def test_magnitude_and_random_scores() -> None:
    model = net()
    rng = torch.get_rng_state()
    assert all(
        torch.equal(score, dict(model.named_parameters())[name].abs()) for name, score in magnitude(model).items()
    )
    one, again, other = random(model, seed=1), random(model, seed=1), random(model, seed=2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])
    assert torch.equal(torch.get_rng_state(), rng)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 1), st.integers(0, 1000))
def test_draws_have_exact_counts_without_repetition(ratio: float, seed: int) -> None:
    drawn = random_coordinates(net(), {"0.weight": ratio, "2.weight": 1.0}, seed=seed)
    assert drawn["0.weight"].numel() == max(1, round(ratio * 24))
    assert drawn["0.weight"].unique().numel() == drawn["0.weight"].numel()
    assert drawn["2.weight"].tolist() == list(range(40))
    assert drawn["3.weight"].numel() == 15
    assert drawn["1.bias"].numel() == 8


def test_draws_are_uniform() -> None:
    """Each of 8 biases is drawn with probability 1/4: 100 of 400 draws, with a standard deviation of 8.7."""
    model = net()
    counts = torch.zeros(8)
    for seed in range(400):
        counts[random_coordinates(model, {"0.bias": 0.25}, seed=seed)["0.bias"]] += 1
    assert counts.sum() == 800
    assert ((counts - 100).abs() < 4 * 8.7).all()


def test_draws_differ_between_layers_of_one_shape() -> None:
    drawn = random_coordinates(net(), {"0.bias": 0.5, "1.weight": 0.5, "1.bias": 0.5}, seed=4)
    assert len({tuple(drawn[name].tolist()) for name in ("0.bias", "1.weight", "1.bias")}) > 1


def test_always_leaves_out_what_it_does_not_name() -> None:
    assert random_coordinates(net(), {"0.weight": 0.5}, always=()).names == ["0.weight"]
    assert random_coordinates(net(), {"0.weight": 0.5}, always=["3.bias"]).names == ["0.weight", "3.bias"]


def test_a_layer_keeps_at_least_one_coordinate_and_that_is_said() -> None:
    with pytest.warns(SparsityWarning, match=r"0\.weight would be left without a coordinate and keeps one"):
        assert counts_from_ratios({"0.weight": 0.001, "2.weight": 0.5}, trainable(net())) == {
            "0.weight": 1,
            "2.weight": 20,
        }


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5, float("nan"), True, "0.1"])
def test_bad_ratios_are_refused(ratio: object) -> None:
    with pytest.raises(InvalidInputError, match=r"0\.weight must lie in \(0, 1\]"):
        random_coordinates(net(), {"0.weight": ratio})  # type: ignore[dict-item]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="nowhere"):
        random_coordinates(net(), {"nowhere": 0.5})


def test_black_boxes_are_thinned_by_name() -> None:
    box = BlackBox(lambda p: 0.0, {"w": torch.zeros(10)})
    assert random_coordinates(box, {"w": 0.3}).count == 3
    with pytest.raises(InvalidInputError, match=r"prunable=\['w'\]"):
        prunable_names(trainable(box))
    with pytest.raises(InvalidInputError, match=r"nn\.Module or a dz\.BlackBox"):
        trainable({"w": torch.zeros(3)})  # type: ignore[arg-type]
