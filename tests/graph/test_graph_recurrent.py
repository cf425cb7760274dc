"""Recurrent layers and attention from end to end: against autograd in float64, and without a fallback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_agrees, assert_close, initialize, normal, some_coordinates
from torch import Tensor, nn

import deepzero as dz

LABELS = torch.tensor([0, 1, 2, 0])


class Last(nn.Module):
    """The last output of a layer over sequences, and all that it returns besides."""

    def __init__(self, layer: nn.Module, features: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        output, state = self.layer(x)
        states = state if isinstance(state, tuple) else (state,)
        return self.head(output[:, -1]) + sum((s * s).mean() for s in states)


class OneCell(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Last(nn.LSTM(5, 4, batch_first=True), 4),
    "lstm_all": lambda: Last(nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True, proj_size=2), 4),
    "lstm_without_bias": lambda: Last(nn.LSTM(5, 4, 2, bias=False, batch_first=True, proj_size=3), 3),
    "gru": lambda: Last(nn.GRU(5, 4, 2, batch_first=True, bidirectional=True), 8),
    "rnn_tanh": lambda: Last(nn.RNN(5, 4, 2, batch_first=True, bias=False), 4),
    "rnn_relu": lambda: Last(nn.RNN(5, 4, batch_first=True, nonlinearity="relu", bidirectional=True), 8),
    "lstm_time_first": lambda: Last(nn.LSTM(5, 4), 4),
    "lstm_cell": lambda: OneCell(nn.LSTMCell(5, 4)),
    "gru_cell": lambda: OneCell(nn.GRUCell(5, 4)),
    "rnn_cell": lambda: OneCell(nn.RNNCell(5, 4, bias=False)),
    "rnn_cell_relu": lambda: OneCell(nn.RNNCell(5, 4, nonlinearity="relu")),
}  # fmt: skip


def assert_gradient(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """To the order of the step, for sampled coordinates; and no operation is evaluated twice."""
    coordinates = some_coordinates(model, most=12)
    zo = dz.CGE(
        model,
        loss=F.cross_entropy,
        step_size=1e-7,
        sparsity=coordinates,
        evaluator=dz.PropagationEvaluator(verify=False),
    )
    found = zo.estimate(x, y).gradients
    exact = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    expected = {name: torch.zeros_like(g) for name, g in zip(coordinates, exact, strict=True)}
    for (name, index), g in zip(coordinates.items(), exact, strict=True):
        expected[name].view(-1)[index] = g.reshape(-1)[index]
    assert_close(found, expected, tolerance=1e-5)
    assert zo.evaluator.program(zo.objective, (x, y)).fallbacks == ()


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layer(name: str) -> None:
    assert_gradient(initialize(RECURRENT[name]()), normal(4, 3, 5, seed=2), LABELS)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_between_layers_sees_the_masks_of_the_step(layer: Callable[..., nn.Module]) -> None:
    model = initialize(Last(layer(5, 4, 2, dropout=0.5, batch_first=True), 4))
    assert_agrees(model, F.cross_entropy, normal(4, 3, 5, seed=2), LABELS, sparsity=some_coordinates(model, most=12))


class Heads(nn.Module):
    """Self-attention of four heads, with two of keys and values, and a bias that is learned, if asked for."""

    def __init__(self, *, kv_heads: int = 4, bias: bool = False, **options: Any) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(6, 12), nn.Linear(6, 6 * kv_heads), nn.Linear(12, 3)
        self.bias = nn.Parameter(torch.zeros(4, 5, 5)) if bias else None
        self.kv_heads, self.options = kv_heads, options

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(*x.shape[:2], 4, 3).transpose(1, 2)
        k, v = self.kv(x).reshape(*x.shape[:2], 2, self.kv_heads, 3).permute(2, 0, 3, 1, 4)
        options = self.options if self.bias is None else {**self.options, "attn_mask": self.bias}
        y = F.scaled_dot_product_attention(q, k, v, **options)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], 12).mean(1))


NOTHING = torch.ones(5, 5, dtype=torch.bool).tril()
NOTHING[3] = False
ATTENTION: dict[str, Callable[[], nn.Module]] = {
    "plain": Heads,
    "causal": lambda: Heads(is_causal=True),
    "row_of_nothing": lambda: Heads(attn_mask=NOTHING),
    "learned_bias": lambda: Heads(bias=True),
    "grouped": lambda: Heads(kv_heads=2, enable_gqa=True),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str) -> None:
    assert_gradient(initialize(ATTENTION[name]()), normal(4, 5, 6, seed=2), LABELS)


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"bias": True}, {"kv_heads": 2, "enable_gqa": True}], ids=str
)
def test_attention_with_dropout_sees_the_masks_of_the_step(options: dict[str, Any]) -> None:
    model = initialize(Heads(dropout_p=0.3, **options))
    assert_agrees(model, F.cross_entropy, normal(4, 5, 6, seed=2), LABELS, sparsity=some_coordinates(model, most=12))


class Cached(nn.Module):
    """Keys appended to a cache that starts as an empty tensor of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.tensor([], dtype=x.dtype), self.layer(x)], dim=-2).mean(1)


class PooledFeatures(nn.Module):
    """A pooling whose channels are the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.avg_pool1d(self.first(x), 2) + F.max_pool1d(self.first(x), 2))


def test_a_cache_that_starts_empty() -> None:
    assert_gradient(initialize(Cached()), normal(4, 5, 6, seed=2), LABELS)


def test_pooling_without_a_batch() -> None:
    assert_gradient(initialize(PooledFeatures()), normal(4, 6, seed=2), LABELS)


def test_instance_norm_shows_its_running_statistics_to_the_graph() -> None:
    """They move once, by the base forward, and the model's own are not touched while differences are taken."""
    model = initialize(
        nn.Sequential(
            nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten(), nn.Linear(12, 3)
        )
    )
    x = normal(4, 2, 5, seed=2)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = dz.PropagationEvaluator(verify=False)
    zo = dz.CGE(model, loss=F.cross_entropy, evaluator=found)
    estimate = zo.estimate(x, LABELS)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    model(x)
    for name in ("1.running_mean", "1.running_var"):
        assert not torch.equal(estimate.buffers[name], before[name])
        assert torch.equal(estimate.buffers[name], dict(model.named_buffers())[name])


class Forked(nn.Module):
    """A convolution that batch norm and relu read, and the sum after them too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.stem(x))
        return self.head((torch.relu(self.norm(y)) + 3 * y).mean((2, 3)))


def test_fused_batch_norm_leaves_alone_what_others_still_read() -> None:
    """Written over, the difference of the convolution would reach the sum as that of the relu."""
    model = initialize(Forked())
    assert_agrees(model, F.cross_entropy, normal(4, 2, 6, 6, seed=2), LABELS, sparsity=some_coordinates(model, most=24))
