"""Windows of convolutions and pooling, against PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import normal

from deepzero.graph.windows import ConvolutionGeometry, TransposedGeometry, Window

IMAGE = normal(2, 3, 7, 6)


@pytest.mark.parametrize(
    ("options", "kernel"),
    [((1, 0, 1), (3, 3)), ((2, 1, 1), (3, 2)), (((2, 1), (1, 2), (1, 2)), (2, 3)), ((1, "same", 2), (3, 2))],
)
def test_the_slices_that_a_kernel_sees_make_up_the_convolution(
    options: tuple[Any, ...], kernel: tuple[int, int]
) -> None:
    stride, padding, dilation = options
    weight = normal(4, 3, *kernel)
    geometry = ConvolutionGeometry(weight, stride, padding, dilation, 1)
    expected = F.conv2d(IMAGE, weight, None, stride, padding, dilation)
    torch.testing.assert_close(geometry.convolve(IMAGE, weight, 1), expected)
    slices = geometry.windows(geometry.pad(IMAGE.movedim(1, 0)).contiguous(), expected.shape[2:])
    torch.testing.assert_close(torch.einsum("oikl,iklbhw->bohw", weight, slices), expected)


@pytest.mark.parametrize("options", [(1, 0, 0, 1), (2, 1, 1, 1), ((3, 2), (0, 1), (2, 0), (1, 2))])
def test_a_tap_of_a_transposed_kernel_places_its_input_on_the_output(options: tuple[Any, ...]) -> None:
    stride, padding, output_padding, dilation = options
    weight = normal(3, 4, 3, 2)
    geometry = TransposedGeometry(weight, stride, padding, output_padding, 1, dilation)
    expected = F.conv_transpose2d(IMAGE, weight, None, stride, padding, output_padding, 1, dilation)
    found = torch.zeros_like(expected)
    for row in range(3):
        for column in range(2):
            pairs = [geometry.places(a, t, IMAGE.shape[a + 2], found.shape[a + 2]) for a, t in enumerate((row, column))]
            (rows, columns), (to_rows, to_columns) = zip(*pairs, strict=True)
            moved = torch.einsum("io,bihw->bohw", weight[:, :, row, column], IMAGE[:, :, rows, columns])
            found[:, :, to_rows, to_columns] += moved
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_an_input_channel_meets_its_own_filters_alone(transposed: bool) -> None:
    weight = normal(3, 4, 3, 3) if transposed else normal(4, 3, 3, 3)
    kind = TransposedGeometry(weight, 1, 0, 0, 1, 1) if transposed else ConvolutionGeometry(weight, 1, 0, 1, 1)
    parts = [kind.convolve(IMAGE[:, c : c + 1], kind.filters_of(weight, c), 1) for c in range(3)]
    torch.testing.assert_close(sum(parts), kind.convolve(IMAGE, weight, 1))


@pytest.mark.parametrize("options", [(2, None, 0, 1), ((3, 2), (2, 1), (1, 0), 1), (2, 1, 1, (2, 3))])
def test_the_largest_entry_of_every_window_is_the_pooled_image(options: tuple[Any, ...]) -> None:
    expected = F.max_pool2d(IMAGE, *options)
    window = Window.of(*options)
    entries = [
        window.entry(IMAGE, row, column, expected.shape[2:], -torch.inf)
        for row in range(window.kernel[0])
        for column in range(window.kernel[1])
    ]
    assert torch.equal(torch.stack(entries).amax(0), expected)


def test_a_window_along_a_line_is_one_over_an_image_of_height_1() -> None:
    assert Window.of_line([3], [2], [1], 1) == Window((1, 3), (1, 2), (0, 1), (1, 1))


@pytest.mark.parametrize(
    ("window", "size", "tiled"),
    [
        (Window.of(2, None, 0, 1), (6, 4), True),
        (Window.of(2, None, 0, 1), (7, 4), False),
        (Window.of(2, 1, 0, 1), (6, 4), False),
        (Window.of(2, None, 1, 1), (6, 4), False),
        (Window.of((2, 4), None, 0, 1), (6, 4), True),
    ],
)
def test_windows_tile_an_image_without_overlap_gap_or_margin(
    window: Window, size: tuple[int, int], tiled: bool
) -> None:
    out = F.max_pool2d(torch.zeros(1, 1, *size), window.kernel, window.stride, window.padding).shape[2:]
    assert window.tiles(size, out) is tiled
