"""Differences of one entry of a channel: a feature of a head, through views, transpositions and attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_agrees, initialize, normal, some_coordinates
from rule_cases import apply
from torch import Tensor, nn

from deepzero.graph.differences import Channel, ChannelEntry
from deepzero.graph.propagate import nbytes
from deepzero.graph.rules import attention as rules_of_attention

aten = torch.ops.aten
SAMPLES, HEADS, LENGTH, FEATURES, COUNT = 2, 3, 4, 5, 6
SHAPE = torch.Size((SAMPLES, HEADS, LENGTH, FEATURES))
HEAD = {
    "one head": torch.full((COUNT,), 1),
    "several heads": torch.tensor([0, 0, 0, 0, 2, 2]),
    "a head each": torch.tensor([0, 2, 1, 2, 0, 1]),
}
PLACES = torch.tensor([0, 1, 4, 4, 2, 0])


def entry(heads: Tensor, dtype: torch.dtype = torch.float64) -> ChannelEntry:
    return ChannelEntry(1, heads, normal(COUNT, SAMPLES, LENGTH, seed=1).to(dtype), PLACES, SHAPE)


def plain(difference: ChannelEntry) -> Channel:
    return Channel(difference.axis, difference.channels, difference.delta, difference.shape)


@pytest.mark.parametrize("heads", HEAD.values(), ids=HEAD)
def test_is_a_channel(heads: Tensor) -> None:
    difference = entry(heads)
    dense = difference.dense()
    assert difference.count == COUNT
    assert int((dense != 0).sum()) == COUNT * SAMPLES * LENGTH
    for p in range(COUNT):
        assert torch.equal(dense[p, :, heads[p], :, PLACES[p]], difference.line[p])
    assert nbytes(difference) == difference.line.nbytes
    doubled = difference.with_delta(2 * difference.delta)
    assert not isinstance(doubled, ChannelEntry)
    assert torch.equal(doubled.dense(), 2 * dense)


def test_a_feature_becomes_an_entry_of_its_head_and_a_feature_again() -> None:
    joined = torch.Size((SAMPLES, LENGTH, HEADS * FEATURES))
    channels = torch.tensor([0, 3, 7, 7, 14, 9])
    difference, base = Channel(2, channels, normal(COUNT, SAMPLES, LENGTH), joined), normal(*joined)
    apart = apply(aten.view.default, (base, difference), [SAMPLES, LENGTH, HEADS, FEATURES])
    assert isinstance(apart, ChannelEntry)
    turned = apply(aten.transpose.int, (base.view(apart.shape), apart), 1, 2)
    assert isinstance(turned, ChannelEntry)
    expected = difference.dense().view(COUNT, *apart.shape).transpose(2, 3)
    assert torch.equal(turned.dense(), expected)
    back = apply(aten.transpose.int, (base.view(apart.shape).transpose(1, 2), turned), 1, 2)
    assert isinstance(back, ChannelEntry)
    again = apply(aten.view.default, (base.view(apart.shape), back), [*joined])
    assert isinstance(again, Channel)
    assert not isinstance(again, ChannelEntry)
    assert torch.equal(again.channels, channels)
    assert torch.equal(again.delta, difference.delta)


@pytest.mark.parametrize("heads", HEAD.values(), ids=HEAD)
def test_shapes_that_it_does_not_stay_an_entry_in(heads: Tensor) -> None:
    difference, base = entry(heads), normal(*SHAPE)
    for target, *arguments in (
        (aten.transpose.int, 2, 3),
        (aten.permute.default, [3, 1, 0, 2]),
        (aten.view.default, [SAMPLES, HEADS, LENGTH * FEATURES]),
        (aten.slice.Tensor, 3, 1, 4),
        (aten.mul.Tensor, 0.5),
        (aten.tanh.default,),
    ):
        found = apply(target, (base, difference), *arguments)
        expected = apply(target, (base, plain(difference)), *arguments)
        assert isinstance(found, Channel)
        assert isinstance(expected, Channel)
        assert not isinstance(found, ChannelEntry)
        assert torch.equal(found.dense(), expected.dense())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", HEAD.values(), ids=HEAD)
def test_attention(heads: Tensor, causal: bool, dtype: torch.dtype) -> None:
    """One feature of the values: one of the outcome. Of queries or keys: as for the whole head."""
    q, k, v = (normal(*SHAPE, seed=seed).to(dtype) for seed in (5, 6, 7))
    attend, difference = aten.scaled_dot_product_attention.default, entry(heads, dtype)
    found = apply(attend, q, k, (v, difference), None, 0.0, causal)
    assert isinstance(found, ChannelEntry)
    moved = F.scaled_dot_product_attention(q, k, v + difference.dense(), is_causal=causal)
    exact = moved - F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-6}
    torch.testing.assert_close(found.dense(), exact, **tolerance)
    for place in range(3):
        differing = [(t, difference if i == place else None) for i, t in enumerate((q, k, v))]
        whole = [(t, plain(difference) if i == place else None) for i, t in enumerate((q, k, v))]
        some, every = (apply(attend, *one, None, 0.0, causal) for one in (differing, whole))
        assert isinstance(some, Channel)
        assert isinstance(every, Channel)
        torch.testing.assert_close(some.dense(), every.dense(), **tolerance)


class Projected(nn.Module):
    """Attention whose queries, keys and values are made by layers of their own, behind a norm or not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x).view(2, 5, 3, 2).transpose(1, 2) for layer in list(self.layers)[:3]]
        seen = F.scaled_dot_product_attention(*parts, is_causal=True)
        out: Tensor = self.norm(x + self.layers[3](seen.transpose(1, 2).flatten(2)))
        return out.flatten(0, 1)


def test_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = initialize(Projected(), dtype=torch.float64), normal(2, 5, 6, seed=2), torch.arange(10) % 6
    taken: list[int] = []
    of_entry = rules_of_attention._of_value_entry

    def counted(difference: ChannelEntry, *arguments: object) -> ChannelEntry:
        taken.append(difference.count)
        return of_entry(difference, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rules_of_attention, "_of_value_entry", counted)
    assert_agrees(model, F.cross_entropy, x, y, step_size=0.1, sparsity=some_coordinates(model, most=9))
    assert taken
