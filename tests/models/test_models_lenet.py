from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_agrees, initialize, normal, ramp_loss, some_coordinates
from torch import Tensor

from deepzero.errors import InvalidInputError
from deepzero.models import LeNet, build


@pytest.mark.parametrize(("channels", "size", "parameters"), [(3, 32, 62_006), (1, 28, 44_426)])
def test_parameter_counts_are_the_papers(channels: int, size: int, parameters: int) -> None:
    model = build("lenet", in_channels=channels, image_size=size)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.ones(2, channels, size, size)).shape == (2, 10)


@pytest.mark.parametrize(
    ("size", "options"),
    [(8, {"kernel_size": 3, "padding": 1}), (4, {"kernel_size": 3, "padding": 1}), (16, {}), (8, {"kernel_size": 2})],
)
def test_other_images(size: int, options: dict[str, int]) -> None:
    model = build("lenet", in_channels=1, num_classes=7, image_size=size, **options)
    assert model(torch.ones(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_the_smallest_image_is_the_one_that_the_message_names(kernel_size: int, padding: int) -> None:
    if padding >= kernel_size:
        with pytest.raises(InvalidInputError, match="padding"):
            LeNet(kernel_size=kernel_size, padding=padding)
        return
    options = {"in_channels": 1, "kernel_size": kernel_size, "padding": padding}
    least = next(size for size in range(1, 40) if works(LeNet, size, options))
    assert LeNet(image_size=least, **options)(torch.ones(2, 1, least, least)).shape == (2, 10)
    if least > 1:
        with pytest.raises(InvalidInputError, match=f"at least {least}x{least} pixels, got image_size={least - 1}"):
            LeNet(image_size=least - 1, **options)


def works(model: type[LeNet], size: int, options: dict[str, int]) -> bool:
    try:
        model(image_size=size, **options)
    except InvalidInputError:
        return False
    return True


def normalized_by_definition(model: LeNet, norm: float, x: Tensor) -> Tensor:
    """Every weight scaled to ``norm``; the bias of a layer divided by all factors up to it."""
    factor = 1.0
    for name in ("conv1", "conv2", "fc1", "fc2", "fc3"):
        layer = getattr(model, name)
        scale = layer.weight.detach().square().sum().sqrt().item() / norm
        factor *= scale
        weight, bias = layer.weight / scale, layer.bias / factor
        if name.startswith("conv"):
            x = F.max_pool2d(F.conv2d(x, weight, bias, padding=layer.padding).clamp_min(0), 2)
        else:
            x = F.linear(x.flatten(1), weight, bias)
            x = x if name == "fc3" else x.clamp_min(0)
    return x


def test_the_normalized_network_has_weights_of_that_norm() -> None:
    options = {"in_channels": 2, "image_size": 8, "kernel_size": 3, "padding": 1}
    model = initialize(LeNet(norm=3.0, **options))
    x = normal(4, 2, 8, 8)
    torch.testing.assert_close(model(x), normalized_by_definition(model, 3.0, x), rtol=1e-10, atol=1e-12)
    plain = LeNet(**options).double()
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(model(x), plain(x))


def test_growing_all_weights_and_biases_alike_changes_nothing_when_normalized() -> None:
    model = initialize(LeNet(norm=1.0, in_channels=1, image_size=16))
    x = normal(3, 1, 16, 16)
    before = model(x)
    with torch.no_grad():  # the homogeneity of degree one in each layer's weight and what comes after it
        for depth, name in enumerate(("conv1", "conv2", "fc1", "fc2", "fc3"), start=1):
            getattr(model, name).weight.mul_(2.0)
            getattr(model, name).bias.mul_(2.0**depth)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", [None, 3.0])
def test_difference_propagation_agrees_with_full_forwards(norm: float | None) -> None:
    model = initialize(LeNet(norm=norm, in_channels=1, image_size=8, kernel_size=3, padding=1))
    assert_agrees(model, ramp_loss, normal(4, 1, 8, 8), sparsity=some_coordinates(model, most=8))


def test_uniform_initialization_is_uniform_in_every_parameter() -> None:
    model = build("lenet", init="uniform", seed=3)
    for parameter in model.parameters():
        assert parameter.abs().max() <= 1
        assert parameter.numel() < 400 or parameter.std().item() == pytest.approx(3**-0.5, rel=0.1)
    assert max(p.abs().max().item() for p in build("lenet", seed=3).parameters()) < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"num_classes": True}, "num_classes"),
        ({"image_size": 8}, "at least 16x16 pixels, got image_size=8; choose kernel_size=3, padding=1"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"padding": -1}, "padding"),
        ({"norm": 0.0}, "norm=3.0"),
        ({"norm": float("nan")}, "norm"),
        ({"norm": True}, "norm"),
        ({"init": "normal"}, "default, uniform"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        LeNet(**options)
