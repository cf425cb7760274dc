"""Kernels for functions of whole rows on a CPU, in float32 and float64: arguments of the loops in contiguous memory.

Legend: p perturbations, c channels, r rows, w entries of a row; lead: dimensions before those of a row; kept: the same
with length 1 along the rows; targets: a value's shape without its classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.cpu.row_blocks import RowsOfSums, blocks
from deepzero.graph.differences import Channel, Dense, LowRank, with_entries

NARROW = 16
"""Entries of a row below which rows side by side are faster, copied if they lie otherwise: 128 rows of 10 in float32
take 0.7 ms in place of 1.5 for 512 perturbations, rows of 32 would take 1.2 in place of 0.7."""


@cache
def compiled() -> Any:
    """The compiled loops, imported with numba where a kernel first runs."""
    from deepzero.graph.cpu import row_loops as loops  # noqa: PLC0415 - numba is slow to import, and many networks need none

    return loops


def applies(difference: Channel | Dense, base: Tensor) -> bool:
    """True if the loops take differences of this base value."""
    delta = difference.delta
    return delta.dtype in (torch.float32, torch.float64) and delta.dtype == base.dtype and delta.numel() > 0


@dataclass(frozen=True)
class RowOrder:
    """The order of differences and base values in rows: of the last ``dims`` dimensions, or of one, moved to the end.

    Attributes:
        axis: the dimension of base values that comes first, where the differences are one channel of it; else None.
        dim: the dimension that is moved to the end; None if it is there.
        dims: the number of dimensions of a row.
    """

    axis: int | None
    dim: int | None
    dims: int = 1

    @property
    def key(self) -> str:
        """A name of this layout, by which base values in it are remembered."""
        return f"rows {self.axis} {self.dim} {self.dims}"

    def base(self, base: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "c r w"]:
        """A base value in this layout."""
        aligned = base if self.dim is None else base.movedim(self.dim, -1)
        if self.axis is not None:
            axis = self.axis if self.dim is None or self.axis < self.dim else self.axis - 1
            aligned = aligned.movedim(axis, 0)
        channels = 1 if self.axis is None else aligned.shape[0]
        return aligned.reshape(channels, -1, math.prod(aligned.shape[aligned.dim() - self.dims :])).contiguous()

    def aligned(self, difference: Channel | Dense) -> Shaped[Tensor, " p *entries"]:
        """The differences, with the rows' dimension at the end."""
        return difference.delta if self.dim is None else difference.delta.movedim(self._place, -1)

    def restored(self, aligned: Shaped[Tensor, " p *entries"]) -> Shaped[Tensor, " p *others"]:
        """The inverse of :meth:`aligned`."""
        return aligned if self.dim is None else aligned.movedim(-1, self._place)

    @property
    def _place(self) -> int:
        """The rows' dimension in the differences."""
        assert self.dim is not None
        return self.dim + 1 if self.axis is None or self.axis > self.dim else self.dim


def _slots(difference: Channel | Dense) -> Int64[Tensor, " p"]:
    """The channel of base values that belongs to each perturbation."""
    if isinstance(difference, Channel):
        return difference.channels.contiguous()
    return torch.zeros(difference.count, dtype=torch.int64)


def _stacked(aligned: Shaped[Tensor, "p ..."], width: int) -> Shaped[Tensor, "p r w"]:
    """Differences by rows, in contiguous memory: their own, where it is so."""
    return aligned.contiguous().view(len(aligned), -1, width)


def _called(loop: str, *arguments: Any) -> None:
    """A loop, given arrays for tensors."""
    getattr(compiled(), loop)(*(a.numpy() if isinstance(a, Tensor) else a for a in arguments))


def normalize(
    difference: Channel | Dense,
    centred: Value,
    scale: Float[Tensor, "*kept"],
    eps: float,
    weight: Float[Tensor, "*normalized"] | None,
    dims: int,
    *,
    mean: bool,
    overwrite: bool,
) -> Channel | Dense | None:
    """Three passes over a row in the cache; where one entry of each row differs, one over the outcome."""
    base, lead = centred.base, centred.base.dim() - dims
    if not applies(difference, base):
        return None
    inside = isinstance(difference, Channel) and difference.axis >= lead
    if inside and dims > 1:
        return None
    rows = RowOrder(difference.axis if isinstance(difference, Channel) and not inside else None, None, dims)
    c = _laid(centred, rows)
    number = c.numpy().dtype.type
    s = centred.remember(f"scale {rows.key}", lambda: rows.base(scale))
    width = c.shape[-1]
    factor = torch.ones(width, dtype=c.dtype) if weight is None else weight.reshape(-1).contiguous()
    numbers = (number(1 / width if mean else 0), number(1 / width), number(eps))
    if inside:
        assert isinstance(difference, Channel)
        delta = _stacked(difference.delta.unsqueeze(-1), 1)[..., 0]
        out = delta.new_empty(*delta.shape, width)
        _called("normalize_entry", delta, c, s[..., 0], factor, _slots(difference), *numbers, out)
        return Dense(out.view(difference.count, *difference.shape), owned=True)
    delta = _stacked(difference.delta, width)
    out = delta if overwrite or delta.data_ptr() != difference.delta.data_ptr() else torch.empty_like(delta)
    _called("normalize", delta, c, s[..., 0], factor, _slots(difference), *numbers, out, out is not delta)
    return with_entries(difference, out.view(difference.delta.shape))


def softmax(
    difference: Channel | Dense, chances: Value, logarithms: Value, dim: int, *, log: bool, overwrite: bool
) -> Channel | Dense | None:
    """Two passes over a row in the cache, unless what differs is one entry of each."""
    p = chances.base
    if not applies(difference, p) or (isinstance(difference, Channel) and difference.axis == dim):
        return None
    rows = _rows(difference, p.dim(), dim)
    p, logs = _laid(chances, rows), _laid(logarithms, rows)
    likeliest = chances.remember(f"likeliest {rows.key}", lambda: p.argmax(-1))
    aligned = rows.aligned(difference)
    delta = _stacked(aligned, p.shape[-1])
    out = delta if overwrite or delta.data_ptr() != aligned.data_ptr() else torch.empty_like(delta)
    _called("softmax", delta, p, logs, likeliest, _slots(difference), log, out, out is not delta)
    return with_entries(difference, rows.restored(out.view(aligned.shape)))


def label_losses(
    difference: Channel | Dense, chances: Value, logarithms: Value, labels: Int64[Tensor, "*targets"], dim: int
) -> Float[Tensor, " p *others"] | None:
    """One pass over the differences: over all entries of a row, or of all rows, or the one that differs."""
    if not applies(difference, chances.base):
        return None
    inside = isinstance(difference, Channel) and difference.axis == dim
    rows = _rows(difference, chances.base.dim(), dim)
    p, logs = _laid(chances, rows), _laid(logarithms, rows)
    y = chances.remember(f"labels {rows.key}", lambda: rows.base(labels.unsqueeze(dim))[..., 0])
    line = p.new_empty(p.shape[-1])
    if len(p) == 1:
        columns = chances.remember("columns", lambda: p[0].t().contiguous())
    if inside:
        others = chances.remember("others", lambda: p[0].scatter(1, y[0].unsqueeze(1), 0).sum(1))
        delta = _stacked(difference.delta.unsqueeze(-1), 1)[..., 0]
        out = torch.empty_like(delta)
        _called("label_losses_of_column", delta, columns, p[0], logs[0], others, y[0], _slots(difference), line, out)
        return out.view(difference.delta.shape)
    aligned = rows.aligned(difference)
    across = aligned.movedim(-1, 1)
    if len(p) == 1 and (p.shape[-1] < NARROW or (across.is_contiguous() and not aligned.is_contiguous())):
        across, out = across.contiguous(), across.new_empty(len(across), p.shape[1])
        scratch = across.new_empty(2, p.shape[1])
        _called(
            "label_losses_across",
            across.view(len(across), len(columns), -1),
            columns,
            p[0],
            logs[0],
            y[0],
            *scratch,
            line,
            out,
        )
        return out.view(aligned.shape[:-1])
    delta = _stacked(aligned, p.shape[-1])
    out = delta.new_empty(delta.shape[:2])
    _called("label_losses", delta, p, logs, y, _slots(difference), line, out)
    return out.view(aligned.shape[:-1])


def label_losses_of_sums(
    difference: LowRank, chances: Value, logarithms: Value, labels: Int64[Tensor, " r"]
) -> Float[Tensor, "p r"] | None:
    """:func:`label_losses` of rows that are written block by block."""
    base: Tensor = chances.base
    tensors = (difference.factors, difference.vectors)
    known = base.dtype in (torch.float32, torch.float64) and all(t.dtype == base.dtype for t in tensors)
    if not known or base.dim() != 2 or not (base.numel() and difference.count):
        return None
    count, (rows, width), source = difference.count, base.shape, RowsOfSums.of(difference)
    losses, memory = base.new_empty(count, rows), base.new_empty(0)
    for first, last, *_ in blocks(count, rows, width * base.element_size(), cut=False):
        size = (last - first) * rows * width
        memory = memory if len(memory) >= size else base.new_empty(size)
        block = memory[:size].view(last - first, rows, width)
        source.write(block, slice(first, last), slice(0, rows))
        some = label_losses(Dense(block), chances, logarithms, labels, 1)
        assert some is not None
        losses[first:last] = some
    return losses


def _rows(difference: Channel | Dense, ndim: int, dim: int) -> RowOrder:
    """Rows along dimension ``dim`` of base values with ``ndim`` of them."""
    axis = difference.axis if isinstance(difference, Channel) and difference.axis != dim else None
    return RowOrder(axis, None if dim == ndim - 1 else dim)


def _laid(value: Value, rows: RowOrder) -> Float[Tensor, "c r w"]:
    """A base value in rows, once a step."""
    return value.remember(rows.key, lambda: rows.base(value.base))
