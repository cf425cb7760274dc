"""The kinds of difference that travel through a graph.

Legend: p perturbations, b samples, g groups of perturbations, m rows, r rows given in full, n entries of a row; lead:
dimensions before the last; ``shape`` is the shape of the node's base value. A node that no perturbation reaches
has no difference at all (``None``) and is never visited: that is feature reuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64, Num, Shaped
from torch import Tensor

from deepzero.errors import DeepZeroError
from deepzero.graph.host_numbers import is_known, on_host, placed


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
        if not is_known(self.indices):
            return torch.unravel_index(self.indices, self.shape)
        parts = torch.unravel_index(on_host(self.indices), self.shape)
        return tuple(placed(part, self.indices.device) for part in parts)

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
        return runs_of(self.channels)

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


class ChannelEntry(Channel):
    """One channel differs in each perturbation, and in it one entry of the last dimension: a feature of one head.

    To everything that does not know it, it is a :class:`Channel`, whose differences are made where they are asked for.

    Args:
        axis: the channel's dimension in the base value, not the last.
        channels: the channel that differs.
        line: its differences, in the base value's shape without ``axis`` and the last dimension.
        places: the entry of the last dimension.
        shape: shape of the base value.
    """

    line: Num[Tensor, " p ..."]
    places: Int64[Tensor, " p"]

    def __init__(
        self,
        axis: int,
        channels: Int64[Tensor, " p"],
        line: Num[Tensor, " p ..."],
        places: Int64[Tensor, " p"],
        shape: torch.Size,
    ) -> None:
        for name, value in (("axis", axis), ("channels", channels), ("shape", shape)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "line", line)
        object.__setattr__(self, "places", places)

    @property
    def delta(self) -> Num[Tensor, " p ..."]:
        """The differences of the channel, most of them 0."""
        out = self.line.new_zeros(*self.line.shape, self.shape[-1])
        index = self.places.reshape(-1, *(1 for _ in out.shape[1:])).expand(*self.line.shape, 1)
        return out.scatter_(-1, index, self.line.unsqueeze(-1))

    @property
    def count(self) -> int:
        """Number of perturbations."""
        return self.line.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return int(self.line.nbytes)


@dataclass(frozen=True)
class Dense:
    """Every entry may differ.

    Attributes:
        delta: the differences.
        owned: whether a rule has made their memory for this difference alone. Views of it may be other differences, but
            nothing that outlives the chunk, such as a base value, is in it.
    """

    delta: Num[Tensor, " p *shape"]
    owned: bool = False

    @property
    def stored(self) -> Num[Tensor, " p *shape"]:
        """The tensor that holds them."""
        return self.delta

    @property
    def count(self) -> int:
        """Number of perturbations."""
        return self.stored.shape[0]

    @property
    def shape(self) -> torch.Size:
        """Shape of the base value."""
        return self.stored.shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return int(self.stored.nbytes)

    def dense(self) -> Num[Tensor, " p *shape"]:
        """All entries."""
        return self.delta

    def rearranged(self, function: Callable[[Tensor], Tensor]) -> Dense:
        """Entries moved, left out, or zeros put beside them, as ``function`` does it with a stack of them."""
        return Dense(function(self.delta))


class HalfDense(Dense):
    """Every entry may differ, and is stored in float16, multiplied by a power of two.

    Kernels of a GPU give and take it. To everything else it is a :class:`Dense` difference in float32, made where it is
    asked for. An entry that float16 cannot hold is a NaN, so that no loss comes out wrong unseen.

    Args:
        half: the differences times ``scale``, rounded.
        scale: the power of two.
    """

    half: Float[Tensor, " p *shape"]
    scale: float

    def __init__(self, half: Float[Tensor, " p *shape"], scale: float) -> None:
        object.__setattr__(self, "half", half)
        object.__setattr__(self, "scale", scale)

    @property
    def delta(self) -> Float[Tensor, " p *shape"]:
        """All entries in float32."""
        return self.half.float().div_(self.scale)

    @property
    def stored(self) -> Float[Tensor, " p *shape"]:
        """The tensor that holds them."""
        return self.half

    def rearranged(self, function: Callable[[Tensor], Tensor]) -> HalfDense:
        """Of what is stored: zeros stay zeros."""
        return HalfDense(function(self.half), self.scale)


ROOM = 16 << 20
"""Bytes of directions and of rows given in full that an operation may make for a chunk of rank-one differences."""

NARROW = 16
"""Entries of a row below which a CPU writes rows out side by side: 512 times 128 rows of 10 in float32, with the cross
entropy behind them, take 1.3 ms in place of 2.7."""

SHARES = 2048
"""Perturbations that share the room, for the plan: more than a chunk has, whose workspace it takes in multiples."""


class TooLargeError(DeepZeroError):
    """A chunk would make more rows than there is room for: the engine cuts it in halves."""


@dataclass(frozen=True)
class RankOne:
    """Rows (entries along the last dimension) that are multiples of a few directions, but for some given in full.

    Row r of perturbation p differs by ``coefficients[p, r] * directions[groups[p], r]``, so a channel that differs in
    front of a matrix W is one number a row times a row of W, and is never written out in full. What is not a multiple,
    behind a relu with a kink on the way, is among ``rows``.

    Only the rules named in :data:`~deepzero.graph.rules.base.TAKES_RANK_ONE` see this kind; to all others the engine
    gives :meth:`dense`.

    Attributes:
        coefficients: a number for each row, 0 for those given in full; in the base value's shape without the last
            dimension.
        directions: of each group; with a single row if all rows have the same, as behind a matrix.
        groups: the group of each perturbation.
        shape: shape of the base value.
        places: which rows are given in full, as flat indices into ``coefficients``, each at most once; None if none is.
        rows: their differences.
    """

    coefficients: Num[Tensor, " p *lead"]
    directions: Num[Tensor, " g #m n"]
    groups: Int64[Tensor, " p"]
    shape: torch.Size
    places: Int64[Tensor, " r"] | None = None
    rows: Num[Tensor, "r n"] | None = None

    @property
    def count(self) -> int:
        """Number of perturbations."""
        return self.coefficients.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that a perturbation adds to a chunk: coefficients, and its share of what there is room for together."""
        whole = self.coefficients.nbytes * self.shape[-1]
        return int(self.coefficients.nbytes) + min(whole, self.count * ROOM // SHARES)

    def require_room(self, rows: int, size: int) -> None:
        """Refuse to make so many rows of ``size`` entries, directions or in full, where there is no room for them.

        There is always room for a single perturbation, and for as much as four would take that are written out.

        Raises:
            TooLargeError: they take more than ``ROOM``.
        """
        room = max(ROOM // (size * self.directions.element_size() or 1), 4 * self.shape[:-1].numel())
        if self.count > 1 and rows > room:
            raise TooLargeError

    def with_used_directions(self) -> RankOne:
        """The same without the directions of groups that have no perturbation here."""
        if self.directions.device.type != "cpu":  # which would be waited for
            every = torch.arange(self.count, device=self.directions.device)
            return replace(self, directions=self.directions[self.groups], groups=every)
        used, groups = torch.unique(self.groups, return_inverse=True)
        return replace(self, directions=self.directions[used], groups=groups)

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Maximal runs ``(group, start, stop)`` of perturbations that share their group."""
        return runs_of(self.groups)

    def dense(self) -> Num[Tensor, " p *shape"]:
        """All entries; on a CPU, those of short rows that share their directions side by side in memory."""
        size = self.shape[-1]
        if size < NARROW and self.directions.shape[1] == 1 and self.places is None and not self.coefficients.is_cuda:
            directions = self.directions[self.groups, 0].reshape(self.count, size, *(1 for _ in self.shape[:-1]))
            return (self.coefficients.unsqueeze(1) * directions).movedim(1, -1)
        factors = self.coefficients.reshape(self.count, self.shape[:-1].numel(), 1)
        dtype = torch.promote_types(factors.dtype, self.directions.dtype)
        out = factors.new_empty(*factors.shape[:2], size, dtype=dtype)
        if self.directions.shape[1] == 1 or len(self.runs) * 4 > self.count:
            torch.mul(factors, self.directions[self.groups], out=out)
        else:
            for group, start, stop in self.runs:
                torch.mul(factors[start:stop], self.directions[group], out=out[start:stop])
        if self.places is not None and self.rows is not None:
            out.view(-1, size).index_copy_(0, self.places, self.rows)
        return out.reshape(self.count, *self.shape)

    def map(self, function: Callable[[Tensor], Tensor]) -> RankOne:
        """A multiple: ``function`` is linear, acts on entries alike, and keeps the dtype."""
        rows = None if self.rows is None else function(self.rows)
        return replace(self, coefficients=function(self.coefficients), rows=rows)


@dataclass(frozen=True)
class Segment:
    """Adjacent entries of the last dimension differ in each perturbation: one head of several that are joined.

    Only the rules in :data:`~deepzero.graph.rules.base.TAKES_LOW_RANK` see this kind; others get :meth:`dense`.

    Attributes:
        segments: the segment that differs; it is as wide as ``delta``.
        delta: its differences.
        shape: shape of the base value.
    """

    segments: Int64[Tensor, " p"]
    delta: Num[Tensor, " p *lead width"]
    shape: torch.Size

    @property
    def count(self) -> int:
        """Number of perturbations."""
        return self.delta.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return int(self.delta.nbytes)

    def dense(self) -> Num[Tensor, " p *shape"]:
        """All entries."""
        apart = torch.Size((*self.shape[:-1], self.shape[-1] // self.delta.shape[-1], self.delta.shape[-1]))
        channel = Channel(len(apart) - 2, self.segments, self.delta, apart)
        return channel.dense().reshape(self.count, *self.shape)

    def map(self, function: Callable[[Tensor], Tensor]) -> Segment:
        """A multiple: ``function`` is linear and acts on entries alike."""
        return replace(self, delta=function(self.delta))


@dataclass(frozen=True, eq=False)
class BaseRows:
    """Base values of which differences are multiples, row by row; what a matrix makes of them is found once.

    Attributes:
        base: the rows.
        images: shape or matrix -> the rows in that shape, or times that matrix, with the matrix, which so lives on.
    """

    base: Num[Tensor, " *lead n"]
    images: dict[Any, Any] = field(default_factory=dict)

    def times(self, matrix: Num[Tensor, "n m"]) -> BaseRows:
        """The rows times a matrix."""
        key = (matrix.data_ptr(), matrix.shape, matrix.stride())
        if key not in self.images:
            self.images[key] = (BaseRows(self.base @ matrix), matrix)
        return self.images[key][0]  # type: ignore[no-any-return]

    def reshaped(self, shape: torch.Size) -> BaseRows:
        """The rows with other dimensions before the last."""
        if shape not in self.images:
            self.images[shape] = BaseRows(self.base.reshape(shape))
        return self.images[shape]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LowRank:
    """Rows (entries along the last dimension) that are sums of a few vectors, and perhaps multiples of base rows.

    A channel behind layer norm is one, also behind a matrix, and so is a head behind its projection. Row r of
    perturbation p differs by ``factors[p, r] @ vectors[p] + multiples[p, r] * rows[r]``.

    Only the rules in :data:`~deepzero.graph.rules.base.TAKES_LOW_RANK` see this kind; others get :meth:`dense`.

    Attributes:
        factors: k numbers for each row.
        vectors: those of each perturbation, or of all.
        shape: shape of the base value.
        multiples: one number for each row, if there are base rows.
        rows: the base rows.
    """

    factors: Num[Tensor, " p *lead k"]
    vectors: Num[Tensor, " #p k n"]
    shape: torch.Size
    multiples: Num[Tensor, " p *lead"] | None = None
    rows: BaseRows | None = None

    @property
    def count(self) -> int:
        """Number of perturbations."""
        return self.factors.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors; base rows are held once a step."""
        return sum(int(t.nbytes) for t in (self.factors, self.vectors, self.multiples) if t is not None)

    def dense(self) -> Num[Tensor, " p *shape"]:
        """All entries."""
        count, rows = self.count, self.shape[:-1].numel()
        factors = self.factors.reshape(count, rows, -1)
        out = factors * self.vectors if factors.shape[2] == 1 else factors @ self.vectors
        return self._with_multiples(out).view(count, *self.shape)

    def added_to(self, out: Num[Tensor, " p *shape"]) -> Num[Tensor, " p *shape"]:
        """``out``, which is contiguous, with all entries added to it in place."""
        count, rows = self.count, self.shape[:-1].numel()
        flat, factors = out.view(count, rows, -1), self.factors.reshape(count, rows, -1)
        if len(self.vectors) == 1:
            flat.view(count * rows, -1).addmm_(factors.flatten(0, 1), self.vectors[0])
        else:
            flat.baddbmm_(factors, self.vectors)
        self._with_multiples(flat)
        return out

    def _with_multiples(self, out: Num[Tensor, "p rows n"]) -> Num[Tensor, "p rows n"]:
        """``out`` with the multiples of base rows added to it in place."""
        if self.multiples is not None and self.rows is not None:
            base = self.rows.base.reshape(1, out.shape[1], -1)
            out.addcmul_(self.multiples.reshape(*out.shape[:2], 1), base)
        return out

    def map(self, function: Callable[[Tensor], Tensor]) -> LowRank:
        """A multiple: ``function`` is linear, acts on entries alike, and keeps the dtype."""
        multiples = None if self.multiples is None else function(self.multiples)
        return replace(self, factors=function(self.factors), multiples=multiples)


@dataclass(frozen=True)
class SomeSamples:
    """Some samples (entries along the first dimension) differ in each perturbation: those that look up a row.

    Only the engine sees this kind (:mod:`deepzero.graph.rules.by_sample`): rules get the channel, as if each pair of a
    perturbation and a sample were a perturbation of its own, or what is written out.

    Attributes:
        owners: the perturbation of each pair, ascending.
        channel: the samples, as channels along the first dimension; no pair occurs twice.
        count: number of perturbations.
    """

    owners: Int64[Tensor, " r"]
    channel: Channel
    count: int

    @property
    def shape(self) -> torch.Size:
        """Shape of the base value."""
        return self.channel.shape

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.channel.nbytes

    def sits_with(self, other: SomeSamples) -> bool:
        """True if the other difference is of the same samples of a value of as many."""
        own, its = self.channel.channels, other.channel.channels
        return self.owners is other.owners and (own is its or torch.equal(own, its)) and self.shape[0] == other.shape[0]

    def dense(self) -> Num[Tensor, " p *shape"]:
        """All entries."""
        out = self.channel.delta.new_zeros(self.count, *self.shape)
        out[self.owners, self.channel.channels] = self.channel.delta
        return out

    def written_out(self) -> Dense:
        """The same as a dense difference."""
        return Dense(self.dense(), owned=True)


@dataclass(frozen=True)
class Blocks:
    """Every entry of images or features may differ, samples in blocks as wide as a vector of the processor.

    What comes out of a compiled convolution and goes into the next one. Only the rules named in
    :data:`~deepzero.graph.rules.base.TAKES_BLOCKS` see this kind; to all others the engine gives :meth:`dense`.

    Attributes:
        blocks: the differences, by perturbation, block, the dimensions of a sample, and lane; the last block ends with
            the last sample, and so begins with some of the block before where the lanes do not divide their number.
        shape: shape of the base value.
    """

    blocks: Num[Tensor, "p n *rest lane"]
    shape: torch.Size

    @property
    def count(self) -> int:
        """Number of perturbations."""
        return self.blocks.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return int(self.blocks.nbytes)

    def each(self, function: Callable[[Tensor], Tensor], shape: torch.Size) -> Blocks:
        """``function`` of the images, ``[images, c, h, w, lane]``: a difference of images of ``shape``."""
        out = function(self.blocks.flatten(0, 1))
        return Blocks(out.unflatten(0, self.blocks.shape[:2]), shape)  # type: ignore[no-untyped-call]

    def reshaped(self, shape: torch.Size) -> Blocks:
        """The same entries in a shape of as many samples."""
        return self.each(lambda images: images.reshape(len(images), *shape[1:], -1), shape)

    def dense(self) -> Num[Tensor, " p *shape"]:
        """All entries, samples last in memory."""
        blocks, again = self.blocks, self.blocks.shape[1] * self.blocks.shape[-1] - self.shape[0]
        in_order = blocks[:, : blocks.shape[1] - bool(again)].movedim(1, -2).flatten(-2)
        if again:
            in_order = torch.cat([in_order, blocks[:, -1, ..., again:]], -1)
        return in_order.movedim(-1, 1)


class Pending(Blocks):
    """Features of samples that are computed where they are asked for, by a kernel that can take them further at once.

    A linear layer makes few numbers of many, which are then never written. Only the rules named in
    :data:`~deepzero.graph.rules.base.TAKES_PENDING` see this kind; to all others the engine gives :meth:`settled`.

    Args:
        source: the difference that they are computed from.
        compute: gives the blocks, or what a linear layer given to it makes of them.
        shape: shape of the base value.
    """

    source: Num[Tensor, "p ..."]
    compute: Callable[..., Tensor]

    def __init__(self, source: Num[Tensor, "p ..."], compute: Callable[..., Tensor], shape: torch.Size) -> None:
        for name, value in (("source", source), ("compute", compute), ("shape", shape)):
            object.__setattr__(self, name, value)

    @property
    def blocks(self) -> Num[Tensor, "p n *rest lane"]:
        """The differences."""
        found = self.compute()
        return found.view(*found.shape[:2], *self.shape[1:], found.shape[-1])

    @property
    def count(self) -> int:
        """Number of perturbations."""
        return self.source.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that it has where it is computed."""
        return self.count * self.shape.numel() * self.source.element_size()

    def reshaped(self, shape: torch.Size) -> Pending:
        """The same entries in a shape of as many samples."""
        return Pending(self.source, self.compute, shape)

    def settled(self) -> Blocks:
        """The same, computed."""
        return Blocks(self.blocks, self.shape)

    def dense(self) -> Num[Tensor, " p *shape"]:
        """All entries, samples last in memory."""
        return self.settled().dense()


Difference = OneHot | Channel | Dense | RankOne | Segment | LowRank
"""What rules may meet; blocks go only to those that take them."""


def runs_of(numbers: Int64[Tensor, " p"]) -> list[tuple[int, int, int]]:
    """Maximal runs ``(number, start, stop)`` of equal numbers."""
    values, counts = torch.unique_consecutive(on_host(numbers), return_counts=True)
    stops = counts.cumsum(0).tolist()
    return [(v, stop - n, stop) for v, n, stop in zip(values.tolist(), counts.tolist(), stops, strict=True)]


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


def entries(difference: Difference | Blocks) -> Num[Tensor, "p entries"]:
    """The entries that may differ; all others are zero."""
    if isinstance(difference, (RankOne, Segment, LowRank, Blocks)):
        difference = Dense(difference.dense())
    values = difference.values if isinstance(difference, OneHot) else difference.delta
    return values.reshape(difference.count, -1)


def empty_dense(count: int, shape: torch.Size, like: Tensor) -> Num[Tensor, " {count} *shape"]:
    """An uninitialised stack; the memory of 4-D values is channels-last within each perturbation."""
    if len(shape) == 4:
        batch, channels, height, width = shape
        return like.new_empty(count, batch, height, width, channels).permute(0, 1, 4, 2, 3)
    return like.new_empty(count, *shape)


def channels_last(stacked: Shaped[Tensor, "p b c *rest"]) -> Shaped[Tensor, "p b *rest c"]:
    """Channels last, in contiguous memory, without a copy where the memory is so already."""
    return stacked.movedim(2, -1).contiguous()


def memory_order(stacked: Shaped[Tensor, "p ..."]) -> list[int]:
    """The dimensions of a base value in the order in which they lie in the memory of a stack, widest strides first."""
    return sorted(range(stacked.dim() - 1), key=lambda d: -stacked.stride(d + 1))


def with_entries(difference: Channel | Dense, delta: Num[Tensor, "p ..."]) -> Channel | Dense:
    """The same entries with other differences, in memory that a rule has made for them."""
    return difference.with_delta(delta) if isinstance(difference, Channel) else Dense(delta, owned=True)


def fold(delta: Num[Tensor, "p b *rest"]) -> Num[Tensor, " p*b *rest"]:
    """Perturbations become samples."""
    return delta.flatten(0, 1)


def unfold_count(folded: Num[Tensor, " pb *rest"], count: int) -> Num[Tensor, " {count} pb//{count} *rest"]:
    """The inverse of :func:`fold`, for ``count`` perturbations."""
    return folded.reshape(count, -1, *folded.shape[1:])


def constant_over(delta: Tensor, dims: tuple[int, ...]) -> bool:
    """True if a difference is the same number along ``dims``, known from its strides (an expanded scalar)."""
    return all(delta.stride(d) == 0 or delta.shape[d] == 1 for d in dims)


def add(
    first: Difference | None, second: Difference | None, spare: tuple[bool, bool] = (False, False)
) -> Difference | None:
    """Sum of two differences of the same node.

    Args:
        first: one of them.
        second: the other.
        spare: for each of them, whether the sum may take its memory, being of the same dtype.
    """
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, Channel) and isinstance(second, Channel) and same_channels(first, second):
        return first.with_delta(first.delta + second.delta)
    if isinstance(first, OneHot) and isinstance(second, OneHot) and same_entries(first, second):
        return OneHot(first.indices, first.values + second.values, first.shape)
    for own, other, free in ((first, second, spare[0]), (second, first, spare[1])):
        if free and isinstance(own, Dense):
            return Dense(_increased(own.delta, other), owned=True)
    for own, other in ((first, second), (second, first)):
        if isinstance(own, Dense) and isinstance(other, Channel) and own.delta.dtype == other.delta.dtype:
            return Dense(_increased(own.delta.clone(), other), owned=True)
    return Dense(first.dense() + second.dense(), owned=True)


def _increased(delta: Num[Tensor, " p *shape"], difference: Difference) -> Num[Tensor, " p *shape"]:
    """``delta`` with a difference added to it in place: where that is of few entries or factors, to no others."""
    if isinstance(difference, Channel):
        source = difference.delta.unsqueeze(difference.axis + 1).to(delta.dtype)
        index = difference.channels.reshape(-1, *(1 for _ in source.shape[1:])).expand(source.shape)
        return delta.scatter_add_(difference.axis + 1, index, source)
    if isinstance(difference, LowRank) and delta.is_contiguous() and difference.factors.dtype == delta.dtype:
        return difference.added_to(delta)
    return delta.add_(difference.dense())


def same_entries(first: OneHot, second: OneHot) -> bool:
    """True if two one-hot differences sit on the same entries."""
    return first.shape == second.shape and _equal(first.indices, second.indices)


def same_channels(first: Channel, second: Channel) -> bool:
    """True if two channel differences sit on the same channels."""
    return first.axis == second.axis and first.shape == second.shape and _equal(first.channels, second.channels)


def _equal(first: Int64[Tensor, " p"], second: Int64[Tensor, " p"]) -> bool:
    return first is second or torch.equal(on_host(first), on_host(second))
