"""3x3 convolutions by Winograd's algorithm: the theory, and the loops against plain convolutions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import normal
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.cpu import convolution_kernels, cpu_kernels, winograd_kernels, winograd_loops
from deepzero.graph.cpu.convolution_layouts import ConvolutionSizes, Split, layout_of
from deepzero.graph.cpu.winograd_kernels import SquareLayout, in_squares, square_layout
from deepzero.graph.differences import Blocks, Dense
from deepzero.graph.tails import Tail
from deepzero.graph.windows import ConvolutionGeometry

CASES = {
    # inputs, outputs, height, width, padding
    "whole squares": (3, 7, 8, 8, 1),
    "one place": (2, 3, 3, 3, 0),
    "parts of squares": (4, 9, 7, 9, 1),
    "without padding": (5, 4, 11, 6, 0),
    "much padding": (2, 6, 4, 5, (2, 3)),
    "bands": (3, 5, 13, 4, 1),
    "one channel": (1, 1, 5, 4, 1),
}


def test_the_algorithm_is_exact() -> None:
    """``A^T [(G g) * (B^T x)]`` are the four products of a filter with six numbers, in exact fractions."""
    first, second = Fraction(5, 8), Fraction(3, 2)
    assert (first, second) == (Fraction(winograd_loops.A), Fraction(winograd_loops.B))
    image, pairs, places = winograd_loops._IMAGE, winograd_loops._PAIRS, winograd_loops._PLACES

    def times(matrix: Any, vector: list[Fraction]) -> list[Fraction]:
        return [sum((Fraction(a) * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]

    def filtered(g: list[Fraction]) -> list[Fraction]:
        rows = [[1 / (first * second) ** 2, Fraction(0), Fraction(0)]]
        for p, q in ((first, second), (second, first)):
            weight = 1 / (2 * p * p * (p * p - q * q))
            rows += [[weight, s * p * weight, p * p * weight] for s in (1, -1)]
        rows.append([Fraction(0), Fraction(0), Fraction(1)])
        assert [[float(a) for a in row] for row in rows] == [
            pytest.approx(row, rel=1e-15) for row in winograd_loops.FILTER
        ]
        return times(rows, g)

    for i in range(6):
        for j in range(3):
            x, g = [Fraction(int(k == i)) for k in range(6)], [Fraction(int(k == j)) for k in range(3)]
            seen = times(pairs, times(image, x))
            found = times(places, times(pairs, [a * b for a, b in zip(filtered(g), seen, strict=True)]))
            assert found == [Fraction(int(i == place + j)) for place in range(4)]


def test_numbers_of_the_transformations_of_images_are_exact_in_float32() -> None:
    for matrix in (winograd_loops._IMAGE, winograd_loops._PAIRS, winograd_loops._PLACES):
        numbers = torch.tensor(matrix, dtype=torch.float64)
        assert torch.equal(numbers, numbers.float().double())


class Layer:
    """A convolution of differences that lie in blocks."""

    def __init__(self, case: tuple[Any, ...], dtype: torch.dtype, batch: int = 21, count: int = 2) -> None:
        inputs, outputs, height, width, padding = case
        self.weight = normal(outputs, inputs, 3, 3, seed=1, dtype=dtype)
        self.geometry = ConvolutionGeometry(self.weight, 1, padding, 1, 1)
        self.d = normal(count, batch, inputs, height, width, dtype=dtype)
        self.expected = torch.stack([F.conv2d(d.double(), self.weight.double(), padding=padding) for d in self.d])
        self.shape, self.split = self.expected.shape[1:], Split.of(batch, dtype)
        self.sizes = ConvolutionSizes.of(self.geometry, self.d.shape[2:], self.shape)
        self.centred = normal(*self.shape, seed=2, dtype=dtype)

    def stack(self, layout: SquareLayout) -> convolution_kernels._Stack:
        blocks = Blocks(self.split.stacked(self.d), self.d.shape[1:])
        plain = convolution_kernels._Stack.of(blocks, Value(self.weight), self.geometry, self.shape, None)
        return plain._replace(squares=layout, weights=in_squares(Value(self.weight), layout.tile))

    def layout(self, down: int, other: int) -> SquareLayout:
        return SquareLayout.of(self.sizes, len(self.d[0]), self.shape[1], self.d.dtype, down, other)


@pytest.mark.parametrize("other", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_bands_of_any_height_and_both_shapes_of_tiles(case: str, dtype: torch.dtype, other: int) -> None:
    """The convolution and its sums, whatever the layout; what the image has not is never written or summed."""
    layer = Layer(CASES[case], dtype)
    d, c = layer.expected, layer.centred.double()
    sums = torch.stack([d.sum((1, 3, 4)), (c * d).sum((1, 3, 4)), d.square().sum((1, 3, 4))], -1)
    tolerance = 1e-13 if dtype == torch.float64 else 5e-6
    for down in range(1, -(-layer.shape[2] // 4) + 1):
        stack = layer.stack(layer.layout(down, other))
        out, found = stack.out(layer.shape[2:]), torch.zeros(2, layer.shape[1], 3, dtype=torch.float64)
        out.fill_(float("nan"))
        stack.run(layer.split.blocks(layer.centred).flatten(), found, stack.without_tail(), out)
        largest = float(d.abs().max())
        torch.testing.assert_close(Blocks(out, layer.shape).dense().double(), d, rtol=0, atol=tolerance * largest)
        torch.testing.assert_close(found, sums, rtol=0, atol=10 * tolerance * float(sums.abs().max()))


def test_the_error_is_of_the_order_of_rounding() -> None:
    """64 channels in float32: 8e-7 of the result, where products one by one have 4e-7."""
    layer = Layer((64, 16, 8, 8, 1), torch.float32, batch=16, count=1)
    stack = layer.stack(layer.layout(2, 0))
    out = stack.out(layer.shape[2:])
    stack.run(None, None, stack.without_tail(), out)
    error = (Blocks(out, layer.shape).dense() - layer.expected).norm() / layer.expected.norm()
    assert 0 < error < 1.2e-6


def test_what_is_not_a_number_stays_in_its_sample() -> None:
    layer = Layer(CASES["whole squares"], torch.float32)
    layer.d[1, 4, 2, 3, 3] = float("nan")
    stack = layer.stack(layer.layout(2, 1))
    out = stack.out(layer.shape[2:])
    stack.run(None, None, stack.without_tail(), out)
    seen = Blocks(out, layer.shape).dense().isnan()
    assert seen[1, 4, :, 2:5, 2:5].all()
    seen[1, 4] = False
    assert not seen.any()


def chosen(inputs: int, outputs: int, size: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> Any:
    weight = torch.empty(outputs, inputs, kernel, kernel)
    geometry = ConvolutionGeometry(weight, stride, dilation * (kernel // 2), dilation, 1)
    shape = torch.Size((32, outputs, -(-size // stride), -(-size // stride)))
    sizes = ConvolutionSizes.of(geometry, (inputs, size, size), shape)
    plain = layout_of(sizes, 32, outputs, 1, torch.float32, samples_last=False)
    return square_layout(sizes, 32, outputs, torch.float32), plain


def test_the_algorithm_is_taken_where_it_is_less_work() -> None:
    for inputs, outputs, size in ((64, 64, 8), (32, 32, 16), (16, 16, 32), (18, 18, 16), (256, 256, 8)):
        squares, plain = chosen(inputs, outputs, size)
        assert squares.work < 0.75 * plain.work
    few, small, strided, dilated, wide = (
        chosen(*case)[0] for case in ((4, 8, 16), (64, 64, 2), (64, 64, 8, 3, 2), (64, 64, 8, 3, 1, 2), (64, 64, 8, 5))
    )
    assert few is small is strided is dilated is wide is None


def test_transformed_squares_stay_in_the_cache() -> None:
    """As far as one row of squares is no more than that."""
    for inputs, size in ((64, 8), (32, 16), (16, 32)):
        squares, _ = chosen(inputs, inputs, size)
        assert 4 * squares.spectrum <= winograd_kernels.SPECTRUM
    assert chosen(128, 128, 16)[0].squares.down == 1


@pytest.mark.parametrize("kind", ["blocks", "dense"])
def test_the_kernel_goes_by_squares(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Through the seam of the device's kernels, with a tail behind: the same as term by term, but for rounding."""
    layer = Layer((16, 16, 12, 12, 1), torch.float64)
    difference: Any = Dense(layer.d) if kind == "dense" else Blocks(layer.split.stacked(layer.d), layer.d.shape[1:])
    before = 0.3 + normal(*layer.shape, seed=5)
    scale = layer.centred.square().mean((0, 2, 3)).sqrt()
    tail = Tail(Value(layer.centred), scale, None, Value(before), None, None)

    def answer() -> Tensor:
        found = cpu_kernels.convolve_to_tail(difference, Value(layer.weight), layer.geometry, layer.shape, tail, None)
        assert found is not None
        return found.dense()

    ran = []
    run = convolution_kernels._Stack._run_by_squares
    monkeypatch.setattr(
        convolution_kernels._Stack, "_run_by_squares", lambda *arguments: [ran.append(1), run(*arguments)][1]
    )
    by_squares = answer()
    assert ran == [1]
    monkeypatch.setattr(convolution_kernels, "square_layout", lambda *_: None)
    torch.testing.assert_close(by_squares, answer(), rtol=1e-11, atol=1e-11)
    assert ran == [1]


def test_a_convolution_alone_goes_by_squares() -> None:
    """Where nothing that is known follows it; other convolutions are left to PyTorch."""
    layer = Layer((16, 20, 12, 12, 1), torch.float64)
    found = cpu_kernels.convolve_dense(Dense(layer.d), Value(layer.weight), layer.geometry, layer.shape)
    assert found is not None
    torch.testing.assert_close(found.delta, layer.expected, rtol=1e-11, atol=1e-11)
    few = Layer((2, 3, 12, 12, 1), torch.float64)
    assert cpu_kernels.convolve_dense(Dense(few.d), Value(few.weight), few.geometry, few.shape) is None
