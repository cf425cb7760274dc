"""Operations that are taken apart before the graph is read, because their parts have rules and they have none.

Recurrent layers become one linear map and a few pointwise operations a time step; attention with dropout shows its
mask as an ordinary dropout; einsum becomes batched matrix products; instance norm shows which buffers it moves. Random
numbers are drawn in the order, and for the memory layout, in which PyTorch draws them outside of a graph.

Legend: t time steps, b samples, i input features, h hidden features, out: those of the output (of both directions).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Num, Shaped
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten

COMPOSED: tuple[OpOverload, ...] = (
    aten.einsum.default,
    aten.tensordot.default,
    aten.linalg_multi_dot.default,
    aten.inner.default,
    aten.column_stack.default,
    aten.hstack.default,
    aten.vstack.default,
    aten.dstack.default,
    aten.fliplr.default,
    aten.flipud.default,
    aten.atleast_1d.Sequence,
    aten.atleast_2d.Sequence,
    aten.atleast_3d.Sequence,
)
"""Products and stacks that PyTorch composes of operations with rules: permutations, matrix products, concatenation."""

Decomposition = Callable[..., Any]
State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, "RecurrentWeights"], State]
"""From the input's share of the gates ``[b, gates]`` and the state to the next state; its first entry is the output."""


def table() -> dict[OpOverload, Decomposition]:
    """Operation -> its decomposition, for ``ExportedProgram.run_decompositions``; it may return ``NotImplemented``."""
    chosen: dict[OpOverload, Decomposition] = {
        aten.lstm.input: lstm,
        aten.gru.input: _single_state(gru_cell),
        aten.rnn_tanh.input: _single_state(tanh_cell),
        aten.rnn_relu.input: _single_state(relu_cell),
        aten.lstm_cell.default: _lone_lstm_cell,
        aten.gru_cell.default: _lone_cell(gru_cell),
        aten.rnn_tanh_cell.default: _lone_cell(tanh_cell),
        aten.rnn_relu_cell.default: _lone_cell(relu_cell),
        aten.scaled_dot_product_attention.default: attention_with_dropout,
        aten.rrelu.default: rrelu,
        aten.instance_norm.default: instance_norm_with_statistics,
    }
    return chosen | {operation: _as_composed(operation) for operation in COMPOSED}


@functools.cache
def _as_composed(operation: OpOverload) -> Decomposition:
    """PyTorch's own composition of an operation."""

    def decompose(*args: Any, **kwargs: Any) -> Any:
        return operation._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)

    return decompose


class RecurrentWeights:
    """Weights of one layer and direction: ``W_ih``, ``W_hh``, then biases, then a projection, where there are any."""

    def __init__(self, tensors: Sequence[Tensor], *, has_biases: bool, projects: bool) -> None:
        self.input, self.hidden = tensors[:2]
        self.input_bias: Tensor | None = tensors[2] if has_biases else None
        self.hidden_bias: Tensor | None = tensors[3] if has_biases else None
        self.projection = tensors[-1] if projects else None

    def of_input(self, x: Num[Tensor, "*lead i"]) -> Num[Tensor, "*lead gates"]:
        """The input's share of the gates, for all time steps at once."""
        return F.linear(x, self.input, self.input_bias)

    def of_hidden(self, h: Num[Tensor, "b h"]) -> Num[Tensor, "b gates"]:
        """The hidden state's share of the gates."""
        return F.linear(h, self.hidden, self.hidden_bias)


def lstm_cell(share: Num[Tensor, "b gates"], state: State, weights: RecurrentWeights) -> State:
    """``c' = f c + i g``, ``h' = o tanh(c')``, then the projection of ``h'``."""
    hidden, cell = state
    i, f, g, o = (share + weights.of_hidden(hidden)).chunk(4, -1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    hidden = torch.sigmoid(o) * torch.tanh(cell)
    return hidden if weights.projection is None else F.linear(hidden, weights.projection), cell


def gru_cell(share: Num[Tensor, "b gates"], state: State, weights: RecurrentWeights) -> State:
    """``h' = (h - n) z + n`` with ``n = tanh(x_n + r h_n)``."""
    (hidden,) = state
    reset_x, update_x, new_x = share.chunk(3, -1)
    reset_h, update_h, new_h = weights.of_hidden(hidden).chunk(3, -1)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return ((hidden - new) * torch.sigmoid(update_x + update_h) + new,)


def tanh_cell(share: Num[Tensor, "b h"], state: State, weights: RecurrentWeights) -> State:
    """``h' = tanh(W_ih x + W_hh h)``."""
    return (torch.tanh(share + weights.of_hidden(state[0])),)


def relu_cell(share: Num[Tensor, "b h"], state: State, weights: RecurrentWeights) -> State:
    """``h' = relu(W_ih x + W_hh h)``."""
    return (torch.relu(share + weights.of_hidden(state[0])),)


@dataclass(frozen=True)
class RecurrentLayers:
    """Weights and options of a recurrent module, in the order in which its operation takes them."""

    params: Sequence[Tensor]
    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool

    def run(
        self, x: Num[Tensor, "t_or_b b_or_t i"], states: Sequence[State], cell: Cell, *, projects: bool = False
    ) -> tuple[Num[Tensor, "t_or_b b_or_t out"], list[State]]:
        """All layers, and their last states; dropout between two layers, drawn once a layer, as outside of a graph."""
        x = x.transpose(0, 1) if self.batch_first else x
        weights = self._weights(projects=projects)
        last: list[State] = []
        for layer in range(self.num_layers):
            outputs = []
            for reverse in (False, True) if self.bidirectional else (False,):
                output, state = _one_direction(x, states[len(last)], next(weights), cell, reverse=reverse)
                outputs.append(output)
                last.append(state)
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if self.train and self.dropout > 0 and layer < self.num_layers - 1:
                x = torch.native_dropout(x, self.dropout, True)[0]
        return x.transpose(0, 1) if self.batch_first else x, last

    def _weights(self, *, projects: bool) -> Iterator[RecurrentWeights]:
        size = 2 + 2 * self.has_biases + projects
        for start in range(0, len(self.params), size):
            yield RecurrentWeights(self.params[start : start + size], has_biases=self.has_biases, projects=projects)


def _one_direction(
    x: Num[Tensor, "t b i"], state: State, weights: RecurrentWeights, cell: Cell, *, reverse: bool
) -> tuple[Num[Tensor, "t b out"], State]:
    shares = weights.of_input(x)
    outputs: list[Tensor] = []
    for step in reversed(range(x.shape[0])) if reverse else range(x.shape[0]):
        state = cell(shares.select(0, step), state, weights)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


def lstm(x: Tensor, hx: Sequence[Tensor], *weights_and_options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``nn.LSTM`` as :func:`lstm_cell`, step by step."""
    hidden, cell = hx
    states = list(zip(hidden.unbind(0), cell.unbind(0), strict=True))
    layers = RecurrentLayers(*weights_and_options)
    out, last = layers.run(x, states, lstm_cell, projects=hidden.shape[-1] != cell.shape[-1])
    hidden, cell = (torch.stack(parts) for parts in zip(*last, strict=True))
    return out, hidden, cell


@functools.cache
def _single_state(cell: Cell) -> Decomposition:
    """A module whose state is one tensor."""

    def layer(x: Tensor, hx: Tensor, *weights_and_options: Any) -> tuple[Tensor, Tensor]:
        out, last = RecurrentLayers(*weights_and_options).run(x, [(h,) for h in hx.unbind(0)], cell)
        return out, torch.stack([state[0] for state in last])

    return layer


def _lone_lstm_cell(x: Tensor, hx: Sequence[Tensor], *tensors: Tensor | None) -> State:
    weights = _lone_weights(tensors)
    return lstm_cell(weights.of_input(x), tuple(hx), weights)


@functools.cache
def _lone_cell(cell: Cell) -> Decomposition:
    def call(x: Tensor, hx: Tensor, *tensors: Tensor | None) -> Tensor:
        weights = _lone_weights(tensors)
        return cell(weights.of_input(x), (hx,), weights)[0]

    return call


def _lone_weights(tensors: Sequence[Tensor | None]) -> RecurrentWeights:
    present = [t for t in tensors if t is not None]
    return RecurrentWeights(present, has_biases=len(present) == 4, projects=False)


def attention_with_dropout(
    query: Num[Tensor, "... l e"],
    key: Num[Tensor, "... s e"],
    value: Num[Tensor, "... s v"],
    attn_mask: Shaped[Tensor, ...] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``dropout(softmax(q k^T scale + mask)) v``; without dropout it has a rule and stays one operation."""
    if dropout_p == 0:
        return NotImplemented
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        zeros = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device)
        attn_mask = zeros.masked_fill(attn_mask.logical_not(), -math.inf)
    if attn_mask is not None:
        scores = scores + attn_mask
    weights = aten._safe_softmax.default(scores, -1)
    return torch.native_dropout(weights, dropout_p, True)[0] @ value


def rrelu(x: Tensor, lower: float = 0.125, upper: float = 1 / 3, training: bool = False, **_: Any) -> Any:
    """In eval mode a leaky relu; in train mode it draws one number for each negative entry, and stays."""
    return NotImplemented if training else F.leaky_relu(x, (lower + upper) / 2)


def instance_norm_with_statistics(
    x: Num[Tensor, "b c *rest"],
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    """Move the running statistics, means over the samples of each sample's own, in sight of the graph."""
    if running_mean is None or running_var is None or not use_input_stats:
        return NotImplemented
    dims = list(range(2, x.dim()))
    variance, mean = torch.var_mean(x.detach(), dims, correction=1)
    running_mean.mul_(1 - momentum).add_(mean.mean(0), alpha=momentum)
    running_var.mul_(1 - momentum).add_(variance.mean(0), alpha=momentum)
    return aten.instance_norm.default(x, weight, bias, None, None, True, momentum, eps, cudnn_enabled)
