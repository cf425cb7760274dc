"""Networks as papers and tutorials write them, in plain torch, tiny."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Translator(nn.Module):
    """torch's own encoder-decoder transformer, with a causal and a padding mask.

    Without the hint it looks at the values of the mask to find out that it is causal.
    """

    def __init__(self, hint: bool | None) -> None:
        super().__init__()
        self.hint = hint
        self.embedding = nn.Embedding(12, 8)
        self.body = nn.Transformer(8, 2, 1, 1, dim_feedforward=12, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 12)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        source, target = batch
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=self.head.weight.dtype)
        padding = torch.zeros(source.shape, dtype=self.head.weight.dtype).masked_fill(source == 0, -torch.inf)
        hidden = self.body(
            self.embedding(source),
            self.embedding(target),
            tgt_mask=causal,
            tgt_is_causal=self.hint,
            src_key_padding_mask=padding,
        )
        return self.head(hidden).transpose(1, 2)


class Recurrent(nn.Module):
    """Two layers in both directions, dropout between them; the mean state is classified."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.body = kind(3, 4, num_layers=2, bidirectional=True, dropout=0.3, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0].mean(1))


class UNet(nn.Module):
    """Down and up again, once by a transposed convolution and once by interpolation, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.bottom = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.join = nn.Conv2d(10, 6, 3, padding=1)
        self.last = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.first(x)
        middle = self.second(fine)
        joined = F.relu(self.join(torch.cat([self.up(self.bottom(middle)), middle], 1)))
        wide = F.interpolate(joined, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(torch.cat([wide, fine], 1))


class SpectralLayer(nn.Module):
    """Multiplies the lowest modes by complex weights."""

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(0.5 * torch.randn(channels, channels, modes, modes, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        k = self.modes
        spectrum = torch.fft.rfft2(x)
        kept = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :k, :k], self.weight)
        padded = F.pad(kept, (0, spectrum.shape[-1] - k, 0, spectrum.shape[-2] - k))
        return torch.fft.irfft2(padded, s=x.shape[-2:])


class FourierOperator(nn.Module):
    """A Fourier neural operator of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.spectral = nn.Conv2d(1, 3, 1), SpectralLayer(3, 2)
        self.skip, self.project = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        lifted = self.lift(x)
        return self.project(F.gelu(self.spectral(lifted) + self.skip(lifted)))


class Spike(torch.autograd.Function):
    """A step with a made-up derivative."""

    @staticmethod
    def forward(ctx: Any, voltage: Tensor) -> Tensor:
        ctx.save_for_backward(voltage)
        return (voltage > 0).to(voltage.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (voltage,) = ctx.saved_tensors
        return gradients[0] / (1 + (torch.pi * voltage) ** 2)


class Spiking(nn.Module):
    """Leaky integrate-and-fire neurons for four time steps."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(4, 8), nn.Linear(8, 3)
        self.leak = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor) -> Tensor:
        voltage, spikes = torch.zeros(len(x), 8, dtype=x.dtype), torch.zeros(len(x), 8, dtype=x.dtype)
        total: Any = 0
        for _ in range(4):
            voltage = self.leak * voltage * (1 - spikes) + self.inward(x)
            spikes = Spike.apply(voltage - 0.5)
            total = total + self.outward(spikes)
        return total / 4


def heat_residual(model: nn.Module, points: Tensor) -> Tensor:
    """A physics-informed loss: u_t = u_xx inside, u(0, x) = sin(pi x) at the start."""
    points = points.clone().requires_grad_()
    u = model(points)
    first = torch.autograd.grad(u.sum(), points, create_graph=True)[0]
    second = torch.autograd.grad(first[:, 1].sum(), points, create_graph=True)[0]
    start = torch.cat([torch.zeros_like(points[:, :1]), points[:, 1:]], 1)
    initial = model(start).squeeze(1) - torch.sin(torch.pi * points[:, 1])
    return (first[:, 0] - second[:, 1]).square().mean() + initial.square().mean()


class GraphNetwork(nn.Module):
    """Two rounds of messages along edges, by scatter_add and by index_add, and one by a dense adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        x, (source, target) = graph
        h = self.a(x)
        h = F.relu(torch.zeros_like(h).scatter_add(0, target[:, None].expand(-1, h.shape[1]), h[source]))
        h = self.b(h)
        h = F.elu(torch.zeros_like(h).index_add(0, target, h[source]))
        adjacency = torch.zeros(len(x), len(x), dtype=x.dtype)
        adjacency[target, source] = 1
        degree = (adjacency.sum(1) + 1).rsqrt()
        return self.head(torch.tanh(degree[:, None] * (adjacency @ (degree[:, None] * self.c(h)))))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, layer norm over channels, an inverted bottleneck, a scale of each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.scale = nn.Parameter(0.5 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.scale * self.narrow(F.gelu(self.wide(h)))
        return x + h.permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Channels weighted by what they hold on average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


def mobile_network() -> nn.Module:
    """A MobileNet block with squeeze-and-excitation and a ConvNeXt block, in train mode."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Hardswish(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        SqueezeExcite(4),
        nn.Conv2d(4, 4, 1),
        ConvNeXtBlock(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(4, 3),
    )


class VariationalAutoencoder(nn.Module):
    """Encodes to the mean and the logarithm of the variance of a code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.mean, self.spread = nn.Linear(8, 2), nn.Linear(8, 2)
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        mean, spread = self.mean(hidden), self.spread(hidden)
        code = mean + torch.exp(0.5 * spread) * torch.randn_like(spread)
        return self.decoder(code), mean, spread


def evidence_bound(model: nn.Module, x: Tensor) -> Tensor:
    """Reconstruction and the divergence from a standard normal code."""
    rebuilt, mean, spread = model(x)
    divergence = -0.5 * (1 + spread - mean.square() - spread.exp()).sum()
    return (F.binary_cross_entropy_with_logits(rebuilt, x.sigmoid(), reduction="sum") + divergence) / len(x)


class Siamese(nn.Module):
    """Two inputs through the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(), nn.LayerNorm(8), nn.Linear(8, 4))

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(left), self.body(right)


def contrastive_loss(model: nn.Module, left: Tensor, right: Tensor, same: Tensor) -> Tensor:
    """Pairs of one kind come together, others at least a margin apart."""
    distance = F.pairwise_distance(*model(left, right))
    return (same * distance.square() + (1 - same) * F.relu(3.0 - distance).square()).mean()


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        nn.ELU(),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Softplus(),
        nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1),
        nn.ELU(),
        nn.ConvTranspose2d(3, 1, 4, stride=2, padding=1),
        nn.Sigmoid(),
    )


class Attention(nn.Module):
    """One head of attention, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head((torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v).mean(1))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def small_cnn() -> nn.Module:
    """Without a kink: in half types the two sides of one are too close together to be told apart."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
