"""Products of tensors that both differ: matrix products, attention, convolutions whose weights are computed, embeddings."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from every_kind import Op, check_each, groups
from oracle import normal
from torch import Tensor

FIXED = normal(2, 4, 5, 3, seed=21)
VECTOR = normal(30, seed=22)
IMAGE = normal(3, 6, 8, 7, seed=23)
MATRIX = normal(30, 30, seed=24)
MASK = normal(2, 1, 6, 6, seed=25)
HEADS = normal(2, 4, 6, 5, seed=26)
ROWS = torch.tensor([[3, 0, 3], [7, 1, 2]])


def two(z: Tensor) -> Tensor:
    return z.reshape(8, 30)


PRODUCTS: dict[str, Op] = {
    "matmul_fixed": lambda z: z @ FIXED,
    "matmul_fixed_matrix": lambda z: z @ FIXED[0, 0],
    "fixed_matmul": lambda z: FIXED.transpose(-1, -2) @ z.transpose(-1, -2),
    "fixed_matmul_matrix": lambda z: FIXED[0, 0].t() @ z[0, 0].t(),
    "matmul_self": lambda z: z @ z.transpose(-1, -2),
    "matmul_both": lambda z: z @ z.tanh().transpose(-1, -2),
    "matmul_broadcast": lambda z: z @ z[0, :1].transpose(-1, -2),
    "matmul_by_table": lambda z: MATRIX[:3, :8] @ two(z),
    "matmul_stack_by_table": lambda z: FIXED.reshape(3, 5, 8) @ two(z),
    "matmul_vector": lambda z: two(z) @ VECTOR,
    "vector_matmul": lambda z: VECTOR[:8] @ two(z),
    "mm": lambda z: torch.mm(two(z), two(z).t()),
    "bmm": lambda z: torch.bmm(z[:, 0], z[:, 1].transpose(1, 2)),
    "mv": lambda z: torch.mv(two(z), two(z)[0]),
    "dot": lambda z: torch.dot(two(z)[0], two(z)[1]),
    "outer": lambda z: torch.outer(two(z)[0], two(z)[1]),
    "addmm": lambda z: torch.addmm(two(z)[:, :3], two(z), MATRIX[:, :3], beta=0.5, alpha=2),
    "addmm_bias": lambda z: torch.addmm(two(z)[0, :3], MATRIX[:4, :8], MATRIX[:8, :3]),
    "addmm_table": lambda z: torch.addmm(VECTOR, MATRIX[:4, :8], two(z), alpha=0.5),
    "addmm_all": lambda z: torch.addmm(z[0, 0, :, :1], z[0, 0], z[0, 1].t()),
    "addmv": lambda z: torch.addmv(two(z)[:, 0], two(z), two(z)[0]),
    "baddbmm": lambda z: torch.baddbmm(z[:, 0, :, :1], z[:, 0], z[:, 1].transpose(1, 2)),
    "einsum": lambda z: torch.einsum("bchw,bdhw->bcd", z, z.tanh()),
    "einsum_fixed": lambda z: torch.einsum("bchw,bcwk->bhk", z, FIXED),
    "tensordot": lambda z: torch.tensordot(z, FIXED, dims=([1, 3], [1, 2])),
    "linear_weight": lambda z: F.linear(VECTOR, two(z)),
    "linear_weight_and_input": lambda z: F.linear(two(z).tanh(), two(z), two(z)[:, 0]),
    "linear_one_bias": lambda z: F.linear(MATRIX[:4], MATRIX[:3], two(z)[0, :3]),
    "conv_weight": lambda z: F.conv2d(IMAGE, z.reshape(2, 4, 6, 5)[:, :, :3, :2].repeat(1, 2, 1, 1)[:, :6]),
    "conv_weight_and_input": lambda z: F.conv2d(z, z[:, :, :3, :3].tanh(), z[0, 0, 0, :2], padding=1),
    "conv_weight_and_input_groups": lambda z: F.conv2d(z, z.tanh()[:, :2, :3, :3], padding="same", groups=2),
    "conv_1d_weight": lambda z: F.conv1d(z.flatten(2), z.flatten(2)[:, :, :3], stride=2),
    "cosine": lambda z: F.cosine_similarity(z, z.tanh(), dim=1),
    "pairwise_distance": lambda z: F.pairwise_distance(two(z), two(z).tanh()),
    "cdist": lambda z: torch.cdist(two(z), two(z).tanh()),
    "embedding": lambda z: F.embedding(ROWS, two(z)),
    "embedding_of_one": lambda z: F.embedding(torch.tensor(5), two(z)),
    "embedding_by_value": lambda z: F.embedding(two(z).argmax(1) % 8, two(z)),
    "embedding_fixed_by_value": lambda z: F.embedding(two(3 * z).argmax(1), MATRIX[:, :3]) + z.mean(),
    "embedding_bag": lambda z: F.embedding_bag(ROWS, two(z), mode="mean"),
}


def manual_attention(z: Tensor) -> Tensor:
    scores = z @ z.tanh().transpose(-1, -2) / math.sqrt(5)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    return scores.masked_fill(~causal, -math.inf).softmax(-1) @ z.square()


def attend(z: Tensor, **options: object) -> Tensor:
    return F.scaled_dot_product_attention(z, z.tanh(), 0.3 * z.square(), **options)


ATTENTION: dict[str, Op] = {
    "plain": attend,
    "causal": lambda z: attend(z, is_causal=True),
    "scale": lambda z: attend(z, scale=0.7),
    "bool_mask": lambda z: attend(z, attn_mask=torch.ones(6, 6, dtype=torch.bool).tril(1)),
    "float_mask": lambda z: attend(z, attn_mask=MASK[0, 0]),
    "mask_per_sample": lambda z: attend(z, attn_mask=MASK),
    "query_only": lambda z: F.scaled_dot_product_attention(z, HEADS[:, :, :3], HEADS[:, :, :3, :2]),
    "key_only": lambda z: F.scaled_dot_product_attention(HEADS[:, :, :3], z, HEADS[..., :2]),
    "value_only": lambda z: F.scaled_dot_product_attention(HEADS[:, :, :3, :2], HEADS[..., :2], z, is_causal=True),
    "three_dimensional": lambda z: F.scaled_dot_product_attention(z[:, 0], z[:, 1], z[:, 2]),
    "by_hand": manual_attention,
    "by_hand_with_where": lambda z: torch.where(torch.arange(5) < 3, z, -math.inf).softmax(-1),
    "by_hand_log": lambda z: z.masked_fill(torch.arange(5) > 2, -math.inf).log_softmax(-1)[..., :3],
}


@pytest.mark.parametrize("ops", groups(PRODUCTS))
def test_product(ops: dict[str, Op]) -> None:
    check_each(ops)


@pytest.mark.parametrize("ops", groups(ATTENTION))
def test_attention(ops: dict[str, Op]) -> None:
    check_each(ops)
