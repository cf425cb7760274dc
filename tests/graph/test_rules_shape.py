"""Views, slices, padding, concatenation and indexing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from every_kind import Op, check_each, groups
from oracle import normal
from rule_cases import apply
from torch import Tensor

from deepzero.graph.differences import Dense


def put(z: Tensor) -> Tensor:
    out = z.clone()
    out[:, 1] = z[:, 0].square()
    out[:, :, 2:4] *= 0.5
    return out


SHAPES: dict[str, Op] = {
    "flatten": lambda z: z.flatten(1),
    "flatten_middle": lambda z: z.flatten(1, 2),
    "flatten_front": lambda z: z.flatten(0, 1),
    "unflatten": lambda z: z.unflatten(1, (2, 2)),
    "view": lambda z: z.contiguous().view(2, 2, 2, 30),
    "view_front": lambda z: z.contiguous().view(8, 30),
    "reshape": lambda z: z.reshape(4, -1),
    "reshape_same_size": lambda z: z.reshape(4, 2, 5, 6),
    "permute": lambda z: z.permute(0, 2, 3, 1),
    "permute_channel_first": lambda z: z.permute(1, 3, 0, 2),
    "permute_negative": lambda z: z.permute(-1, 0, -2, 1),
    "transpose": lambda z: z.transpose(1, 3),
    "transpose_other": lambda z: z.transpose(-1, -2),
    "movedim": lambda z: z.movedim(1, -1),
    "matrix_t": lambda z: z.reshape(8, 30).t(),
    "slice_batch": lambda z: z[1:],
    "slice_channel": lambda z: z[:, 1:3],
    "slice_channel_step": lambda z: z[:, ::2],
    "slice_space": lambda z: z[:, :, 1:5:2, ::2],
    "slice_negative": lambda z: z[:, -2:, :, :-1],
    "select_batch": lambda z: z[1],
    "select_channel": lambda z: z[:, 2],
    "select_space": lambda z: z[..., -1],
    "squeeze": lambda z: z[:, :, :1].squeeze(2),
    "squeeze_all": lambda z: z[:1, :, :1].squeeze(),
    "squeeze_dims": lambda z: z[:1, :, :1].squeeze((0, 2)),
    "unsqueeze": lambda z: z.unsqueeze(1),
    "unsqueeze_last": lambda z: z.unsqueeze(-1),
    "pad": lambda z: F.pad(z, (1, 2, 3, 0)),
    "pad_value": lambda z: F.pad(z, (1, 2), value=0.7),
    "pad_channel": lambda z: F.pad(z, (0, 0, 0, 0, 2, 1)),
    "pad_channel_and_space": lambda z: F.pad(z, (1, 0, 0, 1, 1, 2)),
    "pad_batch": lambda z: F.pad(z, (0, 0, 0, 0, 0, 0, 1, 1)),
    "crop": lambda z: F.pad(z, (-1, -1, 1, 0)),
    "crop_channel": lambda z: F.pad(z, (0, 0, 0, 0, -1, 2)),
    "pad_reflect": lambda z: F.pad(z, (1, 1, 2, 2), mode="reflect"),
    "pad_replicate": lambda z: F.pad(z, (1, 1, 2, 2), mode="replicate"),
    "pad_circular": lambda z: F.pad(z, (1, 1, 2, 2), mode="circular"),
    "cat_channel": lambda z: torch.cat([z, z.square()], 1),
    "cat_same": lambda z: torch.cat([z, z], 1),
    "cat_batch": lambda z: torch.cat([z, 2 * z]),
    "cat_space": lambda z: torch.cat([z, torch.ones_like(z), z.tanh()], -1),
    "cat_constant_channel": lambda z: torch.cat([torch.ones_like(z), z], 1),
    "cat_unequal": lambda z: torch.cat([z[:, :, :2], z[:, :, 1:]], 2),
    "stack": lambda z: torch.stack([z, z.square()], 1),
    "stack_last": lambda z: torch.stack([z, z.square()], -1),
    "split": lambda z: torch.split(z, 3, 1)[0] * 2,
    "split_both": lambda z: torch.cat([p * (i + 1) for i, p in enumerate(torch.split(z, [1, 3], 1))], 1),
    "chunk": lambda z: torch.mul(*torch.chunk(z, 2, 1)),
    "unbind": lambda z: z.unbind(1)[1] * z.unbind(2)[0].mean(),
    "flip": lambda z: z.flip(1, 3),
    "roll": lambda z: z.roll((1, 2), (1, 2)),
    "repeat": lambda z: z.repeat(1, 2, 1, 3),
    "repeat_interleave": lambda z: z.repeat_interleave(2, 1),
    "put": put,
    "gather": lambda z: z.gather(1, torch.tensor([3, 0]).reshape(1, 2, 1, 1).expand(2, 2, 6, 5)),
    "index_select": lambda z: z.index_select(1, torch.tensor([3, 0, 3])),
    "advanced_index": lambda z: z[torch.tensor([1, 0, 1]), torch.tensor([0, 2, 3])],
    "tril": lambda z: z.tril(),
    "unfold": lambda z: z.unfold(2, 3, 2),
    "im2col": lambda z: F.unfold(z, 3, stride=2),
    "pixel_shuffle": lambda z: F.pixel_shuffle(z, 2),
    "channel_shuffle": lambda z: F.channel_shuffle(z, 2),
    "interpolate": lambda z: F.interpolate(z, scale_factor=2, mode="nearest"),
    "bilinear": lambda z: F.interpolate(z, size=(7, 7), mode="bilinear", align_corners=False),
    "diagonal": lambda z: z.diagonal(0, 1, 2),
}


@pytest.mark.parametrize("ops", groups(SHAPES))
def test_shape(ops: dict[str, Op]) -> None:
    check_each(ops)


@pytest.mark.parametrize("widths", [[0, 0, 0, 0, 1, 2], [1, 0, 2, 1], [0, 1, 1, 0, 0, 2, 3, 0]])
def test_padding_keeps_the_order_in_memory(widths: list[int]) -> None:
    """Channels stay last, also of every second pixel: the shortcut of a block that halves its images."""
    base, stacked = normal(2, 4, 6, 5), normal(3, 2, 6, 5, 4).movedim(-1, 2)
    halved = (..., slice(None, None, 2), slice(None, None, 2))
    for own, d in ((base, stacked), (base[halved], stacked[halved])):
        found = apply(torch.ops.aten.constant_pad_nd.default, (own, Dense(d)), widths)
        assert isinstance(found, Dense)
        assert torch.equal(found.delta, F.pad(d, widths))
        assert found.delta.movedim(2, -1).is_contiguous()
