"""Convolutions in blocks of samples, with what follows them, do what the plain rules do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, before_and_after, initialize, normal, some_coordinates
from torch import Tensor, nn

from deepzero.graph import kernels
from deepzero.graph.calls import Value
from deepzero.graph.cpu import convolution_kernels, convolution_layouts, cpu_kernels, vectors
from deepzero.graph.differences import Blocks, Channel, Dense, Difference, OneHot, Pending
from deepzero.graph.rules.formulas import relu
from deepzero.graph.rules.normalization import normalized_change
from deepzero.graph.rules.pooling import max_change
from deepzero.graph.tails import Tail
from deepzero.graph.windows import ConvolutionGeometry, Window
from deepzero.models import SimpleCNN
from deepzero.models.resnet import BasicBlock, PaddedShortcut, projection_shortcut


def block(inputs: int, outputs: int, *after: nn.Module, affine: bool = True, **options: Any) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, **options), nn.BatchNorm2d(outputs, affine=affine), nn.ReLU(), *after]


NETWORKS: dict[str, Callable[[], list[nn.Module]]] = {
    "plain": lambda: [SimpleCNN(depth=3, width=7, in_channels=2)],
    "strides": lambda: [
        *block(2, 5, kernel_size=3, stride=2, padding=1),
        *block(5, 4, kernel_size=(2, 3), stride=(1, 2), dilation=(2, 1), padding=(0, 2)),
        *block(4, 3, kernel_size=1),
    ],
    "sides": lambda: [*block(2, 3, kernel_size=(4, 3), padding="same"), *block(3, 2, kernel_size=2, padding="valid")],
    "windows": lambda: [
        *block(2, 5, nn.MaxPool2d(3, 2, 1), kernel_size=3, padding=1),
        *block(5, 4, nn.MaxPool2d(2, ceil_mode=True), kernel_size=3, padding=1),
        *block(4, 4, nn.MaxPool2d((2, 1)), kernel_size=1, bias=False),
    ],
    "groups": lambda: [*block(2, 4, kernel_size=3), *block(4, 6, kernel_size=3, groups=2), *block(6, 3, kernel_size=3)],
    "alone": lambda: [nn.Conv2d(2, 4, 3), nn.Tanh(), *block(4, 3, kernel_size=3), nn.Conv2d(3, 2, 3), nn.Sigmoid()],
    "without affine": lambda: [
        *block(2, 3, affine=False, kernel_size=3),
        nn.AvgPool2d(2),
        *block(3, 8, affine=False, kernel_size=2),
    ],
    "one place": lambda: [
        *block(2, 5, nn.AvgPool2d((3, 1)), kernel_size=(3, 5)),
        *block(5, 6, kernel_size=(3, 8)),
        *block(6, 19, kernel_size=(1, 2)),
    ],
    "residual": lambda: [
        *block(2, 6, kernel_size=3, padding=1),
        BasicBlock(6, 6, stride=1, shortcut=projection_shortcut),
        BasicBlock(6, 8, stride=2, shortcut=PaddedShortcut),
        BasicBlock(8, 9, stride=2, shortcut=projection_shortcut),
    ],
}


AVERAGES: dict[str, nn.Module] = {
    "windows": nn.AdaptiveAvgPool2d(1),
    "residual": nn.AvgPool2d((2, 2), 1, (0, 1)),
    "one place": nn.Identity(),
}
"""What the tail of a network's last convolution ends with: a mean over all places, averages that are none, nothing."""


def network(name: str) -> nn.Module:
    parts, average = NETWORKS[name](), AVERAGES.get(name, nn.AdaptiveAvgPool2d(2))
    tail = [] if name == "plain" else [average, nn.Flatten(), nn.LazyLinear(10)]
    model = nn.Sequential(*parts, *tail).double()
    model(torch.zeros(2, 2, 11, 13).double())
    return model


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("dtype", "batch"), [(torch.float64, 21), (torch.float32, 21), (torch.float32, 16)])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, batch: int) -> None:
    """Odd sizes, with a last block that overlaps the one before, and with none."""
    model = initialize(network(name), dtype=dtype)
    x, y, chosen = normal(batch, 2, 11, 13, dtype=dtype), torch.arange(batch) % 10, some_coordinates(model, most=9)
    step_size, tolerance = (1e-2, 1e-11) if dtype == torch.float64 else (1e-4, 2e-4)
    without = lambda: monkeypatch.setitem(kernels.BY_DEVICE, "cpu", kernels.NONE)  # noqa: E731
    found, expected = before_and_after(without, model, F.cross_entropy, x, y, step_size=step_size, sparsity=chosen)
    assert_close(found.gradients, expected.gradients, tolerance)


CASES = {
    # inputs, outputs, height, width, kernel, stride, padding, dilation, window
    "plain": (3, 7, 8, 8, (3, 3), 1, 1, 1, None),
    "one place": (4, 5, 2, 2, (2, 2), 1, 0, 1, None),
    "many outputs": (2, 25, 5, 6, (3, 3), 2, 1, 1, None),
    "dilated": (3, 4, 9, 7, (3, 2), (2, 1), (0, 1), (1, 3), None),
    "tiles": (3, 6, 8, 8, (3, 3), 1, 1, 1, (2, 2, 0, 1)),
    "windows": (3, 6, 9, 9, (3, 3), 1, 1, 1, (3, 2, 1, 1)),
    "sixteen": (5, 16, 8, 8, (3, 3), 1, 1, 1, None),
    "nothing but padding": (2, 3, 3, 2, (2, 1), 1, 3, 1, None),
    "bands": (9, 12, 48, 48, (3, 3), 1, 1, 1, None),
    "bands of tiles": (1, 20, 48, 48, (3, 3), 1, 1, 1, (2, 2, 0, 1)),
}
KINDS = ["channel", "dense", "blocks", "dense residual", "blocks residual", "channel residual", "both"]


class Layer:
    """A convolution with its tail, base values and all, and what the plain formulas make of a difference."""

    def __init__(self, case: str, dtype: torch.dtype, batch: int, *, shift: float = 0.0) -> None:
        i, o, height, width, kernel, stride, padding, dilation, window = CASES[case]
        self.x = normal(batch, i, height, width, dtype=torch.float32).to(dtype) + shift
        self.weight = normal(o, i, *kernel, seed=1, dtype=dtype)
        self.geometry = ConvolutionGeometry(self.weight, stride, padding, dilation, 1)
        z = self.geometry.convolve(self.x, self.weight, 1)
        self.centred, self.shape = z - z.mean((0, 2, 3), keepdim=True), z.shape
        self.scale = (self.centred.square().mean((0, 2, 3)) + 1e-5).sqrt()
        self.gamma = 1 + 0.2 * normal(o, seed=2, dtype=dtype)
        self.before = self.gamma.view(-1, 1, 1) * self.centred / self.scale.view(-1, 1, 1) + 0.3
        self.window = None if window is None else Window.of(*window)
        pooled = None if window is None else F.max_pool2d(self.before.relu(), *window)
        self.pooled = pooled
        self.tail = Tail(
            Value(self.centred),
            self.scale,
            self.gamma,
            Value(self.before),
            None if pooled is None else Value(pooled),
            self.window,
        )

    def expected(self, d: Tensor, extra: Tensor | None) -> Tensor:
        """For differences ``d [p, b, o, h, w]`` of the convolution."""
        scale = self.scale.view(1, 1, -1, 1, 1)
        v = self.gamma.view(-1, 1, 1) * normalized_change(d, self.centred, scale, (1, 3, 4))
        change = relu(self.before, v if extra is None else v + extra)
        if self.window is None or self.pooled is None:
            return change
        return max_change(self.before.relu(), change, self.pooled, self.window)

    def convolved(self, d: Tensor) -> Tensor:
        return torch.stack([self.geometry.convolve(part, self.weight, 1) for part in d])


def in_blocks(dense: Tensor) -> Blocks:
    split = convolution_layouts.Split.of(dense.shape[1], dense.dtype)
    return Blocks(split.stacked(dense), dense.shape[1:])


def difference(kind: str, shape: torch.Size, size: float, dtype: torch.dtype, seed: int = 3) -> Difference:
    count = 3
    if kind == "channel":
        channels = torch.arange(count) % shape[1]
        return Channel(1, channels, size * normal(count, shape[0], *shape[2:], seed=seed, dtype=dtype), shape)
    dense = size * normal(count, *shape, seed=seed, dtype=dtype)
    return in_blocks(dense) if kind == "blocks" else Dense(dense)


@pytest.mark.parametrize("size", [1e-3, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_a_convolution_and_its_tail(case: str, kind: str, dtype: torch.dtype, size: float) -> None:
    layer = Layer(case, dtype, 21)
    if layer.window is not None and kind not in ("channel", "dense", "blocks"):
        pytest.skip("no residual where maxima are taken")
    extra = None
    if kind == "both":
        kind, extra = "channel", difference("channel", layer.shape, size, dtype, seed=4)
    elif kind.endswith("residual"):
        extra = difference(kind.split()[0], layer.shape, size, dtype, seed=4)
        kind = "blocks"
    d = difference(kind, layer.x.shape, size, dtype)
    found = cpu_kernels.convolve_to_tail(d, Value(layer.weight), layer.geometry, layer.shape, layer.tail, extra)
    expected = layer.expected(layer.convolved(d.dense()), None if extra is None else extra.dense())
    assert found is not None
    assert found.shape == expected.shape[1:]
    assert_near(found.dense(), expected, dtype)


@pytest.fixture
def little_scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Room for a row of one block at a time."""
    convolution_layouts.layout_of.cache_clear()
    monkeypatch.setattr(convolution_layouts, "SCRATCH", 1)
    yield
    convolution_layouts.layout_of.cache_clear()


@pytest.mark.usefixtures("little_scratch")
@pytest.mark.parametrize("kind", ["channel", "blocks"])
@pytest.mark.parametrize("case", CASES)
def test_images_in_parts_do_what_whole_ones_do(case: str, kind: str) -> None:
    """Sums first, and what follows afterwards."""
    layer = Layer(case, torch.float64, 21)
    d = difference(kind, layer.x.shape, 0.1, torch.float64)
    found = cpu_kernels.convolve_to_tail(d, Value(layer.weight), layer.geometry, layer.shape, layer.tail, None)
    assert found is not None
    assert_near(found.dense(), layer.expected(layer.convolved(d.dense()), None), torch.float64)


@pytest.mark.parametrize("batch", [16, 21, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["channel", "dense", "blocks"])
def test_a_linear_layer_behind_one_place(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype, batch: int
) -> None:
    """Features that are not computed yet, those that are, and both with no room for all blocks at a time."""
    layer, matrix = Layer("one place", dtype, batch), normal(11, 5, seed=6, dtype=dtype)
    d, shape = difference(kind, layer.x.shape, 0.1, dtype), torch.Size((batch, 11))
    found = cpu_kernels.convolve_to_tail(d, Value(layer.weight), layer.geometry, layer.shape, layer.tail, None)
    assert isinstance(found, Pending)
    features = found.reshaped(torch.Size((batch, 5)))
    expected = layer.expected(layer.convolved(d.dense()), None).flatten(2) @ matrix.t()
    assert (features.count, features.nbytes) == (3, 3 * batch * 5 * dtype.itemsize)
    for scratch in (convolution_layouts.SCRATCH, 1):
        monkeypatch.setattr(convolution_layouts, "SCRATCH", scratch)
        convolution_layouts.layout_of.cache_clear()
        for each in (features, features.settled()):
            product = cpu_kernels.linear_of_blocks(each, Value(matrix), shape)
            assert product is not None
            assert_near(product.delta, expected, dtype)
    convolution_layouts.layout_of.cache_clear()


def test_a_matrix_of_another_dtype_is_left_to_others() -> None:
    layer = Layer("one place", torch.float64, 16)
    d = difference("channel", layer.x.shape, 0.1, torch.float64)
    found = cpu_kernels.convolve_to_tail(d, Value(layer.weight), layer.geometry, layer.shape, layer.tail, None)
    assert isinstance(found, Pending)
    features = found.reshaped(torch.Size((16, 5)))
    for each in (features, features.settled()):
        assert cpu_kernels.linear_of_blocks(each, Value(torch.ones(3, 5)), torch.Size((16, 3))) is None


class SeveralReaders(nn.Module):
    """Features of one place that two linear layers, a tanh and a sum read."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(*block(2, 4, kernel_size=(11, 12)), *block(4, 6, kernel_size=(1, 2)))
        self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        images = self.front(x)
        features = images.flatten(1)
        product = self.first(features) * self.second(features)
        return product + features.tanh().sum(1, keepdim=True) + images.mean((1, 2, 3)).unsqueeze(1)


def test_features_that_are_not_computed_yet_are_so_for_every_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    model = initialize(SeveralReaders())
    assert_kernels_agree(monkeypatch, model, most=9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["one weight", "one factor"])
@pytest.mark.parametrize("case", CASES)
def test_the_mean_over_all_places_behind_slices(case: str, kind: str, dtype: torch.dtype) -> None:
    """It is taken channel by channel, band by band: nothing but the mean is written."""
    layer = Layer(case, dtype, 21)
    averaged = of_one(layer, kind, dtype, replace(layer.tail, averaged=True))
    every = of_one(layer, kind, dtype, layer.tail)
    assert averaged is not None
    assert every is not None
    assert averaged.shape == torch.Size((*layer.shape[:2], 1, 1))
    assert_near(averaged.dense(), every.dense().mean((-2, -1), keepdim=True), dtype)


def of_one(layer: Layer, kind: str, dtype: torch.dtype, tail: Tail) -> Channel | None:
    parameter = layer.weight if kind == "one weight" else layer.gamma
    index = torch.tensor([0, len(parameter.flatten()) - 1])
    one = OneHot(index, 0.1 * normal(2, dtype=dtype), parameter.shape)
    if kind == "one weight":
        return cpu_kernels.slices_to_tail(Value(layer.x), one, layer.geometry, layer.shape, tail)
    return cpu_kernels.affine_to_tail(one, layer.shape, tail, factor=True)


@pytest.mark.parametrize("kind", ["channel", "blocks", "dense residual"])
def test_a_convolution_leaves_the_mean_to_others(kind: str) -> None:
    """What it gives has the shape in front of the mean."""
    layer = Layer("plain", torch.float64, 21)
    tail = replace(layer.tail, averaged=True)
    extra: Any = None
    if kind.endswith("residual"):
        extra = difference("dense", layer.shape, 0.1, torch.float64, seed=4)
    d: Any = difference(kind.split(maxsplit=1)[0], layer.x.shape, 0.1, torch.float64)
    arguments: tuple[Any, ...] = (d, Value(layer.weight), layer.geometry, layer.shape)
    found, plain = (cpu_kernels.convolve_to_tail(*arguments, each, extra) for each in (tail, layer.tail))
    assert found is not None
    assert plain is not None
    assert found.shape == layer.shape
    assert torch.equal(found.dense(), plain.dense())


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * largest)


@pytest.fixture(params=[0, 1 << 40], ids=["by a table", "by themselves"])
def sums_of_slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to the sums of slices, whatever their size."""
    monkeypatch.setattr(convolution_kernels, "SMALL", request.param)


@pytest.mark.usefixtures("sums_of_slices")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_one_weight_and_what_follows(case: str, dtype: torch.dtype) -> None:
    layer = Layer(case, dtype, 21)
    count = layer.weight.numel()
    index = torch.tensor([0, count // 3, count // 2, count - 1])
    d = OneHot(index, 0.1 * normal(4, dtype=dtype), layer.weight.shape)
    found = cpu_kernels.slices_to_tail(Value(layer.x), d, layer.geometry, layer.shape, layer.tail)
    moved = torch.stack([layer.geometry.convolve(layer.x, part, 1) for part in d.dense()])
    assert found is not None
    assert_near(found.dense(), layer.expected(moved, None), dtype)


def weights_moved(layer: Layer, index: Tensor, values: Tensor) -> Tensor:
    d = OneHot(index, values, layer.weight.shape)
    found = cpu_kernels.slices_to_tail(Value(layer.x), d, layer.geometry, layer.shape, layer.tail)
    assert found is not None
    return found.dense()


@pytest.mark.usefixtures("sums_of_slices")
@pytest.mark.parametrize("case", ["plain", "dilated", "tiles", "bands"])
def test_every_chunk_of_weights_has_the_bits_of_all(case: str) -> None:
    """The sums of slices are those of the step, not of a chunk: a weight alone moves its channel by the same bits."""
    layer = Layer(case, torch.float32, 21)
    index = torch.randperm(layer.weight.numel(), generator=torch.Generator().manual_seed(0))[:24]
    values = 0.01 * normal(24, dtype=torch.float32)
    whole = weights_moved(layer, index, values)
    parts = [
        weights_moved(Layer(case, torch.float32, 21), some, each)
        for some, each in zip(index.split(7), values.split(7), strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.usefixtures("sums_of_slices")
@pytest.mark.parametrize("size", [1e-2, 1e-7])
@pytest.mark.parametrize("case", CASES)
def test_sums_of_slices_do_not_cancel(case: str, size: float) -> None:
    """Float32 is as near to float64 for images far from zero, and for changes far below a weight's rounding."""
    exact, rough = (Layer(case, dtype, 37, shift=3.0) for dtype in (torch.float64, torch.float32))
    for name in ("centred", "before", "pooled"):  # the base values of both, to the last bit
        if getattr(exact.tail, name) is not None:
            getattr(exact.tail, name).base = getattr(rough.tail, name).base.double()
    index = torch.arange(0, exact.weight.numel(), max(5, exact.weight.numel() // 24))
    values = size * (1 + normal(len(index)).abs()).float()
    expected = weights_moved(exact, index, values.double())
    found = weights_moved(rough, index, values).double()
    assert float((found - expected).norm()) < 3e-6 * float(expected.norm())


@pytest.mark.parametrize("case", CASES)
def test_the_table_of_slices_holds_their_sums(case: str) -> None:
    """With strides, dilation and padding, each sum over samples and places is that of the slice itself."""
    layer = Layer(case, torch.float64, 21)
    table = convolution_kernels.SliceSums.made(layer.x, layer.geometry, layer.centred)
    _, i, *kernel = layer.weight.shape
    one = torch.eye(i * math.prod(kernel)).double().view(-1, i, *kernel)
    slices = layer.geometry.convolve(layer.x, one, 1)
    expected = torch.einsum("bohw,bshw->os", layer.centred, slices)
    torch.testing.assert_close(table.cross.flatten(1), expected)
    torch.testing.assert_close(table.plain.flatten(), slices.sum((0, 2, 3)))
    torch.testing.assert_close(table.square.flatten(), slices.square().sum((0, 2, 3)))


@pytest.mark.parametrize("factor", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_a_factor_or_a_summand_of_batch_norm_and_what_follows(case: str, dtype: torch.dtype, factor: bool) -> None:
    layer = Layer(case, dtype, 21)
    channels = torch.tensor([1, 0, 1, len(layer.gamma) - 1])
    change = normal(4, dtype=dtype)
    d = OneHot(channels, change, layer.gamma.shape)
    found = cpu_kernels.affine_to_tail(d, layer.shape, layer.tail, factor=factor)
    assert found is not None
    scaled = layer.centred / layer.scale.view(-1, 1, 1) if factor else torch.ones_like(layer.centred)
    v = d.dense().view(4, 1, -1, 1, 1) * scaled
    expected = relu(layer.before, v)
    if layer.window is not None and layer.pooled is not None:
        expected = max_change(layer.before.relu(), expected, layer.pooled, layer.window)
    assert_near(found.dense(), expected, dtype)


@pytest.mark.parametrize("kind", ["channel", "dense", "blocks", "dense residual"])
@pytest.mark.parametrize("case", ["plain", "tiles"])
def test_what_is_not_finite_stays_so(case: str, kind: str) -> None:
    """A NaN or an infinity makes its whole channel not finite, by the statistics, and leaves other perturbations alone."""
    layer = Layer(case, torch.float32, 16)
    if layer.window is not None and kind.endswith("residual"):
        pytest.skip("no residual where maxima are taken")
    extra = difference("dense", layer.shape, 0.1, torch.float32) if kind.endswith("residual") else None
    plain = Dense(difference("dense", layer.x.shape, 0.1, torch.float32).dense().clone())
    plain.delta[0, 3, 1, 2, 2], plain.delta[1, 0, 0, 0, 0] = torch.nan, torch.inf
    d: Any = plain
    if kind == "channel":
        d = Channel(1, torch.tensor([1, 0, 2]), torch.stack([plain.delta[p, :, c] for p, c in enumerate((1, 0, 2))]), layer.x.shape)  # fmt: skip
    elif kind == "blocks":
        d = in_blocks(plain.delta)
    found = cpu_kernels.convolve_to_tail(d, Value(layer.weight), layer.geometry, layer.shape, layer.tail, extra)
    expected = layer.expected(layer.convolved(d.dense()), None if extra is None else extra.dense())
    assert found is not None
    assert torch.equal(found.dense().isnan(), expected.isnan())
    assert expected[:2].isnan().any()
    assert_near(found.dense()[2], expected[2], torch.float32)


def test_a_maximum_over_nan_is_nan() -> None:
    """A NaN in a base value, not in the statistics: it is found in whatever entry of a window it lies."""
    layer = Layer("tiles", torch.float32, 16)
    for row, column in ((0, 0), (1, 1), (2, 3), (5, 4)):
        layer.before[2, 1, row, column] = torch.nan
    d = difference("channel", layer.x.shape, 0.1, torch.float32)
    found = cpu_kernels.convolve_to_tail(d, Value(layer.weight), layer.geometry, layer.shape, layer.tail, None)
    assert found is not None
    where = found.dense().isnan()[:, 2, 1].nonzero().tolist()
    assert where == [[p, row, column] for p in range(3) for row, column in ((0, 0), (1, 1), (2, 2))]


@pytest.mark.parametrize("reason", ["few samples", "another dtype"])
def test_what_the_loops_do_not_take(reason: str) -> None:
    layer = Layer("plain", torch.float32, vectors.BYTES // 4 - (reason == "few samples"))
    weight = layer.weight.bfloat16() if reason == "another dtype" else layer.weight
    d = difference("dense", layer.x.shape, 0.1, torch.float32)
    found = cpu_kernels.convolve_to_tail(d, Value(weight), layer.geometry, layer.shape, layer.tail, None)
    assert found is None


def test_a_channel_alone_through_a_convolution() -> None:
    layer = Layer("dilated", torch.float32, 21)
    d = difference("channel", layer.x.shape, 1.0, torch.float32)
    assert isinstance(d, Channel)
    found = cpu_kernels.convolve_channel(d, Value(layer.weight), layer.geometry, layer.shape)
    assert found is not None
    assert_near(found.dense(), layer.convolved(d.dense()), torch.float32)


MATRIX = normal(4, 189)
SHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "slices": lambda x: x[:, 1:, ::2, 1:-1],
    "some samples": lambda x: x[3:],
    "padding": lambda x: F.pad(x, (1, 0, 0, 2, 3, 1)),
    "negative padding": lambda x: F.pad(x, (-1, 2, 1, -1)),
    "padded samples": lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 2)),
    "another padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "whole average": lambda x: F.avg_pool2d(x, (7, 9)),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "average of a part": lambda x: F.avg_pool2d(x, 5, stride=6),
    "padded average": lambda x: F.avg_pool2d(x, (9, 9), padding=(1, 0)),
    "rows of features": lambda x: x.flatten(1),
    "images cut otherwise": lambda x: x.flatten(2).view(19, 7, 3, 9)[:, :, 1:],
    "samples in one row": lambda x: x.flatten(),
    "average over samples": lambda x: F.adaptive_avg_pool2d(x.flatten(1, 2), 1),
    "samples padded behind a view": lambda x: F.pad(x.flatten(1, 2), (0, 0, 0, 0, 1, 1)),
    "features through a matrix": lambda x: F.linear(x.flatten(1), MATRIX, torch.ones(4).double()),
    "places through a matrix": lambda x: F.linear(x.flatten(2), MATRIX[:, :63]),
    "features through a matrix and back": lambda x: F.linear(F.linear(x.flatten(1), MATRIX), MATRIX.t()),
    "average by another divisor": lambda x: F.avg_pool2d(x, (7, 9), divisor_override=5),
}


class Shaped(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.front, self.name = nn.Sequential(*block(2, 4, kernel_size=5), *block(4, 3, kernel_size=1)), name

    def forward(self, x: Tensor) -> Tensor:
        return SHAPED[self.name](self.front(x))


@pytest.mark.parametrize("name", SHAPED)
def test_blocks_behind_a_convolution_are_cut_padded_and_averaged(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model = initialize(Shaped(name))
    assert_kernels_agree(monkeypatch, model, most=5)


def assert_kernels_agree(monkeypatch: pytest.MonkeyPatch, model: nn.Module, most: int) -> None:
    """The estimate with kernels and without is the same."""
    x, chosen = normal(19, 2, 11, 13), some_coordinates(model, most=most)
    without = lambda: monkeypatch.setitem(kernels.BY_DEVICE, "cpu", kernels.NONE)  # noqa: E731
    found, expected = before_and_after(without, model, ramp, x, None, step_size=1e-2, sparsity=chosen)
    assert_close(found.gradients, expected.gradients, 1e-11)


def ramp(output: Tensor, _: None) -> Tensor:
    """Another weight on every entry: a misplaced one shows."""
    weights = torch.cos(1.7 * torch.arange(output.numel(), dtype=output.dtype) + 0.3)
    return (output.reshape(-1) * weights).sum()


def test_places_are_convolved_with_the_terms_that_they_have() -> None:
    """No place meets the padding, and each is written once, or again with the same sum."""
    layer = Layer("sixteen", torch.float32, 21)
    sizes = convolution_layouts.ConvolutionSizes.of(layer.geometry, layer.x.shape[1:], layer.shape)
    tiles = convolution_layouts.Tiles.of(sizes, 4, 1, 3)
    assert tiles.tiles == [0, 12, 24]
    for first, stop in pairwise(tiles.tiles):
        products = torch.zeros(4, 8, dtype=torch.int64)
        for t in range(first, stop):
            for place in tiles.ends[3 * t : 3 * t + 3]:
                products[place // 8, place % 8] = tiles.stops[t] - tiles.begins[t]
        down = torch.tensor([2, 3, 3, 3] if first == 0 else [3, 3, 3, 2])
        along = torch.tensor([2, 3, 3, 3, 3, 3, 3, 2])
        assert torch.equal(products, 5 * down.unsqueeze(1) * along)


@pytest.mark.parametrize("batch", [16, 17, 31, 40])
def test_blocks_hold_every_sample_in_order(batch: int) -> None:
    dense = normal(2, batch, 3, 4, 5, dtype=torch.float32)
    blocks = in_blocks(dense)
    assert (blocks.count, blocks.shape, blocks.nbytes) == (2, dense.shape[1:], blocks.blocks.nbytes)
    assert torch.equal(blocks.dense(), dense)
