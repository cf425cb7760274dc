"""Kernels for pointwise functions and functions of whole rows on an NVIDIA GPU, in float32.

Legend: p perturbations, r rows, w entries of a row; targets: a value's shape without its classes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.cuda.cuda_kernels import INDEXABLE, TILE, applies, triton
from deepzero.graph.differences import Channel, Dense, memory_order, with_entries

FUNCTIONS = ("relu", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh")
"""Functions by the number that the program has for them."""
WIDEST_ROW = 8192
"""Entries of a row that a program takes at once, at most."""


@cache
def programs() -> Any:
    """The programs."""
    from deepzero.graph.cuda import triton_rows  # noqa: PLC0415 - imports Triton

    return triton_rows


def activation(
    function: str, x: Value, difference: Channel | Dense, slope: float, *, overwrite: bool
) -> Float[Tensor, " p *shape"] | None:
    """One pass over the differences, in the order in which they lie in memory."""
    delta = difference.delta
    if delta.numel() == 0 or not applies(delta, x.base):
        return None
    order = memory_order(delta)
    aligned = delta.permute(0, *(d + 1 for d in order)).contiguous()
    own = isinstance(difference, Channel)
    if isinstance(difference, Channel):
        dims = [d for d in range(x.base.dim()) if d != difference.axis]
        places = (difference.axis, *(dims[d] for d in order))
    else:
        places = tuple(order)
    z = x.remember(f"laid {own} {places}", lambda: x.base.permute(places).contiguous())
    out = aligned if overwrite or aligned.data_ptr() != delta.data_ptr() else torch.empty_like(aligned)
    n = aligned[0].numel()
    programs().activation[(triton().cdiv(n, 1024), len(aligned))](
        aligned, z, _slots(difference), out, slope, n, FUNCTION=FUNCTIONS.index(function), OWN=own, BLOCK=1024
    )
    return out.permute(0, *(order.index(d) + 1 for d in range(len(order))))


def _slots(difference: Channel | Dense) -> Tensor:
    """The channel of each perturbation; of differences of all entries anything, for it is not read."""
    return difference.channels.contiguous() if isinstance(difference, Channel) else difference.delta


def _by_rows(
    difference: Channel | Dense, ndim: int, dims: int
) -> tuple[Float[Tensor, "p r w"], tuple[int, int], dict[str, int]] | None:
    """Differences in rows of the last ``dims`` dimensions, the grid, and the sizes of a program.

    None where one entry of each row differs, or where rows are too long.
    """
    if isinstance(difference, Channel) and difference.axis >= ndim - dims:
        return None
    delta = difference.delta
    width = delta.shape[delta.dim() - dims :].numel()
    if delta.numel() == 0 or width > WIDEST_ROW or delta[0].numel() >= INDEXABLE:
        return None
    stacked = delta.contiguous().view(len(delta), -1, width)
    padded = triton().next_power_of_2(width)
    tile = max(1, TILE // 4 // padded)
    sizes = {"OWN": int(isinstance(difference, Channel)), "R": tile, "BW": padded}
    return stacked, (triton().cdiv(stacked.shape[1], tile), len(delta)), sizes


def _laid(value: Value, difference: Channel | Dense) -> Shaped[Tensor, "*rows"]:
    """A base value with the channel of the differences in front, contiguous, once a step."""
    if isinstance(difference, Channel):
        return value.channel_first(difference.axis)
    laid: Tensor = value.remember("contiguous", value.base.contiguous)
    return laid


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
    """One pass, a row at a time."""
    if not applies(difference.delta, centred.base):
        return None
    laid = _by_rows(difference, centred.base.dim(), dims)
    if laid is None:
        return None
    stacked, grid, sizes = laid
    width = stacked.shape[-1]
    s = centred.remember("scale", lambda: Value(scale))
    factor = centred.remember("ones of a row", lambda: torch.ones(width, device=stacked.device))
    factor = factor if weight is None else weight.contiguous()
    out = stacked if overwrite else torch.empty_like(stacked)
    programs().normalize[grid](
        stacked, _laid(centred, difference), _laid(s, difference), factor, _slots(difference), out,
        stacked.shape[1], width, eps, MEAN=mean, **sizes,
    )  # fmt: skip
    return with_entries(difference, out.view(difference.delta.shape))


def _along_last(
    difference: Channel | Dense, chances: Value, dim: int
) -> tuple[Float[Tensor, "p r w"], tuple[int, int], dict[str, int]] | None:
    """Differences of logits in rows along the last dimension; None for another one, or where no program applies."""
    if dim != chances.base.dim() - 1 or not applies(difference.delta, chances.base):
        return None
    return _by_rows(difference, chances.base.dim(), 1)


def softmax(
    difference: Channel | Dense,
    chances: Value,
    logarithms: Value,
    dim: int,
    *,
    log: bool,
    overwrite: bool,  # noqa: ARG001 - a program may read an entry again when others of its row are written
) -> Channel | Dense | None:
    """One pass, a row at a time, along the last dimension."""
    laid = _along_last(difference, chances, dim)
    if laid is None:
        return None
    stacked, grid, sizes = laid
    likeliest = chances.remember("likeliest", lambda: Value(chances.base.argmax(-1, keepdim=True)))
    out = torch.empty_like(stacked)
    programs().softmax[grid](
        stacked, _laid(chances, difference), _laid(logarithms, difference), _laid(likeliest, difference),
        _slots(difference), out, *stacked.shape[1:], LOG=log, **sizes,
    )  # fmt: skip
    return with_entries(difference, out.view(difference.delta.shape))


def label_losses(
    difference: Channel | Dense, chances: Value, logarithms: Value, labels: Int64[Tensor, "*targets"], dim: int
) -> Float[Tensor, " p *others"] | None:
    """One pass, a row at a time, along the last dimension."""
    laid = _along_last(difference, chances, dim)
    if laid is None:
        return None
    stacked, grid, sizes = laid
    y = chances.remember("labels", lambda: Value(labels.unsqueeze(-1)))
    out = stacked.new_empty(stacked.shape[:2])
    programs().label_losses[grid](
        stacked, _laid(chances, difference), _laid(logarithms, difference), _laid(y, difference), _slots(difference),
        out, *stacked.shape[1:], **sizes,
    )  # fmt: skip
    return out.view(difference.delta.shape[:-1])
