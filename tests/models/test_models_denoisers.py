"""Sizes that other papers state, identity at the start, and what an argument may be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepzero.errors import InvalidInputError
from deepzero.models import AUTOENCODERS, Autoencoder, DnCNN, UNetDenoiser


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"channels": 3}, 558_400), ({"channels": 1}, 556_096), ({"channels": 3, "width": 128}, 2_222_720)],
)
def test_sizes_of_the_denoiser(options: dict[str, int], expected: int) -> None:
    model = DnCNN(**options)
    assert size(model) == expected
    assert model.last.weight.numel() == 9 * options.get("width", 64) * options["channels"]


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("cifar10-192", 159_336, 159_147),
        ("stl10-576", 1_443_600, 1_443_027),
        ("mnist-192", 963, 952),
        ("imagenet-1152", 4_408_296, 4_407_147),
    ],
)
def test_sizes_of_the_autoencoders(name: str, encoder: int, decoder: int) -> None:
    model = Autoencoder(name)
    assert (size(model.encoder), size(model.decoder)) == (encoder, decoder)


SIDES = {"digits-32": 8, "mnist-192": 28, "cifar10-192": 32, "stl10-576": 96, "imagenet-1152": 224}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_images_come_back_in_their_shape(name: str) -> None:
    channels = AUTOENCODERS[name][0]
    x = torch.rand(1, channels, SIDES[name], SIDES[name])
    model = Autoencoder(name)
    code = model.encoder(x)
    assert code[0].numel() == int(name.split("-")[1])
    image = model(x)
    assert image.shape == x.shape
    assert bool(((image >= 0) & (image <= 1)).all())


@pytest.mark.parametrize(
    "make", [lambda: DnCNN(channels=2, depth=4, width=6), lambda: UNetDenoiser(channels=2, width=6)]
)
def test_denoisers_start_as_the_identity(make: object) -> None:
    model = make()  # type: ignore[operator]
    x = torch.rand(3, 2, 8, 8)
    assert torch.equal(model(x), x)
    nn.init.normal_(model.last.weight)
    assert not torch.equal(model(x), x)


def test_arguments() -> None:
    with pytest.raises(InvalidInputError, match="depth must be at least 2"):
        DnCNN(depth=1)
    with pytest.raises(InvalidInputError, match="width must be an integer"):
        UNetDenoiser(width=0)
    with pytest.raises(InvalidInputError, match="unknown autoencoder 'mnist'; choose one of digits-32"):
        Autoencoder("mnist")
