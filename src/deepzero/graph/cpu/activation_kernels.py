"""Kernels for pointwise functions on a CPU, in float32 and float64: arguments of the loops in contiguous memory.

Legend: p perturbations, c channels, n entries of one; shape: of a base value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.differences import Channel, Dense, LowRank, memory_order

T = TypeVar("T")
Rows = Float[Tensor, "_ n"]
GELU_TANH = (2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715)
"""The tanh approximation of gelu is ``z s(a z + b z^3)`` with these a and b."""


@cache
def compiled() -> Any:
    """The compiled loops, imported with numba where a kernel first runs."""
    from deepzero.graph.cpu import activation_loops as loops  # noqa: PLC0415 - numba is slow to import, and many networks need none

    return loops


@dataclass(frozen=True)
class BaseOrder:
    """The order of base values in rows beside differences.

    Attributes:
        axis: the dimension of base values that comes first; None if a base value is a single row.
        order: the dimensions of a row.
    """

    axis: int | None
    order: tuple[int, ...]

    def base(self, value: Value) -> Rows:
        """A base value in this order, once a step."""

        def laid() -> Rows:
            base: Tensor = value.base
            if self.axis is None:
                return base.permute(self.order).reshape(1, -1).contiguous()
            return base.permute(self.axis, *self.order).reshape(base.shape[self.axis], -1).contiguous()

        return self.derived(value, "", laid)

    def derived(self, value: Value, what: str, make: Callable[[], T]) -> T:
        """Something made of base values in this order, once a step."""
        return value.remember(f"{what} in rows {self.axis} {self.order}", make)


@dataclass(frozen=True)
class Layout:
    """Differences ``[p, n]`` in contiguous memory, and how base values are laid out beside them.

    Attributes:
        delta: the differences; their memory is the given one where it is contiguous in some order of dimensions.
        base: the order of base values.
        rows: the row of base values that belongs to each perturbation.
        copied: whether ``delta`` has memory of its own.
    """

    delta: Float[Tensor, "p n"]
    base: BaseOrder
    rows: Int64[Tensor, " p"]
    copied: bool

    @classmethod
    def of(cls, difference: Channel | Dense) -> Layout:
        """The order in which the differences lie in memory, or theirs after a copy."""
        delta = difference.delta
        order = memory_order(delta)
        aligned = delta.permute(0, *(d + 1 for d in order))
        if not aligned.is_contiguous():
            order, aligned = list(range(delta.dim() - 1)), delta.contiguous()
        copied = aligned.data_ptr() != delta.data_ptr()
        axis = None
        if isinstance(difference, Channel):
            dims = [d for d in range(len(difference.shape)) if d != difference.axis]
            axis, order = difference.axis, [dims[d] for d in order]
        base = BaseOrder(axis, tuple(order))
        return cls(aligned.reshape(difference.count, -1), base, rows_of(difference), copied)

    def restored(self, out: Float[Tensor, "p n"], difference: Channel | Dense) -> Float[Tensor, " p *shape"]:
        """Differences ``[p, n]`` in the shape and the order of those given."""
        sizes = [difference.delta.shape[d + 1] for d in self._places()]
        back = sorted(range(len(sizes)), key=lambda k: self._places()[k])
        return out.view(len(out), *sizes).permute(0, *(k + 1 for k in back))

    def _places(self) -> list[int]:
        """The dimensions of a row, counted in the differences."""
        axis = self.base.axis
        return [d if axis is None else d - (d > axis) for d in self.base.order]


def rows_of(difference: Channel | Dense | LowRank) -> Int64[Tensor, " p"]:
    """The row of base values that belongs to each perturbation: that of its channel, or the only one."""
    if isinstance(difference, Channel):
        return difference.channels.contiguous()
    return torch.zeros(difference.count, dtype=torch.int64)


@dataclass(frozen=True)
class PointwiseLoop:
    """A compiled loop for ``f(z + d) - f(z)`` with all that it takes beside the differences.

    Attributes:
        run: the loop.
        bases: z in rows ``[c, n]``, and what the loop takes of it.
        numbers: what else it takes.
    """

    run: Callable[..., None]
    bases: tuple[Rows, ...]
    numbers: tuple[Any, ...]

    @classmethod
    def of(cls, function: str, slope: float, order: BaseOrder, x: Value) -> PointwiseLoop:
        """The loop of a function, for base values x in some order."""
        z = order.base(x)
        derived = order.derived(x, function, lambda: DERIVED[function](z))
        numbers = {"leaky_relu": (slope, 1 - slope), "gelu": (SERIES[z.dtype],)}.get(function) or NUMBERS[function]
        loop = getattr(compiled(), LOOPS.get(function, function))
        return cls(loop, (z, *derived), tuple(z.numpy().dtype.type(n) for n in numbers))

    def part(self, start: int, stop: int) -> PointwiseLoop:
        """The same at a part of the only row of base values."""
        return PointwiseLoop(self.run, tuple(base[:, start:stop] for base in self.bases), self.numbers)

    def __call__(self, delta: Float[Tensor, "p n"], rows: Int64[Tensor, " p"], out: Float[Tensor, "p n"]) -> None:
        """The change by differences that meet these rows of base values, to ``out``, which may be their memory."""
        bases = (base.numpy() for base in self.bases)
        self.run(delta.numpy(), *bases, rows.numpy(), *self.numbers, out.numpy(), out is not delta)


def activation(
    function: str, x: Value, difference: Channel | Dense, slope: float, *, overwrite: bool
) -> Float[Tensor, " p *shape"] | None:
    """One pass over the differences, in their own memory with ``overwrite``."""
    delta = difference.delta
    if delta.dtype not in (torch.float32, torch.float64) or delta.dtype != x.base.dtype or delta.numel() == 0:
        return None
    layout = Layout.of(difference)
    out = layout.delta if overwrite or layout.copied else torch.empty_like(layout.delta)
    PointwiseLoop.of(function, slope, layout.base, x)(layout.delta, layout.rows, out)
    return layout.restored(out, difference)


def _chances(u: Rows) -> tuple[Rows, Rows]:
    """The sigmoid s and ``s (1 - s)``."""
    s = torch.sigmoid(u)
    return s, s * torch.sigmoid(-u)


def _normal(z: Rows) -> tuple[Rows, Rows, Rows]:
    """The normal distribution's cdf and density, and how far the series of an interval has the last places right.

    For differences d of at most a half, and ``d z`` of at most 2; in float64, a fifth and 0.4. Where z is so large that
    the series' powers of it overflow, for none.
    """
    size, product = (0.5, 2.0) if z.dtype == torch.float32 else (0.2, 0.4)
    reach = (product / (z.abs() + size / 2)).clamp(max=size)
    cdf = 0.5 * torch.special.erfc(-math.sqrt(0.5) * z)
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return cdf, density, torch.where(z.abs() > 1e6, -1, reach)


def _gelu(z: Rows) -> tuple[Rows, ...]:
    """:func:`_normal`, and the first three coefficients of the series of gelu's change in the difference.

    These are ``Phi + z phi``, ``phi (2 - z^2) / 2`` and ``phi (z^3 - 4 z) / 6``.
    """
    wide = z.double()
    bounded = wide.clamp(-40, 40)  # beyond, the density is 0
    density = torch.exp(-0.5 * bounded * bounded) / math.sqrt(2 * math.pi)
    first = 0.5 * torch.special.erfc(-math.sqrt(0.5) * wide) + bounded * density
    second, third = density * (2 - bounded**2) / 2, density * (bounded**3 - 4 * bounded) / 6
    return *_normal(z), first.to(z.dtype), second.to(z.dtype), third.to(z.dtype)


DERIVED: dict[str, Callable[[Rows], tuple[Rows, ...]]] = {
    "relu": lambda _: (),
    "leaky_relu": lambda _: (),
    "gelu": _gelu,
    "gelu_tanh": lambda z: _chances(GELU_TANH[0] * z + GELU_TANH[1] * z**3),
    "sigmoid": _chances,
    "tanh": lambda z: _chances(2 * z),
    "silu": _chances,
}
"""What a loop takes of base values beside themselves."""
LOOPS = {"leaky_relu": "relu", "sigmoid": "logistic", "tanh": "logistic"}
"""Loops that go by another name than their function."""
SERIES = {torch.float32: 8e-3, torch.float64: 1.2e-5}
"""Largest ``|d| (|z| + 1.4)`` at which three terms of gelu's series have the last places right.

The fourth is ``phi(z) (-z^4 + 7 z^2 - 4) d^4 / 24``. Of ``|d| (Phi + |z| phi)``, the size of the change's parts, it is
at most half a unit in the last place there, for all z.
"""
NUMBERS: dict[str, tuple[float, ...]] = {
    "relu": (0.0, 1.0),
    "gelu_tanh": GELU_TANH,
    "sigmoid": (1.0,),
    "tanh": (2.0,),
    "silu": (),
}
"""The numbers that a loop takes."""
