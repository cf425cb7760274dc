"""Pooling of every geometry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from every_kind import Op, check_each, groups
from oracle import normal
from rule_cases import apply

from deepzero.graph.differences import Channel, Dense, HalfDense

POOLING: dict[str, Op] = {
    "max": lambda z: F.max_pool2d(z, 2),
    "max_overlapping": lambda z: F.max_pool2d(z, 3, stride=2),
    "max_stride_one": lambda z: F.max_pool2d(z, 3, stride=1, padding=1),
    "max_rectangular": lambda z: F.max_pool2d(z, (3, 2), stride=(1, 2), padding=(1, 0)),
    "max_padded": lambda z: F.max_pool2d(z, 3, stride=2, padding=1),
    "max_ceil": lambda z: F.max_pool2d(z, 2, ceil_mode=True),
    "max_ceil_padded": lambda z: F.max_pool2d(z, 3, stride=2, padding=1, ceil_mode=True),
    "max_dilated": lambda z: F.max_pool2d(z, 2, stride=1, dilation=2),
    "max_dilated_padded": lambda z: F.max_pool2d(z, 3, stride=2, dilation=2, padding=1),
    "max_indices": lambda z: torch.mul(*F.max_pool2d(z, 2, return_indices=True)),
    "max_1d": lambda z: F.max_pool1d(z.flatten(2), 3, stride=2, padding=1),
    "max_1d_dilated": lambda z: F.max_pool1d(z.flatten(2), 3, dilation=2),
    "max_3d": lambda z: F.max_pool3d(z.unsqueeze(2), (1, 2, 2)),
    "max_one_sample": lambda z: F.max_pool2d(z[0], 2),
    "max_of_relu": lambda z: F.max_pool2d(F.relu(z), 2),
    "average": lambda z: F.avg_pool2d(z, 2),
    "average_overlapping": lambda z: F.avg_pool2d(z, 3, stride=2),
    "average_padded": lambda z: F.avg_pool2d(z, 3, stride=2, padding=1),
    "average_without_padding": lambda z: F.avg_pool2d(z, 3, stride=2, padding=1, count_include_pad=False),
    "average_ceil": lambda z: F.avg_pool2d(z, 2, ceil_mode=True),
    "average_divisor": lambda z: F.avg_pool2d(z, 2, divisor_override=3),
    "average_1d": lambda z: F.avg_pool1d(z.flatten(2), 3, stride=2, padding=1),
    "average_3d": lambda z: F.avg_pool3d(z.unsqueeze(2), (1, 2, 2)),
    "average_one_sample": lambda z: F.avg_pool2d(z[0], 2),
    "average_1d_one_sample": lambda z: F.avg_pool1d(z[0].flatten(1), 2),
    "adaptive_average": lambda z: F.adaptive_avg_pool2d(z, (3, 2)),
    "adaptive_average_uneven": lambda z: F.adaptive_avg_pool2d(z, (4, 3)),
    "adaptive_average_one": lambda z: F.adaptive_avg_pool2d(z, 1),
    "adaptive_average_1d": lambda z: F.adaptive_avg_pool1d(z.flatten(2), 7),
    "adaptive_average_3d": lambda z: F.adaptive_avg_pool3d(z.unsqueeze(2), (1, 2, 2)),
    "adaptive_max": lambda z: F.adaptive_max_pool2d(z, (3, 2)),
    "adaptive_max_1d": lambda z: F.adaptive_max_pool1d(z.flatten(2), 7),
    "lp": lambda z: F.lp_pool2d(z.square() + 0.1, 2, 2),
}


@pytest.mark.parametrize("ops", groups(POOLING))
def test_pooling(ops: dict[str, Op]) -> None:
    check_each(ops)


@pytest.mark.parametrize(
    "options",
    [([2, 2],), ([2],), ([3, 1], []), ([2, 3], [2, 3]), ([2, 2], [2, 2], [0, 0]), ([2, 2], [1, 2]), ([3, 3], [3, 3], [1, 0]), ([2, 2], [2, 2], [0, 0], False, True, 3)],
    ids=str,
)  # fmt: skip
def test_averages_of_a_channel_with_its_samples_last(options: tuple[list[int], ...]) -> None:
    """Of windows that lie side by side, with the layout kept, and of others."""
    base, images = normal(7, 4, 6, 6), normal(3, 6, 6, 7).movedim(-1, 1)
    given = Channel(1, torch.tensor([2, 0, 2]), images, base.shape)
    found = apply(torch.ops.aten.avg_pool2d.default, (base, given), *options)
    assert isinstance(found, Channel)
    expected = torch.ops.aten.avg_pool2d.default(images.flatten(0, 1).unsqueeze(1), *options)
    torch.testing.assert_close(found.delta, expected.view(3, 7, *expected.shape[2:]))
    tiles = options[0][:1] * 2 if len(options[0]) == 1 else options[0]
    side_by_side = len(options) < 4 and options[1:2] in ((), ([],), (tiles,)) and not any((options[2:] or ([],))[0])
    assert (found.delta.stride(1) == 1) is side_by_side


@pytest.mark.parametrize("options", [([6, 6],), ([3, 3],)])
def test_averages_of_what_is_stored_in_float16(options: tuple[list[int]]) -> None:
    """Sums are in float32: of numbers that float16 holds, whose sum it does not."""
    base, given = normal(2, 4, 6, 6, dtype=torch.float32), HalfDense(30000 + 100 * normal(3, 2, 4, 6, 6).half(), 64.0)
    found = apply(torch.ops.aten.avg_pool2d.default, (base, given), *options)
    assert isinstance(found, Dense)
    expected = F.avg_pool2d(given.half.double().flatten(0, 1) / 64, *options)
    assert found.delta.dtype is torch.float32
    torch.testing.assert_close(found.delta.double(), expected.view(3, 2, *expected.shape[1:]), rtol=1e-6, atol=0)
