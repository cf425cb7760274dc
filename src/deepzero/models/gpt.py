"""GPT: a decoder-only transformer in the form of GPT-2, and low-rank adapters (LoRA) of its attention.

A. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; E. J. Hu et al., "LoRA: Low-Rank
Adaptation of Large Language Models", ICLR 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError


class CausalAttention(nn.Module):
    """Multi-head attention in which a token sees itself and those before it, with a projection each for q, k and v.

    Shapes: ``[N, T, width] -> [N, T, width]``.

    Args:
        width: features of a token.
        heads: number of heads, which divides the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "n t width"]) -> Float[Tensor, "n t width"]:
        q, k, v = (self._by_head(part(x)) for part in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        projected: Tensor = self.output(seen.transpose(1, 2).flatten(2))
        return projected

    def _by_head(self, x: Float[Tensor, "n t width"]) -> Float[Tensor, "n heads t features"]:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Attention and a perceptron of four times the width, each behind a layer norm and added to its input.

    Shapes: ``[N, T, width] -> [N, T, width]``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "n t width"]) -> Float[Tensor, "n t width"]:
        x = x + self.attention(self.norm1(x))
        added: Tensor = x + self.mlp(self.norm2(x))
        return added


class GPT(nn.Module):
    """Embeddings of tokens and positions, transformer blocks, a layer norm and a linear head of its own.

    Shapes: ``[N, T] -> [N * T, symbols]``: one row of logits a token, as a cross entropy takes them.

    Args:
        symbols: size of the vocabulary.
        context: most tokens of a sequence.
        width: features of a token.
        heads: attention heads of a block, which divide the width.
        depth: number of blocks.

    Raises:
        InvalidInputError: a size is not a positive integer, or the heads do not divide the width.

    >>> gpt = GPT(symbols=10, context=8, width=16, heads=2, depth=1)
    >>> gpt(torch.zeros(3, 8, dtype=torch.int64)).shape
    torch.Size([24, 10])
    """

    def __init__(self, *, symbols: int, context: int, width: int, heads: int, depth: int) -> None:
        validation.counts(symbols=symbols, context=context, width=width, heads=heads, depth=depth)
        if width % heads:
            raise InvalidInputError(f"heads must divide the width {width}, got {heads}; try heads=1")
        super().__init__()
        self.tokens, self.positions = nn.Embedding(symbols, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols, bias=False)

    def forward(self, x: Int64[Tensor, "n t"]) -> Float[Tensor, "tokens symbols"]:
        positions = torch.arange(x.shape[1], device=x.device)
        hidden = self.blocks(self.tokens(x) + self.positions(positions))
        logits: Tensor = self.head(self.norm(hidden))
        return logits.flatten(0, 1)


class LowRankLinear(nn.Module):
    """A frozen linear layer with a trainable update of low rank: ``W x + b + (scale / rank) B A x``.

    Args:
        frozen: the layer, whose parameters are frozen here.
        rank: of the update.
        scale: the update's factor, times the rank (LoRA's alpha).

    Attributes:
        down: A, ``[rank, in]``, drawn as PyTorch draws a linear layer's weight.
        up: B, ``[out, rank]``, zero: at first the layer is the frozen one.
    """

    def __init__(self, frozen: nn.Linear, *, rank: int, scale: float = 16.0) -> None:
        validation.count("rank", rank)
        super().__init__()
        self.frozen = frozen.requires_grad_(requires_grad=False)
        self.down = nn.Parameter(torch.empty(rank, frozen.in_features))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))
        self.factor = scale / rank
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        update = F.linear(F.linear(x, self.down), self.up)
        adapted: Tensor = self.frozen(x) + self.factor * update
        return adapted


def adapt_attention(model: GPT, *, rank: int) -> GPT:
    """Freeze a GPT and give the query and value projections of every block an update of low rank, as Hu et al. do.

    >>> gpt = adapt_attention(GPT(symbols=10, context=8, width=16, heads=2, depth=2), rank=4)
    >>> sum(p.numel() for p in gpt.parameters() if p.requires_grad) == 2 * 2 * 2 * 4 * 16
    True
    """
    model.requires_grad_(requires_grad=False)
    for module in model.modules():
        if isinstance(module, CausalAttention):
            module.query = LowRankLinear(module.query, rank=rank)  # type: ignore[assignment]
            module.value = LowRankLinear(module.value, rank=rank)  # type: ignore[assignment]
    return model
