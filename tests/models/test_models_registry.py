from __future__ import annotations

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
    ],
)
def test_bad_requests_say_what_to_type(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        models.build(name, **options)
