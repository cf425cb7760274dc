"""LeNet: two convolutions and three linear layers, the network on which pattern search was tried.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition", Proceedings of
the IEEE, 1998; with ReLU and max pooling as in P. Chiang et al., "Loss Landscapes are All You Need: Neural Network
Generalization Can Be Explained Without the Implicit Bias of Gradient Descent", ICLR 2023.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError

CHANNELS = (6, 16)
WIDTHS = (120, 84)
INITS = ("default", "uniform")


class LeNet(nn.Module):
    """Two blocks of convolution, ReLU and 2x2 max pooling with 6 and 16 channels; linear layers to 120, 84, classes.

    A block turns :math:`s` pixels along a side into :math:`\\lfloor (s + 2 p - k + 1) / 2 \\rfloor`, where :math:`k` is
    ``kernel_size`` and :math:`p` is ``padding``. So the defaults need images of 16 pixels or more; for 8x8 images
    choose ``kernel_size=3, padding=1``.

    With ``norm`` :math:`c` the logits are those of the normalized network,

    .. math:: \\hat f(x) = f(x) \\Big/ \\prod_{l=1}^{5} \\frac{\\lVert W_l \\rVert_2}{c},

    which is :math:`f` with every weight tensor scaled to the L2 norm :math:`c`, and the bias of layer :math:`l` divided
    by :math:`\\prod_{k \\le l} \\lVert W_k \\rVert_2 / c`: ReLU and max pooling commute with positive factors. Chiang
    et al. search on it with :math:`c = 3`, so that the loss cannot fall by growing weights alone. The parameters
    themselves are not scaled.

    Shapes: ``[N, in_channels, image_size, image_size] -> [N, num_classes]`` (logits).

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        image_size: height and width of the images, in pixels.
        kernel_size: of both convolutions.
        padding: zeros around the input of both convolutions.
        norm: :math:`c`; None for the plain network.
        init: ``"default"`` (PyTorch's) or ``"uniform"``: every parameter uniform in [-1, 1], as Chiang et al. start.

    Raises:
        InvalidInputError: a size, the norm or the initialization is not one of these; the image is too small.

    >>> sum(p.numel() for p in LeNet().parameters())
    62006
    >>> sum(p.numel() for p in LeNet(in_channels=1, image_size=28).parameters())
    44426
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
        kernel_size: int = 5,
        padding: int = 0,
        norm: float | None = None,
        init: str = "default",
    ) -> None:
        validation.counts(in_channels=in_channels, num_classes=num_classes)
        size = _final_size(image_size, kernel_size, padding)
        _require_options(norm, init)
        super().__init__()
        self.norm = norm
        self.conv1 = nn.Conv2d(in_channels, CHANNELS[0], kernel_size, padding=padding)
        self.conv2 = nn.Conv2d(CHANNELS[0], CHANNELS[1], kernel_size, padding=padding)
        self.fc1 = nn.Linear(CHANNELS[1] * size**2, WIDTHS[0])
        self.fc2 = nn.Linear(WIDTHS[0], WIDTHS[1])
        self.fc3 = nn.Linear(WIDTHS[1], num_classes)
        if init == "uniform":
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -1, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc3(F.relu(self.fc2(x)))
        return logits if self.norm is None else logits / self._scale(self.norm)

    def _scale(self, norm: float) -> Float[Tensor, ""]:
        """The product of all layers' weight norms, each over ``norm``."""
        layers = (self.conv1, self.conv2, self.fc1, self.fc2, self.fc3)
        norms = [torch.linalg.vector_norm(layer.weight) / norm for layer in layers]
        product: Tensor = norms[0] * norms[1] * norms[2] * norms[3] * norms[4]
        return product


def _final_size(image_size: int, kernel_size: int, padding: int) -> int:
    """Pixels along a side of the maps that enter the linear layers."""
    validation.counts(image_size=image_size, kernel_size=kernel_size)
    if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding < kernel_size:
        raise InvalidInputError(f"padding must be an integer from 0 to kernel_size - 1, got {padding!r}")
    size = image_size
    for _ in CHANNELS:
        size = (size + 2 * padding - kernel_size + 1) // 2
    if size < 1:
        least = _smallest_image(kernel_size, padding)
        raise InvalidInputError(
            f"lenet with kernel_size={kernel_size}, padding={padding} needs images of at least {least}x{least} pixels, "
            f"got image_size={image_size}; choose kernel_size=3, padding=1, which works from 4x4 on"
        )
    return size


def _smallest_image(kernel_size: int, padding: int) -> int:
    size = 1
    for _ in CHANNELS:
        size = max(1, 2 * size + kernel_size - 1 - 2 * padding)
    return size


def _require_options(norm: float | None, init: str) -> None:
    real = isinstance(norm, (int, float)) and not isinstance(norm, bool)
    if norm is not None and not (real and math.isfinite(norm) and norm > 0):
        raise InvalidInputError(f"norm must be None or a finite number above 0, got {norm!r}; try norm=3.0")
    if init not in INITS:
        raise InvalidInputError(f"init must be one of {', '.join(INITS)}; got {init!r}")
