from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepzero.errors import InvalidInputError
from deepzero.models import GPT, CausalAttention, LowRankLinear, adapt_attention


def small(depth: int = 2) -> GPT:
    return GPT(symbols=11, context=6, width=8, heads=2, depth=depth)


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(seed))


def test_parameters() -> None:
    count = sum(p.numel() for p in small().parameters())
    block = 4 * (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 2 * 2 * 8
    assert count == 2 * 11 * 8 + 6 * 8 + 2 * block + 2 * 8


def test_a_token_does_not_see_those_behind_it() -> None:
    gpt, x = small(), tokens()
    changed = x.clone()
    changed[:, 4] = (x[:, 4] + 1) % 11
    before, after = gpt(x).view(3, 6, 11), gpt(changed).view(3, 6, 11)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(-1).min() > 0


def test_attention_is_the_weighted_mean_of_values() -> None:
    attention = CausalAttention(8, 2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q, k, v = (part(x).view(2, 5, 2, 4).transpose(1, 2) for part in (attention.query, attention.key, attention.value))
    scores = (q @ k.transpose(-1, -2) / 2).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    expected = attention.output((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(attention(x), expected)


def test_an_adapted_network_is_the_frozen_one_until_it_is_trained() -> None:
    gpt, x = small(), tokens()
    before = gpt(x)
    adapted = adapt_attention(gpt, rank=3)
    assert torch.equal(adapted(x), before)
    assert {name.rsplit(".", 1)[1] for name, p in adapted.named_parameters() if p.requires_grad} == {"down", "up"}
    layer = adapted.get_submodule("blocks.0.attention.query")
    assert isinstance(layer, LowRankLinear)
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        layer.up.fill_(0.1)
        expected = layer.frozen(z) + 16.0 / 3 * z @ (layer.up @ layer.down).T
        torch.testing.assert_close(layer(z), expected)


def test_bad_arguments_are_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="heads must divide the width 8, got 3"):
        GPT(symbols=4, context=4, width=8, heads=3, depth=1)
    with pytest.raises(InvalidInputError, match="depth"):
        GPT(symbols=4, context=4, width=8, heads=2, depth=0)
    with pytest.raises(InvalidInputError, match="rank"):
        adapt_attention(small(), rank=0)
