"""LocalMixer: a mixer of patches and channels whose blocks have losses of their own.

M. Ren, S. Kornblith, R. Liao, G. Hinton, "Scaling Forward Gradient with Local Losses", ICLR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError

LARGEST_SCALE = 0.1


class TokenMixing(nn.Module):
    """A fully connected layer over the tokens, the same for every channel; then each token is normalized.

    Shapes: ``[N, tokens, channels] -> [N, tokens, channels]``.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.fc = nn.Linear(tokens, tokens)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        mixed: Tensor = self.fc(x.transpose(1, 2)).transpose(1, 2)
        return F.layer_norm(mixed, mixed.shape[-1:])


class ChannelMixing(nn.Module):
    """A fully connected layer over the channels, the same for every token; then each token is normalized.

    Shapes: ``[N, tokens, in_channels] -> [N, tokens, channels]``.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, channels)

    def forward(self, x: Float[Tensor, "b t c_in"]) -> Float[Tensor, "b t c"]:
        mixed: Tensor = self.fc(x)
        return F.layer_norm(mixed, mixed.shape[-1:])


class GroupMixing(nn.Module):
    """A fully connected layer within each group of channels; then each group of each token is normalized.

    Shapes: ``[N, tokens, channels] -> [N, tokens, channels]``.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        width = channels // groups
        self.weight = nn.Parameter(torch.empty(groups, width, width))
        self.bias = nn.Parameter(torch.empty(groups, width))

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        grouped = torch.unflatten(x, -1, self.bias.shape)
        mixed = torch.einsum("btgi,gio->btgo", grouped, self.weight) + self.bias
        return F.layer_norm(mixed, mixed.shape[-1:]).flatten(2)


class MixerBlock(nn.Module):
    """Normalized layers, each followed by a ReLU; with ``residual`` the block's input is added before the last one.

    Shapes: ``[N, tokens, in_channels] -> [N, tokens, channels]``.
    """

    def __init__(self, layers: Iterable[nn.Module], *, residual: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.residual = residual

    def forward(self, tokens: Float[Tensor, "b t c_in"]) -> Float[Tensor, "b t c"]:
        return self.states(tokens)[-1]

    def states(self, tokens: Float[Tensor, "b t c_in"], noise: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The input of every layer, then the block's output.

        Entry ``i + 1`` is the output of layer ``i`` after its ReLU, so it is 0 where the ReLU is closed. ``noise``, one
        tensor of that shape for each layer, is added to what the layer puts out before the ReLU.
        """
        states = [tokens]
        for index, layer in enumerate(self.layers):
            activity = layer(states[-1])
            if noise is not None:
                activity = activity + noise[index]
            if self.residual and index == len(self.layers) - 1:
                activity = activity + tokens
            states.append(F.relu(activity))
        return states


class LocalMixer(nn.Module):
    """A mixer whose every block has a linear head, so that each block can learn from a loss of its own.

    The image is cut into ``patches`` x ``patches`` patches, the tokens. Block 0 is a fully connected layer over the
    channels and one within groups of channels; every later block is one over the tokens, one over the channels, one
    within groups, and a residual connection. All are followed by layer normalization (no affine part) and a ReLU. The
    normalization is over the channels of a token, or of a group of a token; it cancels the bias of the layer over the
    tokens. A head is a linear layer on the mean token; the final head starts at 0, so the first logits are 0.

    Weights are drawn from :math:`N(0, s^2)` with :math:`s = \\min(2 / \\sqrt{\\text{fan-in}}, 0.1)`, biases are 0. The
    further normalizations that the authors' code has for ImageNet are left out, as in its settings for CIFAR-10.

    The paper's names are size/patches/groups, where the size stands for the number of channels: S 256, M 512, L 2048.
    S/1/1 (271,892 parameters) and M/1/16 (429,076) have one block and are for MNIST; M/8/16 (918,770, the defaults) and
    L/8/64 (13,074,674) have four and are for CIFAR-10.

    Shapes: ``[N, in_channels, image_size, image_size] -> [N, num_classes]`` (logits of the final head).

    Args:
        blocks: number of blocks.
        patches: patches along each side of the image.
        channels: channels of a token.
        groups: groups of the grouped layers.
        in_channels: channels of the images.
        num_classes: number of logits.
        image_size: height and width of the images, in pixels.

    Raises:
        InvalidInputError: a size is not a positive integer, the image cannot be cut into that many patches, or the
            channels into groups of at least 2.

    >>> sum(p.numel() for p in LocalMixer().parameters())
    918770
    """

    def __init__(
        self,
        *,
        blocks: int = 4,
        patches: int = 8,
        channels: int = 512,
        groups: int = 16,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> None:
        validation.counts(blocks=blocks, patches=patches, channels=channels, groups=groups)
        validation.counts(in_channels=in_channels, num_classes=num_classes, image_size=image_size)
        _require_divisible(patches=patches, image_size=image_size, channels=channels, groups=groups)
        super().__init__()
        self.patch_size = image_size // patches
        self.groups = groups
        first = [ChannelMixing(in_channels * self.patch_size**2, channels), GroupMixing(channels, groups)]
        self.blocks = nn.ModuleList(
            [MixerBlock(first, residual=False)]
            + [
                MixerBlock(
                    [TokenMixing(patches**2), ChannelMixing(channels, channels), GroupMixing(channels, groups)],
                    residual=True,
                )
                for _ in range(blocks - 1)
            ]
        )
        self.heads = nn.ModuleList(nn.Linear(channels, num_classes) for _ in range(blocks))
        self.head = nn.Linear(channels, num_classes)
        self.apply(_initialize)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        tokens = self.patchify(x)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(tokens.mean(1))
        return logits

    def patchify(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t c_in"]:
        """The patches of the images, row by row, as tokens."""
        return F.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)

    def local_logits(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """The logits of every block's head, then of the final one; a block's logits depend on that block alone.

        The tokens are detached before they enter the next block, and before the final head. So the gradient of the sum
        of all losses is what greedy training uses, and the last logits are those of :meth:`forward`.
        """
        tokens = self.patchify(x)
        logits = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            tokens = block(tokens)
            logits.append(head(tokens.mean(1)))
            tokens = tokens.detach()
        return [*logits, self.head(tokens.mean(1))]


def _require_divisible(*, patches: int, image_size: int, channels: int, groups: int) -> None:
    if image_size % patches:
        raise InvalidInputError(f"an image of {image_size} pixels cannot be cut into patches={patches} along each side")
    if channels % groups or channels == groups:
        raise InvalidInputError(
            f"channels={channels} cannot be cut into groups={groups} of at least 2 channels; the normalization of one "
            "channel alone is always 0"
        )


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        fan_in = module.in_features
    elif isinstance(module, GroupMixing):
        fan_in = module.weight.shape[1]
    else:
        return
    nn.init.normal_(module.weight, std=min(2 / math.sqrt(fan_in), LARGEST_SCALE))
    nn.init.zeros_(module.bias)
