"""Pieces of programs: modules that map ``[b, 4, 4, 4]`` to itself, each with one habit of real code in it.

What a piece does between steps is in ``change``: annealed attributes, flags, replaced tensors, hooks, another mode.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

CHANNELS = 4


class Piece(nn.Module):
    """A part of a network; most do nothing between steps."""

    def change(self) -> None:
        """What the user's code does to it between two steps."""


def mixing() -> nn.Linear:
    """A linear map of the last dimension."""
    return nn.Linear(CHANNELS, CHANNELS)


class Convolution(Piece):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))


class TransposedWeight(Piece):
    """A parameter that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS).t())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class ExpandedInput(Piece):
    """A buffer that is expanded from one entry, and a parameter that is cut out of another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor([[1.2]]).expand(CHANNELS, CHANNELS))
        self.weight = nn.Parameter(torch.randn(CHANNELS, 2 * CHANNELS)[:, ::2])

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain)


class Temperature(Piece):
    def __init__(self) -> None:
        super().__init__()
        self.tau = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / self.tau)

    def change(self) -> None:
        self.tau *= 0.5


class NestedOption(Piece):
    """A number in a dictionary in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.options: list[dict[str, Any]] = [{"gain": 1.0}]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.options[0]["gain"]

    def change(self) -> None:
        self.options[0]["gain"] += 0.5


class Flag(Piece):
    def __init__(self) -> None:
        super().__init__()
        self.smooth = False

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if self.smooth else F.relu(x)

    def change(self) -> None:
        self.smooth = not self.smooth


class Depth(Piece):
    """A layer that is applied once more after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.depth = mixing(), 1

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.depth):
            x = torch.tanh(self.layer(x))
        return x

    def change(self) -> None:
        self.depth += 1


class ReplacedTensor(Piece):
    """A plain tensor that is no buffer, and that is another one after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.linspace(0.5, 1.5, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x.dtype)

    def change(self) -> None:
        self.mask = self.mask.flip(0) + 0.1


class OverwrittenTensor(ReplacedTensor):
    def change(self) -> None:
        self.mask.mul_(0.7)


class ChangedBuffer(Piece):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.linspace(0.5, 1.5, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask

    def change(self) -> None:
        self.mask = self.mask * 0.5


class WrittenCounter(Piece):
    """A buffer that forward writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x * (1 + 0.1 * self.count)


class AssignedCounter(Piece):
    """A buffer that forward assigns."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x * (1 + 0.1 * self.count)


class MovingAverage(Piece):
    """A buffer that follows what passes, as batch norm's do, by assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()
        self.register_buffer("mean", torch.zeros(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean((0, 1, 2))
        return h - self.mean


class PythonCounter(Piece):
    """An attribute that forward counts up."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.1 * self.calls)


class Cached(Piece):
    """A tensor made at the first call and kept."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.positions is None:
            self.positions = torch.arange(CHANNELS, dtype=x.dtype)
        return x + 0.1 * self.positions


class BatchNorm(Piece):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x))


class InstanceNorm(Piece):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(CHANNELS, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(x))


class EvalLater(BatchNorm):
    """Frozen statistics from the second step on."""

    def change(self) -> None:
        self.norm.eval()


class Dropout(Piece):
    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.3

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.rate, self.training)

    def change(self) -> None:
        self.rate = 0.6


class DropoutElsewhere(Piece):
    """Dropout on other layouts than that of the input: transposed, of a slice, of whole channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.layer(x).transpose(1, 3), 0.3, self.training).transpose(1, 3)
        return F.dropout2d(torch.cat([F.dropout(x[:, ::2], 0.2, self.training), x[:, 1::2]], 1), 0.3, self.training)


class Noise(Piece):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((CHANNELS,), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.randn_like(x)


class Bernoulli(Piece):
    """Draws whose chances depend on a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.chance = nn.Parameter(torch.zeros(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.chance).expand(x.shape)
        return x * (torch.bernoulli(p.contiguous()) - p + 1)


class DataBranch(Piece):
    """Python's control flow on the values of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return torch.tanh(h) if h.mean() > 0 else torch.sigmoid(h)


class Item(Piece):
    """A number taken out of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h / (1 + h.abs().max().item())


class NumPyInside(Piece):
    """A round trip through NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return x + torch.from_numpy(h.detach().numpy() ** 2)


class PlainList(Piece):
    """Tensors in a plain list: no parameters, and written in place between steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = [nn.Parameter(torch.linspace(-1, 1, CHANNELS)), nn.Parameter(torch.ones(CHANNELS))]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights[0].to(x.dtype) + self.weights[1].to(x.dtype)

    def change(self) -> None:
        with torch.no_grad():
            self.weights[0].mul_(0.5)


class Tied(Piece):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mixing(), mixing()
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Shared(Piece):
    """One module in two places, and its weight used once more by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([mixing()])
        self.layers.append(self.layers[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](torch.tanh(self.layers[0](x))) @ self.layers[0].weight.t()


class Hooked(Piece):
    """One more hook on a layer after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def change(self) -> None:
        self.layer.register_forward_hook(lambda module, arguments, output: 0.5 * output + 0.1)


class Frozen(Piece):
    """Fewer trainable parameters after the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def change(self) -> None:
        self.layer.bias.requires_grad_(requires_grad=False)


class ReplacedLayer(Piece):
    """Another layer of the same shape after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))

    def change(self) -> None:
        layer = mixing().to(self.layer.weight.dtype)
        layer.load_state_dict({name: 0.5 * value.flip(0) for name, value in self.layer.state_dict().items()})
        self.layer = layer


class ReplacedMethod(Piece):
    """Another forward after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)

    def change(self) -> None:
        self.activation = torch.sigmoid


class SinglePrecision(Piece):
    """A layer in float32, whatever is around it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight.float(), self.layer.bias.float()
        return F.linear(x.float(), weight, bias).to(x.dtype)


class Detached(Piece):
    """Function values know nothing of ``detach``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h * torch.tanh(h.detach())


class WeightNorm(Piece):
    def __init__(self) -> None:
        super().__init__()
        self.layer = parametrizations.weight_norm(mixing())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class SpectralNorm(Piece):
    """A power iteration moves buffers in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = parametrizations.spectral_norm(mixing())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Lookup(Piece):
    """The largest channel chooses a row of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = mixing(), nn.Embedding(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h + self.table(h.argmax(-1))


class Sign(torch.autograd.Function):
    """A step with a made-up derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Binary(Piece):
    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(Sign.apply(x)) + x


class DerivativeInside(Piece):
    """Adds the derivative of an energy by its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            inputs = x.detach().requires_grad_()
            energy = torch.tanh(self.layer(inputs)).sum()
            return x + torch.autograd.grad(energy, inputs)[0]


class Recurrence(Piece):
    """A GRU over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(CHANNELS, CHANNELS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(x.shape)


class Spectrum(Piece):
    """Complex numbers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = mixing()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.fft.irfft(torch.fft.rfft(self.layer(x)) * (0.8 + 0.6j), n=CHANNELS))


RANDOM = frozenset({"Dropout", "DropoutElsewhere", "Noise", "Bernoulli"})
"""Pieces that draw random numbers."""

BRANCHING = frozenset({"DataBranch"})
"""Pieces whose control flow depends on the values of tensors."""

UNTRACEABLE = frozenset({"DataBranch", "Item", "NumPyInside", "DerivativeInside", "PythonCounter", "Cached"})
"""Pieces that leave the world of tensors, or whose attributes a trace would change."""

PIECES: dict[str, type[Piece]] = {
    piece.__name__: piece
    for piece in (
        Convolution,
        TransposedWeight,
        ExpandedInput,
        Temperature,
        NestedOption,
        Flag,
        Depth,
        ReplacedTensor,
        OverwrittenTensor,
        ChangedBuffer,
        WrittenCounter,
        AssignedCounter,
        MovingAverage,
        PythonCounter,
        Cached,
        BatchNorm,
        InstanceNorm,
        EvalLater,
        Dropout,
        DropoutElsewhere,
        Noise,
        Bernoulli,
        DataBranch,
        Item,
        NumPyInside,
        PlainList,
        Tied,
        Shared,
        Hooked,
        Frozen,
        ReplacedLayer,
        ReplacedMethod,
        SinglePrecision,
        Detached,
        WeightNorm,
        SpectralNorm,
        Lookup,
        Binary,
        DerivativeInside,
        Recurrence,
        Spectrum,
    )
}
