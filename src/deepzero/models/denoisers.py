"""Networks from an image to an image of the same size: denoisers, and autoencoders in two halves."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError


class DnCNN(nn.Module):
    """Residual denoiser: ``x - net(x)``, of ``depth`` 3x3 convolutions with batch norm and ReLU between them.

    Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising" (IEEE TIP, 2017), with
    the settings of Salman et al., "Denoised Smoothing" (NeurIPS 2020): a bias in the first convolution only, batch norm
    with epsilon 1e-4 and momentum 0.95, orthogonal weights, and a last convolution of zeros, so that the network starts
    as the identity. With the default size and 3 channels it has 558,400 parameters, 1,728 of them in the last layer.

    Shapes: ``[N, channels, H, W] -> [N, channels, H, W]``.

    Args:
        channels: of the images.
        depth: convolutions, at least 2.
        width: channels between them.

    Raises:
        InvalidInputError: an argument is not a positive integer, or the depth is below 2.

    >>> sum(p.numel() for p in DnCNN(channels=3).parameters()), DnCNN(channels=3).last.weight.numel()
    (558400, 1728)
    """

    def __init__(self, *, channels: int = 3, depth: int = 17, width: int = 64) -> None:
        validation.counts(channels=channels, depth=depth, width=width)
        if depth < 2:
            raise InvalidInputError(f"depth must be at least 2, a first and a last convolution, got {depth}")
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width, eps=1e-4, momentum=0.95),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.last = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        noise: Tensor = self.last(self.features(x))
        return x - noise


class UNetDenoiser(nn.Module):
    """Residual denoiser of two scales: what is subtracted comes from a small U-Net with group norm.

    Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation" (MICCAI 2015), with one
    halving, addition in place of concatenation, and a last convolution of zeros.

    Shapes: ``[N, channels, H, W] -> [N, channels, H, W]`` with even H and W.

    Args:
        channels: of the images.
        width: channels at full size; twice as many at half of it.

    >>> import torch
    >>> UNetDenoiser(channels=1, width=8)(torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, *, channels: int = 3, width: int = 32) -> None:
        validation.counts(channels=channels, width=width)
        super().__init__()
        self.inward = _double(channels, width)
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 2, stride=2), *_double(2 * width, 2 * width))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.outward = _double(width, width)
        self.last = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        fine = self.inward(x)
        noise: Tensor = self.last(self.outward(fine + self.up(self.down(fine))))
        return x - noise


def _double(inward: int, outward: int) -> nn.Sequential:
    groups = 4 if outward % 4 == 0 else 1
    layers: list[nn.Module] = []
    for first in (inward, outward):
        layers += [nn.Conv2d(first, outward, 3, padding=1), nn.GroupNorm(groups, outward), nn.ReLU()]
    return nn.Sequential(*layers)


Layer = tuple[int, int, int, int]
"""Channels, kernel, stride and padding of a convolution."""

AUTOENCODERS: dict[str, tuple[int, tuple[Layer, ...]]] = {
    "digits-32": (1, ((8, 2, 2, 0), (16, 2, 2, 0), (32, 2, 2, 0))),
    "mnist-192": (1, ((3, 4, 2, 1), (12, 5, 3, 0))),
    "cifar10-192": (3, ((24, 4, 4, 0), (48, 3, 3, 2), (96, 4, 2, 1), (192, 2, 2, 0))),
    "stl10-576": (3, ((18, 5, 3, 1), (72, 4, 4, 0), (144, 3, 3, 2), (288, 4, 2, 1), (576, 2, 2, 0))),
    "imagenet-1152": (
        3,
        ((24, 8, 6, 0), (48, 3, 2, 0), (96, 3, 3, 0), (192, 2, 2, 1), (384, 2, 2, 1), (1152, 3, 3, 0)),
    ),
}
"""Channels of the images, and the encoder's convolutions; the decoder mirrors them. All but the first are those of
Zhang et al., "How to Robustify Black-Box ML Models? A Zeroth-Order Optimization Perspective" (ICLR 2022); the number in
a name is the size of the code."""


class Autoencoder(nn.Module):
    """Convolutions with a ReLU each down to a small code, and their mirror image, which ends in a sigmoid.

    Shapes: ``[N, channels, H, W] -> [N, channels, H, W]``; the code is ``[N, *code]``.

    Args:
        name: a name in :data:`AUTOENCODERS`.

    Raises:
        InvalidInputError: there is no such name.

    >>> model = Autoencoder("cifar10-192")
    >>> [sum(p.numel() for p in half.parameters()) for half in (model.encoder, model.decoder)]
    [159336, 159147]
    """

    def __init__(self, name: str) -> None:
        if name not in AUTOENCODERS:
            raise InvalidInputError(f"unknown autoencoder {name!r}; choose one of {', '.join(AUTOENCODERS)}")
        super().__init__()
        channels, layers = AUTOENCODERS[name]
        widths = [channels, *(layer[0] for layer in layers)]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for (inward, outward), (_, kernel, stride, padding) in zip(pairwise(widths), layers, strict=True):
            down += [nn.Conv2d(inward, outward, kernel, stride, padding), nn.ReLU()]
            up = [nn.ConvTranspose2d(outward, inward, kernel, stride, padding), nn.ReLU(), *up]
        up[-1] = nn.Sigmoid()
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        image: Tensor = self.decoder(self.encoder(x))
        return image
