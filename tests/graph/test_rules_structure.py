"""Attention, normalization, convolution, pooling, resampling, indexing, shapes and products, each rule by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from every_kind import groups
from one_rule import Case, case, check_all
from oracle import normal
from torch import Tensor

# Even kernels with padding="same" pad on one side; PyTorch says once that this costs a copy.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

attend = F.scaled_dot_product_attention
HEADS = ((2, 4, 5, 3), (2, 4, 6, 3), (2, 4, 6, 2))
"""Queries, keys, values: samples, heads, length, features."""
GROUPED = ((2, 4, 5, 3), (2, 2, 6, 3), (2, 2, 6, 2))
DEAD = torch.ones(5, 6, dtype=torch.bool).tril()
DEAD[2] = False
DEAD_HEAD = torch.ones(2, 4, 5, 6, dtype=torch.bool).tril()
DEAD_HEAD[1, 2, :3] = False


def of(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like.dtype)


ATTENTION: dict[str, Case] = {
    "plain": case(attend, *HEADS),
    "scale": case(lambda q, k, v: attend(q, k, v, scale=0.7), *HEADS),
    "causal_wide": case(lambda q, k, v: attend(q, k, v, is_causal=True), *HEADS),
    "causal_tall": case(lambda q, k, v: attend(q, k, v, is_causal=True), (2, 4, 6, 3), (2, 4, 4, 3), (2, 4, 4, 2)),
    "bool_mask": case(lambda q, k, v: attend(q, k, v, attn_mask=torch.ones(5, 6, dtype=torch.bool).tril(1)), *HEADS),
    "bool_mask_per_sample": case(lambda q, k, v: attend(q, k, v, attn_mask=torch.arange(6) < torch.tensor([3, 6]).reshape(2, 1, 1, 1)), *HEADS),
    "bool_mask_per_head": case(lambda q, k, v: attend(q, k, v, attn_mask=DEAD_HEAD), *HEADS),
    "float_mask": case(lambda q, k, v, m: attend(q, k, v, attn_mask=m), *HEADS, (5, 6)),
    "float_mask_per_head": case(lambda q, k, v, m: attend(q, k, v, attn_mask=m), *HEADS, (4, 5, 6)),
    "float_mask_per_key": case(lambda q, k, v, m: attend(q, k, v, attn_mask=m), *HEADS, (2, 1, 1, 6)),
    "float_mask_of_all": case(lambda q, k, v, m: attend(q, k, v, attn_mask=m), *HEADS, (1, 4, 5, 6)),
    "float_mask_infinite": case(lambda q, k, v, m: attend(q, k, v, attn_mask=m.masked_fill(~DEAD, -torch.inf)), *HEADS, (5, 6), falls_back=True),
    "full_row": case(lambda q, k, v: attend(q, k, v, attn_mask=DEAD), *HEADS),
    "full_row_float": case(lambda q, k, v: attend(q, k, v, attn_mask=torch.zeros(5, 6, dtype=q.dtype).masked_fill(~DEAD, -torch.inf)), *HEADS),
    "grouped": case(lambda q, k, v: attend(q, k, v, enable_gqa=True), *GROUPED),
    "grouped_one": case(lambda q, k, v: attend(q, k, v, enable_gqa=True), (2, 4, 5, 3), (2, 1, 6, 3), (2, 1, 6, 2)),
    "grouped_mask": case(lambda q, k, v, m: attend(q, k, v, attn_mask=m, enable_gqa=True), *GROUPED, (4, 5, 6)),
    "grouped_causal": case(lambda q, k, v: attend(q, k, v, is_causal=True, enable_gqa=True), *GROUPED),
    "repeated_heads": case(lambda q, k, v: attend(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)), *GROUPED),
    "three_dimensions": case(attend, (2, 5, 3), (2, 6, 3), (2, 6, 2)),
    "two_dimensions": case(attend, (5, 3), (6, 3), (6, 2)),
    "five_dimensions": case(attend, (2, 1, 2, 5, 3), (2, 1, 2, 6, 3), (2, 1, 2, 6, 2)),
    "one_key_for_all_samples": case(attend, (2, 4, 5, 3), (1, 4, 6, 3), (2, 4, 6, 2)),
    "self": case(lambda z: attend(z, z.tanh(), z), (2, 4, 5, 3)),
    "large": case(lambda q, k, v: attend(8 * q, k, v), *HEADS),
    "dropout": case(lambda q, k, v: attend(q, k, v, dropout_p=0.4), *HEADS),
    "dropout_mask": case(lambda q, k, v, m: attend(q, k, v, attn_mask=m, dropout_p=0.4), *HEADS, (4, 5, 6)),
    "dropout_full_row": case(lambda q, k, v: attend(q, k, v, attn_mask=DEAD, dropout_p=0.4), *HEADS),
    "dropout_causal_grouped": case(lambda q, k, v: attend(q, k, v, is_causal=True, dropout_p=0.4, enable_gqa=True), *GROUPED),
}  # fmt: skip

NORMALIZATION: dict[str, Case] = {
    "layer": case(lambda z, w, b: F.layer_norm(z, (5,), w, b), (2, 4, 5), (5,), (5,)),
    "layer_two": case(lambda z, w: F.layer_norm(z, (4, 5), w), (2, 3, 4, 5), (4, 5)),
    "layer_plain": case(lambda z: F.layer_norm(z, (4, 5)), (2, 3, 4, 5)),
    "rms": case(lambda z, w: F.rms_norm(z, (5,), w), (2, 4, 5), (5,)),
    "rms_eps": case(lambda z, w: F.rms_norm(z, (4, 5), w, eps=0.2), (2, 3, 4, 5), (4, 5)),
    "rms_plain": case(lambda z: F.rms_norm(z, (5,)), (2, 4, 5)),
    "group": case(lambda z, w, b: F.group_norm(z, 2, w, b), (2, 4, 3, 5), (4,), (4,)),
    "group_one": case(lambda z, w, b: F.group_norm(z, 1, w, b), (2, 4, 3, 5), (4,), (4,)),
    "group_each": case(lambda z: F.group_norm(z, 4), (2, 4, 3, 5)),
    "group_flat": case(lambda z: F.group_norm(z, 2), (3, 8)),
    "instance": case(lambda z, w, b: F.instance_norm(z, weight=w, bias=b), (2, 4, 3, 5), (4,), (4,)),
    "instance_1d": case(F.instance_norm, (2, 4, 7)),
    "instance_3d": case(F.instance_norm, (2, 3, 2, 3, 2)),
    "instance_running": case(lambda z, m, v, w: F.instance_norm(z, m, v, weight=w, use_input_stats=False), (2, 4, 3, 5), (4,), (4,), (4,), positive=True),
    "batch_running": case(F.batch_norm, (2, 4, 3, 5), (4,), (4,), (4,), (4,), positive=True),
    "batch_running_plain": case(F.batch_norm, (3, 4), (4,), (4,), positive=True),
    "batch_train": case(lambda z, w, b: F.batch_norm(z, None, None, w, b, training=True), (3, 4, 3, 5), (4,), (4,)),
    "weight": case(lambda v, g: torch._weight_norm(v, g, 0), (4, 3, 2), (4, 1, 1)),
    "weight_last": case(lambda v, g: torch._weight_norm(v, g, 2), (4, 3, 2), (1, 1, 2)),
    "weight_matrix": case(lambda v, g: torch._weight_norm(v, g, 0), (4, 3), (4, 1)),
}  # fmt: skip

SIGNAL, IMAGE, VOLUME = (2, 4, 7), (2, 4, 6, 5), (2, 4, 3, 4, 3)
CONVOLUTION: dict[str, Case] = {
    "transposed": case(F.conv_transpose2d, IMAGE, (4, 3, 3, 2), (3,)),
    "transposed_stride": case(lambda x, w, b: F.conv_transpose2d(x, w, b, stride=(2, 3)), IMAGE, (4, 3, 3, 2), (3,)),
    "transposed_padding": case(lambda x, w: F.conv_transpose2d(x, w, padding=(1, 2)), IMAGE, (4, 3, 3, 4)),
    "transposed_all": case(lambda x, w, b: F.conv_transpose2d(x, w, b, 3, (2, 1), (1, 2), 1, (2, 1)), IMAGE, (4, 3, 2, 3), (3,)),
    "transposed_groups": case(lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1, groups=2), IMAGE, (4, 3, 3, 3), (6,)),
    "transposed_depthwise": case(lambda x, w: F.conv_transpose2d(x, w, stride=2, groups=4), IMAGE, (4, 1, 2, 2)),
    "transposed_multiplier": case(lambda x, w: F.conv_transpose2d(x, w, groups=4), IMAGE, (4, 2, 2, 2)),
    "transposed_cropped": case(lambda x, w: F.conv_transpose2d(x, w, stride=1, padding=2, dilation=2), IMAGE, (4, 2, 2, 3)),
    "transposed_1d": case(lambda x, w, b: F.conv_transpose1d(x, w, b, 2, 1, 1), SIGNAL, (4, 3, 3), (3,)),
    "transposed_3d": case(lambda x, w: F.conv_transpose3d(x, w, stride=2, padding=1), (1, 2, 3, 2, 3), (2, 2, 2, 3, 2)),
    "transposed_unbatched": case(lambda x, w, b: F.conv_transpose2d(x, w, b, 2), IMAGE[1:], (4, 3, 3, 2), (3,)),
    "unbatched": case(lambda x, w, b: F.conv2d(x, w, b, padding=1), IMAGE[1:], (3, 4, 3, 2), (3,)),
    "unbatched_1d": case(lambda x, w, b: F.conv1d(x, w, b, 2), SIGNAL[1:], (3, 4, 3), (3,)),
    "unbatched_3d": case(F.conv3d, VOLUME[1:], (3, 4, 2, 2, 2), (3,)),
    "plain": case(lambda x, w, b: F.conv2d(x, w, b, 2, 1), IMAGE, (3, 4, 3, 2), (3,)),
    "groups": case(lambda x, w, b: F.conv2d(x, w, b, 1, 1, 2, 2), IMAGE, (6, 2, 2, 2), (6,)),
    "depthwise": case(lambda x, w: F.conv2d(x, w, groups=4), IMAGE, (4, 1, 3, 3)),
    "one_dimension": case(lambda x, w: F.conv1d(x, w, dilation=2, padding=1), SIGNAL, (3, 4, 3)),
    "three_dimensions": case(lambda x, w, b: F.conv3d(x, w, b, 1, 1), (1, 2, 3, 4, 3), (3, 2, 2, 2, 2), (3,)),
    "same_even": case(lambda x, w: F.conv2d(x, w, padding="same"), IMAGE, (3, 4, 2, 4)),
    "weight_normed": case(lambda x, v, g: F.conv2d(x, torch._weight_norm(v, g, 0)), IMAGE, (3, 4, 2, 2), (3, 1, 1, 1)),
}  # fmt: skip

POOLING: dict[str, Case] = {
    "average_1d": case(lambda z: F.avg_pool1d(z, 3, 2, 1), SIGNAL),
    "average_2d": case(lambda z: F.avg_pool2d(z, 2, ceil_mode=True, count_include_pad=False)),
    "average_3d": case(lambda z: F.avg_pool3d(z, 2, 1), VOLUME),
    "average_unbatched": case(lambda z: F.avg_pool1d(z, 2), (6, 7)),
    "average_2d_unbatched": case(lambda z: F.avg_pool2d(z, 2), (4, 6, 5)),
    "average_3d_unbatched": case(lambda z: F.avg_pool3d(z, 2), (4, 3, 4, 3)),
    "adaptive_1d": case(lambda z: F.adaptive_avg_pool1d(z, 3), SIGNAL),
    "adaptive_1d_unbatched": case(lambda z: F.adaptive_avg_pool1d(z, 3), SIGNAL[1:]),
    "adaptive_2d_unbatched": case(lambda z: F.adaptive_avg_pool2d(z, (4, 3)), IMAGE[1:]),
    "adaptive_3d": case(lambda z: F.adaptive_avg_pool3d(z, 2), VOLUME),
    "max_1d": case(lambda z: F.max_pool1d(z, 3, 2, 1), SIGNAL),
    "max_1d_unbatched": case(lambda z: F.max_pool1d(z, 3, 1, dilation=2), SIGNAL[1:]),
    "max_1d_tiles": case(lambda z: F.max_pool1d(z, 2), (2, 4, 8)),
    "max_2d": case(lambda z: F.max_pool2d(z, 3, 2, 1)),
    "max_2d_tiles": case(lambda z: F.max_pool2d(z, (2, 5))),
    "max_2d_unbatched": case(lambda z: F.max_pool2d(z, 2), IMAGE[1:]),
    "max_3d": case(lambda z: F.max_pool3d(z, 2, 1, 1), VOLUME),
    "max_3d_unbatched": case(lambda z: F.max_pool3d(z, 2), VOLUME[1:]),
    "max_1d_places": case(lambda z: F.max_pool1d(z, 2, return_indices=True)[0], SIGNAL),
    "max_2d_places": case(lambda z: F.max_pool2d(z, 3, 2, 1, return_indices=True)[0]),
    "max_3d_places": case(lambda z: F.max_pool3d(z, 2, return_indices=True)[0], VOLUME),
    "places_count": case(lambda z: F.max_pool2d(z, 2, return_indices=True)[1] * 0.5, falls_back=True),
    "adaptive_max_1d": case(lambda z: F.adaptive_max_pool1d(z, 3), SIGNAL),
    "adaptive_max_2d": case(lambda z: F.adaptive_max_pool2d(z, (4, 2))),
    "adaptive_max_2d_unbatched": case(lambda z: F.adaptive_max_pool2d(z, 3), IMAGE[1:]),
    "adaptive_max_3d": case(lambda z: F.adaptive_max_pool3d(z, 2), VOLUME),
    "fractional": case(lambda z: F.fractional_max_pool2d(z, 2, output_size=3, _random_samples=torch.linspace(0.1, 0.9, 16, dtype=z.dtype).reshape(2, 4, 2))),
    "fractional_unbatched": case(lambda z: F.fractional_max_pool2d(z, 2, output_size=3, _random_samples=torch.linspace(0.1, 0.9, 8, dtype=z.dtype).reshape(1, 4, 2)), IMAGE[1:]),
    "fractional_3d": case(lambda z: F.fractional_max_pool3d(z, 2, output_size=2, _random_samples=torch.linspace(0.1, 0.9, 24, dtype=z.dtype).reshape(2, 4, 3)), (2, 4, 4, 5, 4)),
    "unpool": case(lambda z: F.max_unpool2d(z, F.max_pool2d(torch.arange(2 * 4 * 12 * 10.0).reshape(2, 4, 12, 10), 2, return_indices=True)[1], 2)),
    "unpool_own": case(lambda z: F.max_unpool2d(*F.max_pool2d(z, 2, return_indices=True), 2), (2, 4, 6, 4), falls_back=True),
}  # fmt: skip

RESAMPLING: dict[str, Case] = {
    "nearest_1d": case(lambda z: F.interpolate(z, scale_factor=2), SIGNAL),
    "nearest_2d": case(lambda z: F.interpolate(z, size=(7, 9))),
    "nearest_2d_scale": case(lambda z: F.interpolate(z, scale_factor=(1.5, 0.7))),
    "nearest_3d": case(lambda z: F.interpolate(z, scale_factor=2), VOLUME),
    "nearest_exact_1d": case(lambda z: F.interpolate(z, size=11, mode="nearest-exact"), SIGNAL),
    "nearest_exact_2d": case(lambda z: F.interpolate(z, size=(4, 11), mode="nearest-exact")),
    "nearest_exact_3d": case(lambda z: F.interpolate(z, size=(2, 5, 4), mode="nearest-exact"), VOLUME),
    "linear": case(lambda z: F.interpolate(z, scale_factor=2, mode="linear"), SIGNAL),
    "bilinear": case(lambda z: F.interpolate(z, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True)),
    "bilinear_corners": case(lambda z: F.interpolate(z, size=(9, 3), mode="bilinear", align_corners=True)),
    "bilinear_smooth": case(lambda z: F.interpolate(z, size=(3, 3), mode="bilinear", antialias=True)),
    "bicubic": case(lambda z: F.interpolate(z, size=(9, 7), mode="bicubic")),
    "bicubic_smooth": case(lambda z: F.interpolate(z, size=(3, 3), mode="bicubic", antialias=True)),
    "trilinear": case(lambda z: F.interpolate(z, scale_factor=2, mode="trilinear"), VOLUME),
    "area": case(lambda z: F.interpolate(z, size=(3, 2), mode="area")),
    "grid": case(lambda z: F.grid_sample(z, of(normal(2, 3, 2, 2, seed=9), z).tanh(), align_corners=False)),
    "grid_reflected": case(lambda z: F.grid_sample(z, of(2 * normal(2, 3, 2, 2, seed=9), z), mode="nearest", padding_mode="reflection", align_corners=True)),
    "grid_3d": case(lambda z: F.grid_sample(z, of(normal(2, 3, 2, 2, 3, seed=9), z).tanh(), align_corners=False), VOLUME),
    "grid_itself": case(lambda z, g: F.grid_sample(z, 0.5 * g.tanh(), align_corners=False), IMAGE, (2, 3, 2, 2), falls_back=True),
    "affine_grid": case(lambda t: F.affine_grid(t, [2, 1, 3, 4], align_corners=False), (2, 2, 3)),
}  # fmt: skip

PLACES = torch.tensor([3, 0, 3])
NEAR = torch.tensor([[[1, 0], [3, 2], [0, 0]], [[2, 2], [1, 3], [0, 1]]])
TOKENS = torch.tensor([[3, 0, 3], [1, 1, 2]])
MASK = torch.arange(12).reshape(4, 3) % 3 == 1
BAG = torch.tensor([3, 0, 3, 1, 1, 2])
T3 = (2, 4, 3)
"""The shape of most values here."""
INDEXING: dict[str, Case] = {
    "embedding": case(lambda w: F.embedding(TOKENS, w), (4, 5)),
    "embedding_padding": case(lambda w: F.embedding(TOKENS, w, padding_idx=0), (4, 5)),
    "embedding_one": case(lambda w: F.embedding(torch.tensor(2), w), (4, 5)),
    "bag_mean": case(lambda w: F.embedding_bag(TOKENS, w, mode="mean"), (4, 5)),
    "bag_sum": case(lambda w: F.embedding_bag(BAG, w, torch.tensor([0, 2, 2]), mode="sum"), (4, 5)),
    "bag_padding": case(lambda w: F.embedding_bag(BAG, w, torch.tensor([0, 2, 2]), mode="mean", padding_idx=3), (4, 5)),
    "bag_all_padding": case(lambda w: F.embedding_bag(BAG, w, torch.tensor([0, 3, 5]), mode="mean", padding_idx=2), (4, 5)),
    "bag_last_offset": case(lambda w: F.embedding_bag(BAG, w, torch.tensor([0, 2, 6]), mode="mean", include_last_offset=True), (4, 5)),
    "bag_weights": case(lambda w, s: F.embedding_bag(TOKENS, w, mode="sum", per_sample_weights=s), (4, 5), (2, 3)),
    "bag_max": case(lambda w: F.embedding_bag(TOKENS, w, mode="max"), (4, 5), falls_back=True),
    "index_first": case(lambda z: z[torch.tensor([1, 0, 1])], T3),
    "index_middle": case(lambda z: z[:, PLACES], T3),
    "index_matrix": case(lambda z: z[:, torch.tensor([[0, 1], [3, 3]])], T3),
    "index_two": case(lambda z: z[torch.tensor([1, 0, 1]), PLACES], T3),
    "index_last_two": case(lambda z: z[:, PLACES, torch.tensor([0, 2, 1])], T3),
    "index_apart": case(lambda z: z[torch.tensor([1, 0, 1]), :, torch.tensor([0, 2, 2])], T3),
    "index_apart_matrix": case(lambda z: z[torch.tensor([[1], [0]]), :, torch.tensor([[0, 2, 1]])], T3),
    "index_after_new": case(lambda z: z[:, None, PLACES], T3),
    "index_mask": case(lambda z: z[:, torch.tensor([True, False, True, True])], T3),
    "index_mask_matrix": case(lambda z: z[:, MASK], T3),
    "index_select": case(lambda z: z.index_select(1, PLACES), T3),
    "index_select_first": case(lambda z: z.index_select(0, torch.tensor([1, 1, 0])), T3),
    "gather": case(lambda z: z.gather(1, NEAR[:, :, :1].expand(2, 3, 3)), T3),
    "gather_last": case(lambda z: z.gather(-1, NEAR.clamp(max=2)), T3),
    "take_along": case(lambda z: z.take_along_dim(NEAR[:, :, :1], 1), T3),
    "take_along_flat": case(lambda z: z.take_along_dim(PLACES), T3),
    "take": case(lambda z: z.take(NEAR), T3),
    "scatter": case(lambda z, s: z.scatter(1, torch.tensor([2, 0]).reshape(1, 2, 1).expand(2, 2, 3), s), T3, (2, 2, 3)),
    "scatter_value": case(lambda z: z.scatter(1, NEAR, 1.5), T3),
    "scatter_add": case(lambda z, s: z.scatter_add(1, NEAR, s), T3, (2, 3, 2)),
    "scatter_add_zeros": case(lambda s: torch.zeros(2, 4, 3, dtype=s.dtype).scatter_add(1, NEAR, s), (2, 3, 3)),
    "scatter_reduce": case(lambda z, s: z.scatter_reduce(1, NEAR, s, "sum"), T3, (2, 3, 2)),
    "scatter_reduce_apart": case(lambda z, s: z.scatter_reduce(1, NEAR, s, "sum", include_self=False), T3, (2, 3, 2)),
    "scatter_mean": case(lambda z, s: z.scatter_reduce(1, NEAR, s, "mean"), T3, (2, 3, 2)),
    "scatter_max": case(lambda z, s: z.scatter_reduce(1, NEAR, s, "amax"), T3, (2, 3, 2), falls_back=True),
    "index_add": case(lambda z, s: z.index_add(1, PLACES, s), T3, (2, 3, 3)),
    "index_add_alpha": case(lambda z, s: z.index_add(0, torch.tensor([1]), s, alpha=0.5), T3, (1, 4, 3)),
    "graph_convolution": case(lambda z, w: torch.zeros(4, 2, dtype=z.dtype).index_add(0, PLACES, (z @ w)[:3]), (4, 3), (3, 2)),
    "index_copy": case(lambda z, s: z.index_copy(1, torch.tensor([2, 0]), s), T3, (2, 2, 3)),
    "index_fill": case(lambda z: z.index_fill(1, torch.tensor([2, 0]), 1.0), T3),
    "index_put": case(lambda z, s: z.index_put((torch.tensor([1, 0]), torch.tensor([2, 3])), s), T3, (2, 3)),
    "index_put_spread": case(lambda z, s: z.index_put((torch.tensor([1, 0]), torch.tensor([2, 3])), s), T3, (3,)),
    "index_put_add": case(lambda z, s: z.index_put((torch.tensor([1, 0, 1]),), s, accumulate=True), T3, (3, 4, 3)),
    "index_put_mask": case(lambda z, s: z.index_put((torch.tensor([True, False]),), s), T3, (1, 4, 3)),
    "masked_scatter": case(lambda z, s: z.masked_scatter(MASK, s), T3, (10,)),
    "sparse": case(lambda z: torch.sparse.mm(torch.eye(4, dtype=z.dtype).roll(1, 0).to_sparse(), z), (4, 3)),
}  # fmt: skip

SHAPES: dict[str, Case] = {
    "cat_empty": case(lambda z: torch.cat([torch.tensor([], dtype=z.dtype), z], 1), T3),
    "cat_empty_last": case(lambda z, s: torch.cat([z, torch.tensor([], dtype=z.dtype), s], -2), T3, (2, 1, 3)),
    "cat_of_vectors": case(lambda z, s: torch.cat([z, torch.tensor([], dtype=z.dtype), s]), (4,), (2,)),
    "cat": case(lambda z, s: torch.cat([z, s, z], 1), T3, (2, 2, 3)),
    "cat_with_constant": case(lambda z: torch.cat([torch.ones(1, 4, 3, dtype=z.dtype), z]), T3),
    "stack": case(lambda z, s: torch.stack([z, s], 1), T3, T3),
    "stack_with_constant": case(lambda z: torch.stack([torch.ones_like(z), z, torch.ones_like(z)], -1), T3),
    "slice": case(lambda z: z[:, 1:4:2], T3),
    "slice_negative": case(lambda z: z[:, -3:-1, -2:], T3),
    "slice_nothing": case(lambda z: z[:, 2:2], T3),
    "slice_all": case(lambda z: z[:, -9:9], T3),
    "select": case(lambda z: z[:, 2], T3),
    "select_negative": case(lambda z: z[..., -2], T3),
    "narrow": case(lambda z: z.narrow(1, 1, 2), T3),
    "split": case(lambda z: z.split(3, 1), T3),
    "split_sizes": case(lambda z: z.split([1, 0, 3], 1), T3),
    "chunk": case(lambda z: z.chunk(3, -1), T3),
    "tensor_split": case(lambda z: z.tensor_split(3, 1), T3),
    "unbind": case(lambda z: z.unbind(1), T3),
    "permute": case(lambda z: z.permute(2, 0, 1), T3),
    "movedim": case(lambda z: z.movedim(0, -1), T3),
    "swapaxes": case(lambda z: z.swapaxes(0, 2), T3),
    "matrix": case(lambda z: z.mT, T3),
    "squeeze": case(lambda z: z.squeeze(), (1, 4, 1, 3)),
    "squeeze_one": case(lambda z: z.squeeze(2), (1, 4, 1, 3)),
    "unsqueeze": case(lambda z: z.unsqueeze(-2), T3),
    "heads": case(lambda z: z.view(2, 5, 3, 2).transpose(1, 2), (2, 5, 6)),
    "heads_packed": case(lambda z: z.reshape(2, 5, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0), (2, 5, 12)),
    "heads_back": case(lambda z: z.transpose(1, 2).reshape(2, 5, 6), (2, 3, 5, 2)),
    "cut_and_join": case(lambda z: z.reshape(2, 2, 6), (2, 4, 3)),
    "unflatten": case(lambda z: z.unflatten(1, (2, -1)), T3),
    "flatten": case(lambda z: z.flatten(1), T3),
    "diagonal": case(lambda z: z.diagonal(1, 1, 2), T3),
    "diagonal_negative": case(lambda z: z.diagonal(-1, -1, 0), T3),
    "diagonal_embedded": case(torch.diag_embed, T3),
    "diagonal_scatter": case(lambda z, s: z.diagonal_scatter(s, 0, 1, 2), T3, (2, 3)),
    "diag": case(torch.diag, (4,)),
    "trace": case(torch.trace, (4, 4)),
    "tril": case(lambda z: z.tril(-1), T3),
    "triu": case(lambda z: z.triu(1), T3),
    "roll": case(lambda z: z.roll((1, -2), (1, 2)), T3),
    "roll_twice": case(lambda z: z.roll((1, 2), (1, 1)), T3),
    "roll_flat": case(lambda z: z.roll(5), T3),
    "flip": case(lambda z: z.flip(0, -1), T3),
    "rotate": case(lambda z: z.rot90(1, (1, 2)), T3),
    "fliplr": case(torch.fliplr, T3),
    "repeat": case(lambda z: z.repeat(3, 1, 2, 1), T3),
    "tile": case(lambda z: z.tile(2, 1), T3),
    "repeat_interleave": case(lambda z: z.repeat_interleave(2, 1), T3),
    "repeat_interleave_flat": case(lambda z: z.repeat_interleave(2), T3),
    "expand": case(lambda z: z.expand(3, 4, 5), (4, 1)),
    "broadcast_tensors": case(torch.broadcast_tensors, (2, 1, 3), (4, 1)),
    "unfold": case(lambda z: z.unfold(1, 2, 2), T3),
    "im2col": case(lambda z: F.unfold(z, (2, 3), padding=1, stride=2)),
    "col2im": case(lambda z: F.fold(z, (4, 5), (2, 2), stride=2), (2, 12, 4)),
    "pixel_shuffle": case(lambda z: F.pixel_shuffle(z, 2)),
    "pixel_unshuffle": case(lambda z: F.pixel_unshuffle(z, 2), (2, 3, 4, 6)),
    "channel_shuffle": case(lambda z: F.channel_shuffle(z, 2), (2, 6, 2, 3)),
    "as_strided": case(lambda z: z.as_strided((2, 3), (5, 2), 1), T3),
    "select_scatter": case(lambda z, s: z.select_scatter(s, 1, 2), T3, (2, 3)),
    "slice_scatter": case(lambda z, s: z.slice_scatter(s, 1, 1, 3), T3, (2, 2, 3)),
    "block_diagonal": case(torch.block_diag, (2, 3), (4, 2)),
    "hstack": case(lambda a, b: torch.hstack([a, b]), T3, (2, 1, 3)),
    "vstack": case(lambda a, b: torch.vstack([a, b]), (4,), (2, 4)),
    "dstack": case(lambda a, b: torch.dstack([a, b]), (4, 2), (4, 2, 1)),
    "flipud": case(torch.flipud, T3),
    "column_stack": case(lambda a, b: torch.column_stack([a, b]), (4,), (4, 2)),
    "meshgrid": case(lambda a, b: torch.meshgrid(a, b, indexing="xy"), (4,), (3,)),
    "pad": case(lambda z: F.pad(z, (1, 2, 0, 1), value=2.0), T3),
    "pad_reflect": case(lambda z: F.pad(z, (1, 2), mode="reflect"), T3),
    "pad_circular": case(lambda z: F.pad(z, (1, 2, 1, 0), mode="circular")),
    "nothing_in_it": case(lambda z, e: torch.cat([z, e.reshape(2, 0, 3).transpose(1, 2).transpose(1, 2)], 1), T3, (2, 3, 0)),
}  # fmt: skip

STACKED = ((2, 3, 4, 5), (2, 3, 5, 2))
PRODUCTS: dict[str, Case] = {
    "linear": case(F.linear, (2, 3, 5), (4, 5), (4,)),
    "linear_vector": case(F.linear, (5,), (4, 5), (4,)),
    "linear_to_one": case(F.linear, (3, 5), (5,)),
    "mm": case(torch.mm, (4, 5), (5, 3)),
    "bmm": case(torch.bmm, (2, 4, 5), (2, 5, 3)),
    "bmm_one": case(torch.bmm, (1, 4, 5), (1, 5, 3)),
    "mv": case(torch.mv, (4, 5), (5,)),
    "dot": case(torch.dot, (5,), (5,)),
    "vector_matrix": case(torch.matmul, (5,), (5, 3)),
    "matmul": case(torch.matmul, *STACKED),
    "matmul_tall": case(torch.matmul, (2, 3, 2, 5), (2, 3, 5, 7)),
    "matmul_spread": case(torch.matmul, (2, 1, 4, 5), (3, 5, 2)),
    "matmul_spread_left": case(torch.matmul, (3, 4, 5), (2, 1, 5, 2)),
    "matrix_times_stack": case(torch.matmul, (4, 5), (2, 3, 5, 2)),
    "stack_times_matrix": case(torch.matmul, (2, 3, 4, 5), (5, 2)),
    "stack_times_vector": case(torch.matmul, (2, 3, 4, 5), (5,)),
    "addmm": case(lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2), (3,), (4, 5), (5, 3)),
    "addmm_without": case(lambda c, a, b: torch.addmm(c, a, b, beta=0), (4, 3), (4, 5), (5, 3)),
    "addmv": case(torch.addmv, (4,), (4, 5), (5,)),
    "baddbmm": case(lambda c, a, b: torch.baddbmm(c, a, b, beta=0.5, alpha=2), (2, 4, 1), (2, 4, 5), (2, 5, 3)),
    "addbmm": case(lambda c, a, b: torch.addbmm(c, a, b, beta=0.5, alpha=2), (4, 3), (2, 4, 5), (2, 5, 3)),
    "addr": case(torch.addr, (4, 5), (4,), (5,)),
    "outer": case(torch.outer, (4,), (5,)),
    "inner": case(torch.inner, (2, 4), (3, 4)),
    "kron": case(torch.kron, (2, 3), (2, 2)),
    "vdot": case(torch.vdot, (5,), (5,)),
    "vecdot": case(torch.linalg.vecdot, (4, 5), (4, 5)),
    "cross": case(torch.linalg.cross, (4, 3), (4, 3)),
    "bilinear": case(F.bilinear, (2, 3, 4), (2, 3, 5), (3, 4, 5), (3,)),
    "einsum_weight": case(lambda x, w: torch.einsum("bld,dhe->bhle", x, w), (2, 3, 4), (4, 2, 5)),
    "einsum_batched": case(lambda x, w: torch.einsum("bnd,nde->bne", x, w), (2, 3, 4), (3, 4, 5)),
    "einsum_three": case(lambda a, b, c: torch.einsum("bi,bj,ijk->bk", a, b, c), (2, 3), (2, 4), (3, 4, 5)),
    "einsum_diagonal": case(lambda a: torch.einsum("bii->b", a), (2, 4, 4)),
    "einsum_sum": case(lambda a, b: torch.einsum("bij,bk->k", a, b), (2, 3, 4), (2, 5)),
    "tensordot": case(lambda a, b: torch.tensordot(a, b, dims=([1, 2], [0, 1])), (2, 3, 4), (3, 4, 5)),
    "multi_dot": case(lambda a, b, c: torch.linalg.multi_dot([a, b, c]), (2, 3), (3, 4), (4, 5)),
}
COMPLEX = {
    f"{name}_complex": Case(PRODUCTS[name].function, PRODUCTS[name].shapes, dtype=torch.complex128)
    for name in ("linear", "linear_vector", "mm", "bmm", "mv", "dot", "matmul", "addmm", "addmv", "baddbmm", "outer", "vdot",
                 "bilinear", "einsum_weight", "einsum_three", "tensordot", "matrix_times_stack", "matmul_spread", "kron")
}  # fmt: skip


@pytest.mark.parametrize("cases", groups(ATTENTION, 8))
def test_attention(cases: dict[str, Case]) -> None:
    check_all(cases)


@pytest.mark.parametrize("cases", groups(NORMALIZATION, 11))
def test_normalization(cases: dict[str, Case]) -> None:
    check_all(cases)


@pytest.mark.parametrize("cases", groups(CONVOLUTION, 11))
def test_convolution(cases: dict[str, Case]) -> None:
    check_all(cases)


@pytest.mark.parametrize("cases", groups(POOLING, 16))
def test_pooling(cases: dict[str, Case]) -> None:
    check_all(cases)


def test_resampling() -> None:
    check_all(RESAMPLING)


@pytest.mark.parametrize("cases", groups(INDEXING, 24))
def test_indexing(cases: dict[str, Case]) -> None:
    check_all(cases)


@pytest.mark.parametrize("cases", groups(SHAPES, 24))
def test_shapes(cases: dict[str, Case]) -> None:
    check_all(cases)


@pytest.mark.parametrize("cases", groups(PRODUCTS | COMPLEX, 20))
def test_products(cases: dict[str, Case]) -> None:
    check_all(cases)
