"""Layer-wise ratios: from masks, from scores, uniform, and Smart-Ratio's published numbers."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deepzero.errors import InvalidInputError
from deepzero.sparsity import (
    SparsityWarning,
    layer_ratios,
    layer_ratios_from_masks,
    masks_from_scores,
    random,
    random_coordinates,
    smart_ratio,
    uniform_ratios,
)


def resnet20_weights() -> nn.Module:
    """Only the weights of ResNet-20: 19 convolutions and a linear layer, 268,336 in all."""
    channels = [3] + [16] * 7 + [32] * 6 + [64] * 6
    convolutions = [nn.Conv2d(a, b, 3, bias=False) for a, b in itertools.pairwise(channels)]
    return nn.Sequential(*convolutions, nn.Linear(64, 10))


RESNET20 = resnet20_weights()

# Keep ratios that the authors' code of Smart-Ratio gives for ResNet-20 (J. Su et al., NeurIPS 2020).
PUBLISHED = {
    0.9: "731 662 595 533 474 418 366 317 272 230 192 157 125 98 73 52 35 21 10",
    0.8: "1000 1000 1000 1000 1000 1000 1000 738 545 461 384 315 252 196 147 105 70 42 21",
}


@pytest.mark.parametrize("sparsity", PUBLISHED)
def test_smart_ratio_reproduces_the_published_ratios(sparsity: float) -> None:
    *convolutions, linear = smart_ratio(RESNET20, sparsity).values()
    assert convolutions == pytest.approx([int(number) / 1000 for number in PUBLISHED[sparsity].split()], abs=6e-4)
    assert linear == 0.3


@pytest.mark.parametrize(("sparsity", "first", "last"), [(0.95, 0.363, 0.005), (0.99, 0.068, 0.001)])
def test_smart_ratio_at_high_sparsity(sparsity: float, first: float, last: float) -> None:
    *convolutions, linear = smart_ratio(RESNET20, sparsity).values()
    assert (convolutions[0], convolutions[-1], linear) == pytest.approx((first, last, 0.3), abs=6e-4)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 0.997), st.sampled_from([0.3, 0.5, None]))
def test_smart_ratio_meets_the_sparsity_and_falls_with_depth(sparsity: float, linear_keep: float | None) -> None:
    ratios = smart_ratio(RESNET20, sparsity, linear_keep=linear_keep)
    sizes = {name: p.numel() for name, p in RESNET20.named_parameters()}
    assert sum(ratios[name] * sizes[name] for name in ratios) == pytest.approx(268_336 * (1 - sparsity), abs=2)
    assert all(0 < ratio <= 1 for ratio in ratios.values())
    convolutions = list(ratios.values())[:-1]
    assert convolutions == sorted(convolutions, reverse=True)


def test_smart_ratio_at_sparsity_zero_keeps_everything() -> None:
    assert list(smart_ratio(RESNET20, 0).values()) == pytest.approx([1.0] * 20)


def test_smart_ratio_of_the_whole_resnet20_names_no_bias_and_no_norm() -> None:
    models = pytest.importorskip("deepzero.models")
    ratios = smart_ratio(models.cifar_resnet(20), 0.9)
    assert list(ratios.values()) == list(smart_ratio(RESNET20, 0.9).values())
    assert all(name.endswith(".weight") and "bn" not in name for name in ratios)


def test_smart_ratio_needs_room_for_convolutions() -> None:
    mlp = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(InvalidInputError, match=r"choose a smaller sparsity.*linear_keep=None"):
        smart_ratio(RESNET20, 0.9995)
    assert smart_ratio(mlp, 0.5, linear_keep=None) == {"0.weight": 0.75, "1.weight": 0.25}  # shares 6 and 2
    assert smart_ratio(mlp, 0.5) == smart_ratio(mlp, 0.5, linear_keep=None)  # there are linear layers alone
    with pytest.raises(InvalidInputError, match="linear_keep"):
        smart_ratio(RESNET20, 0.9, linear_keep=0.0)


@pytest.mark.parametrize("ratios", [uniform_ratios, smart_ratio])
@pytest.mark.parametrize("sparsity", [1.0, -1, float("nan"), "0.9"])
def test_sparsity_outside_its_range_is_refused(ratios: object, sparsity: object) -> None:
    assert callable(ratios)
    with pytest.raises(InvalidInputError, match="sparsity"):
        ratios(RESNET20, sparsity)


def test_uniform_ratios() -> None:
    ratios = uniform_ratios(RESNET20, 0.75)
    assert set(ratios.values()) == {0.25}
    assert len(ratios) == 20
    assert uniform_ratios(RESNET20, 0.5, prunable=["19.bias"]) == {"19.bias": 0.5}


def test_layer_ratios_are_the_masks_fractions_and_give_the_counts_back() -> None:
    scores = random(RESNET20, seed=3)
    ratios = layer_ratios(scores, sparsity=0.9)
    masks = masks_from_scores(scores, 0.9)
    assert ratios == layer_ratios_from_masks(masks)
    drawn = random_coordinates(RESNET20, ratios)
    assert all(drawn[name].numel() == int(masks[name].sum()) for name in ratios)


def test_layer_ratios_follow_the_scores() -> None:
    scores = {"low": torch.full((4, 5), 1.0), "high": torch.full((4, 5), -2.0)}
    scores["low"][0, :2] = 3.0
    assert layer_ratios(scores, sparsity=0.5) == {"low": 0.1, "high": 0.9}
    assert layer_ratios(scores, sparsity=0.25, rank="signed") == {"low": 0.5, "high": 1.0}


def test_an_empty_layer_keeps_one_coordinate_and_that_is_said() -> None:
    scores = {"low": torch.zeros(4, 5), "high": torch.ones(4, 5)}
    with pytest.warns(SparsityWarning, match="low would be left without a coordinate"):
        assert layer_ratios(scores, sparsity=0.75) == {"low": 0.05, "high": 0.5}
