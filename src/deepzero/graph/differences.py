"""The kinds of difference that travel through a graph.

Legend: p perturbations, b samples; ``shape`` is the shape of the node's base value. A node that no perturbation reaches
has no difference at all (``None``) and is never visited: that is feature reuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int64, Num, Shaped
from torch import Tensor


@dataclass(frozen=True)
class OneHot:
    """One entry differs in each perturbation: only parameters, and pointwise functions of them.

    Attributes:
        indices: flat indices (row-major) into the base value.
        values: the differences there.
        shape: shape of the base value.
    """

    indices: Int64[Tensor, " p"]
    values: Num[Tensor, " p"]
    shape: torch.Size

    @property
    def count(self) -> int:
        """Number of perturbations."""
        return self.indices.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return int(self.indices.nbytes + self.values.nbytes)

    def positions(self) -> tuple[Int64[Tensor, " p"], ...]:
        """The multi-index of each entry, one tensor per dimension."""
        return torch.unravel_index(self.indices, self.shape)

    def dense(self) -> Num[Tensor, " p *shape"]:
        """All entries, most of them 0."""
        out = self.values.new_zeros(self.count, self.shape.numel())
        out.scatter_(1, self.indices.unsqueeze(1), self.values.unsqueeze(1))
        return out.reshape(self.count, *self.shape)


@dataclass(frozen=True)
class Channel:
    """One channel differs in each perturbation.

    Attributes:
        axis: the channel's dimension in the base value.
        channels: the channel that differs.
        delta: its differences, in the base value's shape without ``axis``.
        shape: shape of the base value.
    """

    axis: int
    channels: Int64[Tensor, " p"]
    delta: Num[Tensor, " p ..."]
    shape: torch.Size

    @property
    def count(self) -> int:
        """Number of perturbations."""
        return self.delta.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return int(self.delta.nbytes)

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Maximal runs ``(channel, start, stop)`` of perturbations that share their channel."""
        values, counts = torch.unique_consecutive(self.channels, return_counts=True)
        stops = counts.cumsum(0).tolist()
        return [(c, stop - n, stop) for c, n, stop in zip(values.tolist(), counts.tolist(), stops, strict=True)]

    def of(self, base: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "#p *rest"]:
        """The differing channel of ``base``, broadcastable against ``delta``."""
        if len(self.runs) == 1:
            return base.select(self.axis, self.runs[0][0]).unsqueeze(0)
        return base.movedim(self.axis, 0).index_select(0, self.channels)

    def with_delta(self, delta: Num[Tensor, " p *rest"]) -> Channel:
        """The same channels with another difference."""
        other = Channel(self.axis, self.channels, delta, self.shape)
        if "runs" in self.__dict__:
            other.__dict__["runs"] = self.runs  # they depend on the channels alone
        return other

    def dense(self) -> Num[Tensor, " p *shape"]:
        """All entries; 4-D values in channels-last memory, as convolutions on a CPU like it."""
        count, axis = self.count, self.axis
        out = empty_dense(count, self.shape, self.delta).zero_()
        index = self.channels.reshape(count, *(1 for _ in self.delta.shape[1:])).unsqueeze(axis + 1)
        source = self.delta.unsqueeze(axis + 1)
        return out.scatter_(axis + 1, index.expand(source.shape), source)


@dataclass(frozen=True)
class Dense:
    """Every entry may differ."""

    delta: Num[Tensor, " p *shape"]

    @property
    def count(self) -> int:
        """Number of perturbations."""
        return self.delta.shape[0]

    @property
    def shape(self) -> torch.Size:
        """Shape of the base value."""
        return self.delta.shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return int(self.delta.nbytes)

    def dense(self) -> Num[Tensor, " p *shape"]:
        """All entries."""
        return self.delta


@dataclass(frozen=True)
class Blocks:
    """Every entry of some images may differ, samples in blocks as wide as a vector of the processor.

    What comes out of a compiled convolution and goes into the next one. The engine hands it to steps that take it so,
    and to all others as a :class:`Dense` difference.

    Attributes:
        blocks: the differences ``[p, block, c, h, w, lane]``; the last block ends with the last sample, and so begins
            with some of the block before where their number does not divide.
        shape: shape of the base value, ``[b, c, h, w]``.
    """

    blocks: Num[Tensor, "p n c h w lane"]
    shape: torch.Size

    @property
    def count(self) -> int:
        """Number of perturbations."""
        return self.blocks.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return int(self.blocks.nbytes)

    def dense(self) -> Num[Tensor, " p *shape"]:
        """All entries, samples last in memory."""
        return in_order(self.blocks, self.shape[0])


def in_order(blocks: Num[Tensor, "p n *rest lane"], batch: int) -> Num[Tensor, "p {batch} *rest"]:
    """Blocks of samples as samples, which lie last in memory."""
    count, lanes = blocks.shape[1], blocks.shape[-1]
    again = count * lanes - batch
    if again:
        blocks = torch.cat([blocks[:, :-1].movedim(1, -2).flatten(-2), blocks[:, -1, ..., again:]], -1)
    else:
        blocks = blocks.movedim(1, -2).flatten(-2)
    return blocks.movedim(-1, 1)


Difference = OneHot | Channel | Dense | Blocks


def difference_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that holds the differences of values of ``dtype``.

    Differences of half-precision values are held in float32, where a small step does not underflow, and those of
    integers and booleans are integers.

    >>> [difference_dtype(d) for d in (torch.float64, torch.bfloat16, torch.bool)]
    [torch.float64, torch.float32, torch.int64]
    """
    if dtype.is_complex:
        return torch.promote_types(dtype, torch.complex64)
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.int64


def entries(difference: Difference) -> Num[Tensor, "p entries"]:
    """The entries that may differ; all others are zero."""
    values = difference.values if isinstance(difference, OneHot) else difference.delta
    return values.reshape(difference.count, -1)


def empty_dense(count: int, shape: torch.Size, like: Tensor) -> Num[Tensor, " {count} *shape"]:
    """An uninitialised stack; the memory of 4-D values is channels-last within each perturbation."""
    if len(shape) == 4:
        batch, channels, height, width = shape
        return like.new_empty(count, batch, height, width, channels).permute(0, 1, 4, 2, 3)
    return like.new_empty(count, *shape)


def fold(delta: Num[Tensor, "p b *rest"]) -> Num[Tensor, " p*b *rest"]:
    """Perturbations become samples."""
    return delta.flatten(0, 1)


def unfold_count(folded: Num[Tensor, " pb *rest"], count: int) -> Num[Tensor, " {count} pb//{count} *rest"]:
    """The inverse of :func:`fold`, for ``count`` perturbations."""
    return folded.reshape(count, -1, *folded.shape[1:])


def constant_over(delta: Tensor, dims: tuple[int, ...]) -> bool:
    """True if a difference is the same number along ``dims``, known from its strides (an expanded scalar)."""
    return all(delta.stride(d) == 0 or delta.shape[d] == 1 for d in dims)


def add(first: Difference | None, second: Difference | None) -> Difference | None:
    """Sum of two differences of the same node."""
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, Channel) and isinstance(second, Channel) and same_channels(first, second):
        return first.with_delta(first.delta + second.delta)
    if isinstance(first, OneHot) and isinstance(second, OneHot) and same_entries(first, second):
        return OneHot(first.indices, first.values + second.values, first.shape)
    return Dense(first.dense() + second.dense())


def same_entries(first: OneHot, second: OneHot) -> bool:
    """True if two one-hot differences sit on the same entries."""
    return first.shape == second.shape and _equal(first.indices, second.indices)


def same_channels(first: Channel, second: Channel) -> bool:
    """True if two channel differences sit on the same channels."""
    return first.axis == second.axis and first.shape == second.shape and _equal(first.channels, second.channels)


def _equal(first: Int64[Tensor, " p"], second: Int64[Tensor, " p"]) -> bool:
    return first is second or torch.equal(first, second)
