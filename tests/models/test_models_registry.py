from __future__ import annotations

from typing import Any

import pytest
import torch

from deepzero import models
from deepzero.errors import InvalidInputError

NAMES = (
    "digits_cnn",
    "mlp",
    "simple_cnn",
    "lenet",
    "local_mixer",
    "resnet18",
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "wide_cnn",
)
SIZES = {"digits_cnn": 8, "simple_cnn": 32, "lenet": 16}


def test_names() -> None:
    assert models.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_built_for_its_images(name: str) -> None:
    size = SIZES.get(name, 8)
    model = models.build(name, num_classes=3, in_channels=2, image_size=size).eval()
    with torch.no_grad():
        assert model(torch.ones(2, 2, size, size)).shape == (2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_no_module_works_in_place(name: str) -> None:
    model = models.build(name, image_size=SIZES.get(name, 8))
    assert not any(getattr(module, "inplace", False) for module in model.modules())


def test_weights_are_a_function_of_the_seed_and_the_global_state_is_untouched() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = models.build("mlp", image_size=4, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again = models.build("mlp", image_size=4, seed=1).state_dict()
    other = models.build("mlp", image_size=4, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_options_reach_the_model() -> None:
    assert sum(p.numel() for p in models.build("simple_cnn", depth=2).parameters()) == 3700


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet21", {}, "resnet20"),
        ("resnet20", {"depth": 3}, "does not take.*depth"),
        ("digits_cnn", {"image_size": 32}, "8x8"),
        ("simple_cnn", {"depth": 4, "image_size": 8}, "depth=3 or less"),
        ("mlp", {"image_size": 0}, "image_size"),
        ("mlp", {"num_classes": -1}, "num_classes"),
        ("mlp", {"input_shape": (0,)}, "columns"),
        ("mlp", {"input_shape": (3, 0, 4)}, "image_height"),
        ("mlp", {"input_shape": (3, 4)}, r"got inputs of shape \[3, 4\]"),
        ("resnet20", {"input_shape": (30,)}, "got rows of 30 columns; a model for tables is mlp"),
        ("digits_cnn", {"input_shape": (1, 8, 9)}, "got 8x9 pixels"),
        ("lenet", {"input_shape": (3, 32, 36)}, "LeNet takes square images, got 32x36 pixels"),
        ("simple_cnn", {"input_shape": (3, 64, 8)}, "got 64x8 pixels; choose depth=3 or less"),
    ],
)
def test_bad_requests_say_what_to_type(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        models.build(name, **options)


@pytest.mark.parametrize("shape", [(5,), (2, 6, 7)])
def test_an_mlp_takes_inputs_of_any_shape(shape: tuple[int, ...]) -> None:
    model = models.build("mlp", input_shape=shape, num_classes=3)
    assert model(torch.zeros(4, *shape)).shape == (4, 3)


@pytest.mark.parametrize("name", ["simple_cnn", "resnet8", "resnet18", "wide_cnn"])
def test_networks_that_pool_globally_take_images_that_are_not_square(name: str) -> None:
    model = models.build(name, input_shape=(1, 32, 40), num_classes=3)
    assert model(torch.randn(4, 1, 32, 40, generator=torch.Generator().manual_seed(0))).shape == (4, 3)


def test_the_shape_of_a_square_image_says_the_same_as_channels_and_size() -> None:
    first = models.build("lenet", in_channels=1, image_size=28).state_dict()
    second = models.build("lenet", input_shape=(1, 28, 28)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
