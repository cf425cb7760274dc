"""Random small networks, drawn by hypothesis: every evaluator agrees with the oracle in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracle import TOLERANCE, assert_close, initialize, normal, nothing_changes, some_coordinates
from torch import Tensor, nn

import deepzero as dz

BATCH, CHANNELS, SIZE, CLASSES = 3, 4, 6, 3
LABELS = torch.tensor([0, 2, 1])

POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.1),
    "softplus": F.softplus,
    "hardswish": F.hardswish,
    "elu": F.elu,
    "clamp": lambda z: z.clamp(-0.5, 1.5),
    "glu": lambda z: F.glu(torch.cat([z, z.flip(1)], 1), 1),
    "where": lambda z: torch.where(z > 0.1, z, 0.2 * z + 0.08),
    "fill": lambda z: z.masked_fill(torch.arange(SIZE) > 3, 0.1),
    "standardize": lambda z: (z - z.mean((2, 3), keepdim=True)) / (0.1 + z.std((2, 3), keepdim=True)),
    "root_mean_square": lambda z: z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 0.1),
    "unit_norm": lambda z: F.normalize(z, dim=1),
    "largest": lambda z: z - z.amax(-1, keepdim=True),
    "normaliser": lambda z: z - z.logsumexp(1, keepdim=True),
    "running_sum": lambda z: z.cumsum(2) / SIZE,
    "power": lambda z: (z.abs() + 0.1) ** 1.5,
    "spectrum": lambda z: torch.fft.rfft(z).abs()[..., :1] * z,
    "fourier": lambda z: torch.fft.fft(torch.fft.fft(z), dim=1).real / SIZE,
    "abs": torch.abs,
    "quantize": lambda z: torch.round(4 * z) / 4 + z,
    "gate": lambda z: z * torch.sigmoid(z.mean((2, 3), keepdim=True)),
    "square": lambda z: 0.3 * z**2 - z,
    "divide": lambda z: z / (1 + z.abs().mean((1, 2, 3), keepdim=True)),
    "softmax": lambda z: z.softmax(1),
    "log_softmax": lambda z: z.log_softmax(-1),
    "dropout": lambda z: F.dropout(z, 0.3),
    "max_pool": lambda z: F.max_pool2d(z, 3, 1, 1),
    "avg_pool": lambda z: F.avg_pool2d(z, 3, 1, 1),
    "down_and_up": lambda z: F.interpolate(F.max_pool2d(z, 2), scale_factor=2),
    "pad_and_slice": lambda z: F.pad(z, (1, 0, 2, 0), value=0.5)[:, :, 1:-1, :-1],
    "roll_channels": lambda z: torch.cat([z[:, 1:], z[:, :1]], 1),
    "shuffle": lambda z: z.reshape(BATCH, 2, 2, SIZE, SIZE).transpose(1, 2).reshape(z.shape),
    "transpose": lambda z: z.permute(0, 1, 3, 2),
    "sort": lambda z: z.sort(1).values,
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    "conv_without_bias": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
    "conv_pointwise": lambda: nn.Conv2d(CHANNELS, CHANNELS, 1),
    "conv_dilated": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding="same", dilation=2),
    "conv_groups": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2),
    "conv_depthwise": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
    "linear": lambda: nn.Linear(SIZE, SIZE),
    "batch_norm": lambda: nn.BatchNorm2d(CHANNELS),
    "batch_norm_eval": lambda: nn.BatchNorm2d(CHANNELS).eval(),
    "batch_norm_without_affine": lambda: nn.BatchNorm2d(CHANNELS, affine=False),
    "layer_norm": lambda: nn.LayerNorm(SIZE),
    "group_norm": lambda: nn.GroupNorm(2, CHANNELS),
    "prelu": lambda: nn.PReLU(CHANNELS),
}
JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "multiply": lambda a, b: a * torch.tanh(b),
    "concatenate": lambda a, b: torch.cat([a[:, :2], b[:, 2:]], 1),
    "relu_of_sum": lambda a, b: F.relu(a + b),
    "matmul": lambda a, b: a @ b.tanh().transpose(-1, -2) / SIZE,
    "where": lambda a, b: torch.where(a > 0, a, b),
}


@dataclass(frozen=True)
class Step:
    """One node: an operation on one or two earlier nodes, counted back from the newest."""

    name: str
    sources: tuple[int, ...]


class Network(nn.Module):
    """A directed graph of steps between a convolution and a linear layer. Steps of one ``tie`` share their module."""

    def __init__(self, steps: tuple[Step, ...], tied: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, CHANNELS, 3, padding=1), nn.Linear(CHANNELS, CLASSES)
        self.steps = steps
        self.layers = nn.ModuleDict()
        self.keys: list[str] = []
        for index, step in enumerate(steps):
            key = step.name if tied else f"{step.name}_{index}"
            self.keys.append(key)
            if step.name in LAYERS and key not in self.layers:
                self.layers[key] = LAYERS[step.name]()

    def forward(self, x: Tensor) -> Tensor:
        nodes = [self.stem(x)]
        for step, key in zip(self.steps, self.keys, strict=True):
            inputs = [nodes[-1 - back % len(nodes)] for back in step.sources]
            nodes.append(self._outcome(step.name, key, inputs))
        return self.head(nodes[-1].mean((2, 3)))

    def _outcome(self, name: str, key: str, inputs: list[Tensor]) -> Tensor:
        if name in LAYERS:
            return self.layers[key](inputs[0])
        return JOINS[name](*inputs) if name in JOINS else POINTWISE[name](inputs[0])


NEAR = st.integers(0, 2)
STEPS = st.one_of(
    st.builds(lambda name: Step(name, (0,)), st.sampled_from(sorted(LAYERS))),
    st.builds(lambda name, back: Step(name, (back,)), st.sampled_from(sorted({**POINTWISE, **LAYERS})), NEAR),
    st.builds(lambda name, a, b: Step(name, (a, b)), st.sampled_from(sorted(JOINS)), NEAR, NEAR),
)
NETWORKS = st.builds(Network, st.lists(STEPS, min_size=2, max_size=7).map(tuple), st.booleans())


def chain(*names: str, tied: bool = False) -> Network:
    return Network(tuple(Step(name, (0, 1) if name in JOINS else (0,)) for name in names), tied)


def estimates(model: nn.Module, evaluators: list[Any], make: Callable[[Any], dz.Estimator]) -> list[dz.Estimate]:
    with nothing_changes(model):
        return [make(evaluator).estimate(normal(BATCH, 2, SIZE, SIZE, seed=3), LABELS) for evaluator in evaluators]


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(model=NETWORKS, stencil=st.sampled_from([dz.FORWARD, dz.CENTRAL]), seed=st.integers(0, 1000))
@example(model=chain("conv", "batch_norm", "relu", "conv", "batch_norm", "relu_of_sum"), stencil=dz.FORWARD, seed=0)
@example(model=chain("batch_norm", "relu", "conv", "batch_norm", "relu", "conv", tied=True), stencil=dz.FORWARD, seed=1)
def test_propagation(model: Network, stencil: dz.Stencil, seed: int) -> None:
    initialize(model, seed)
    chosen = some_coordinates(model, most=5, seed=seed)

    def make(evaluator: Any) -> dz.Estimator:
        return dz.CGE(
            model,
            loss=F.cross_entropy,
            step_size=1e-2,
            stencil=stencil,
            sparsity=chosen,
            evaluator=evaluator,
            seed=seed,
        )

    expected, found = estimates(model, [dz.SequentialEvaluator(), dz.PropagationEvaluator(workers=1)], make)
    assert_close(found.gradients, expected.gradients, TOLERANCE)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(model=NETWORKS, seed=st.integers(0, 1000), chunk=st.integers(1, 4))
def test_batched(model: Network, seed: int, chunk: int) -> None:
    initialize(model, seed)

    def make(evaluator: Any) -> dz.Estimator:
        return dz.RGE(model, loss=F.cross_entropy, step_size=1e-2, queries=4, evaluator=evaluator, seed=seed)

    expected, found = estimates(model, [dz.SequentialEvaluator(), dz.BatchedEvaluator(chunk=chunk)], make)
    assert_close(found.gradients, expected.gradients, TOLERANCE)
