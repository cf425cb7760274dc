"""Fused kernels by device: each computes in few passes over memory what a rule else composes of plain operations.

A rule asks the kernels :func:`on` the device of its tensors, and composes where the answer is None. A further device's
kernels are a module with the functions of :class:`Kernels`, in a folder beside ``cpu/``, and an entry in
:data:`BY_DEVICE`.

Legend: p perturbations, b samples, c channels, i input and o output channels, h height, w width; rest: positions;
g groups of perturbations, m rows, n entries of a row, k and o inputs and outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.cpu import cpu_kernels
from deepzero.graph.cuda import cuda_attention_kernels, cuda_kernels, cuda_row_kernels
from deepzero.graph.differences import Blocks, Channel, Dense, Difference, LowRank, OneHot
from deepzero.graph.tails import Tail
from deepzero.graph.windows import ConvolutionGeometry, Window


class Kernels(Protocol):
    """The functions for which a device may have a kernel; None where it has none for these arguments."""

    def normalize_relu_channel(
        self,
        difference: Channel,
        centred: Value,
        scale: Float[Tensor, " c"],
        gamma: Float[Tensor, " c"] | None,
        before: Value,
    ) -> Float[Tensor, "p b *rest"] | None:
        """``relu(y + v) - relu(y)`` for ``v = gamma n``, n being the change of ``centred / scale`` by one channel's d.

        The scale's change is that of the standard deviation over samples and positions, for each perturbation its own.

        Args:
            difference: d, along dimension 1.
            centred: base values minus their means over samples and positions.
            scale: ``sqrt(variance + eps)`` of the base values.
            gamma: a factor, 1 if None.
            before: y.
        """
        ...

    def normalize_relu_dense(
        self,
        difference: Difference,
        centred: Value,
        scale: Float[Tensor, " c"],
        gamma: Float[Tensor, " c"] | None,
        before: Value,
        extra: Difference | None,
        *,
        overwrite: bool,
    ) -> Dense | None:
        """The same where every channel differs in the end, by d or by ``extra``, which is added to v.

        ``overwrite`` lets the outcome take the memory of a dense d.
        """
        ...

    def convolve_channel(
        self, difference: Channel, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size
    ) -> Dense | None:
        """``conv(d, W[:, c])``, d being the channel c of each perturbation, to an output of ``shape``."""
        ...

    def convolve_dense(
        self, difference: Dense, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size
    ) -> Dense | None:
        """``conv(d, W)`` in one group, to an output of ``shape``; None where PyTorch's is as fast."""
        ...

    def linear_of_blocks(self, difference: Blocks, weight: Value, shape: torch.Size) -> Dense | None:
        """``d W^T``, the features of samples in blocks, to an output of ``shape``."""
        ...

    def convolve_to_tail(
        self,
        difference: Channel | Dense | Blocks,
        weight: Value,
        geometry: ConvolutionGeometry,
        shape: torch.Size,
        tail: Tail,
        extra: Difference | Blocks | None,
    ) -> Dense | Blocks | None:
        """The change of what follows ``conv(x, W)`` of ``shape`` where x differs by d, and the residual by ``extra``.

        There is no extra where maxima are taken.
        """
        ...

    def slices_to_tail(
        self, x: Value, difference: OneHot, geometry: ConvolutionGeometry, shape: torch.Size, tail: Tail
    ) -> Channel | None:
        """The same where one weight differs: its output channel alone."""
        ...

    def affine_to_tail(self, difference: OneHot, shape: torch.Size, tail: Tail, *, factor: bool) -> Channel | None:
        """The same where one entry of gamma differs, or, without ``factor``, of what is added to the channels."""
        ...

    def shifted_slices(
        self,
        padded: Float[Tensor, "i b *spatial"],
        geometry: ConvolutionGeometry,
        size: Sequence[int],
        features: Int64[Tensor, " p"],
        taps: Sequence[Int64[Tensor, " p"]],
        values: Float[Tensor, " p"],
    ) -> Float[Tensor, "p b h w"] | None:
        """``values[p] * window(padded[features[p]])``, the window of ``size`` that begins at tap ``taps[:, p]``."""
        ...

    def attention(
        self,
        query: tuple[Float[Tensor, "*lead l e"], Float[Tensor, "p *lead l e"] | None],
        key: tuple[Float[Tensor, "*lead s e"], Float[Tensor, "p *lead s e"] | None],
        value: tuple[Float[Tensor, "*lead s f"], Float[Tensor, "p *lead s f"] | None],
        factor: float,
        weights: Float[Tensor, "*lead l s"],
        logarithms: Float[Tensor, "*lead l s"],
    ) -> Float[Tensor, "p *lead l f"] | None:
        """The change of ``softmax(factor q k^T + mask) v`` by those of q, k and v, of which q or k differs.

        Args:
            query: q and its change, if any.
            key: k, likewise.
            value: v, likewise.
            factor: of the scores.
            weights: the base softmax.
            logarithms: of the weights; -inf where nothing may be attended to.
        """
        ...

    def max_pool(
        self, difference: Channel | Dense, base: Value, maximum: Value, window: Window
    ) -> Float[Tensor, "p b *c h w"] | None:
        """``max (z - M + d)`` over windows of base values z with maxima M, of one channel each or of all."""
        ...

    def activation(
        self, function: str, x: Value, difference: Channel | Dense, slope: float, *, overwrite: bool
    ) -> Float[Tensor, " p *shape"] | None:
        """``f(z + d) - f(z)`` without cancellation, at the entries that differ.

        Args:
            function: f: ``relu``, ``leaky_relu``, ``gelu``, ``gelu_tanh``, ``sigmoid``, ``tanh`` or ``silu``.
            x: z.
            difference: d.
            slope: of a leaky relu below zero.
            overwrite: lets the outcome take the memory of d.
        """
        ...

    def perceptron(
        self,
        function: str,
        slope: float,
        hidden: Value,
        difference: Channel | Dense | LowRank,
        inner: Float[Tensor, "n k"] | None,
        outer: Float[Tensor, "o n"],
    ) -> Channel | Dense | None:
        """The change of ``f(z) W^T`` where z differs by d, or by ``d V^T``.

        Args:
            function: f, as of an activation.
            slope: of a leaky relu below zero.
            hidden: z.
            difference: d; a channel is one of a dimension before the last.
            inner: V, if d is that of what a linear layer makes z of.
            outer: W.
        """
        ...

    def normalize(
        self,
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
        """The change of ``weight c / s`` along the last ``dims`` dimensions, with ``s^2 = mean(c^2) + eps``.

        Args:
            difference: of what is normalized.
            centred: c, base values minus their mean along these dimensions, or base values themselves.
            scale: s, of length 1 along them.
            eps: as above.
            weight: a factor, 1 if None.
            dims: their number.
            mean: whether the mean is taken off.
            overwrite: lets the outcome take the memory of the difference.
        """
        ...

    def softmax(
        self, difference: Channel | Dense, chances: Value, logarithms: Value, dim: int, *, log: bool, overwrite: bool
    ) -> Channel | Dense | None:
        """The change of a softmax along dimension ``dim``, or with ``log`` of its logarithm.

        Args:
            difference: of the logits.
            chances: their softmax.
            logarithms: its logarithm, exact also where the softmax is 0 by underflow.
            dim: of base values.
            log: whether the change of the logarithm is asked for.
            overwrite: lets the outcome take the memory of the difference.
        """
        ...

    def label_losses(
        self,
        difference: Channel | Dense,
        chances: Value,
        logarithms: Value,
        labels: Int64[Tensor, "*targets"],
        dim: int,
    ) -> Float[Tensor, " p *others"] | None:
        """The change of ``-log softmax(z)_y`` for labels y, at the targets that differ.

        Args:
            difference: of the logits z: of all, of one class, or of one entry of another dimension.
            chances: the softmax of z along ``dim``.
            logarithms: its logarithm, exact also where the softmax is 0 by underflow.
            labels: y, of the shape of z without its classes.
            dim: dimension of z that holds the classes.
        """
        ...

    def label_losses_of_sums(
        self, difference: LowRank, chances: Value, logarithms: Value, labels: Int64[Tensor, " r"]
    ) -> Float[Tensor, "p r"] | None:
        """The same for logits ``[r, classes]`` that differ by rows of low rank."""
        ...

    def behind_kink(
        self, directions: Float[Tensor, " g #m n"], base: Float[Tensor, "m n"], negative_slope: float
    ) -> tuple[Float[Tensor, "g m n"], Float[Tensor, "2 g m"]] | None:
        """Directions u behind a kink, and the extreme rates of each row.

        They are ``u`` where z is positive or 0 and ``slope u`` elsewhere; and the largest and the smallest ``-u / z``,
        which are infinite in a row with an entry whose ``u / z`` is infinite or not a number.
        """
        ...

    def rows_that_cross(
        self, coefficients: Float[Tensor, "p m"], groups: Int64[Tensor, " p"], rates: Float[Tensor, "2 g m"]
    ) -> tuple[Float[Tensor, "p m"], Int64[Tensor, " r"]] | None:
        """The coefficients with 0 for rows that cross a kink, and the flat places of these.

        A row crosses unless its coefficient is 0 or, times both extreme rates, less than 1.
        """
        ...

    def rectified_rows(
        self,
        coefficients: Float[Tensor, "p m"],
        directions: Float[Tensor, " g #m n"],
        groups: Int64[Tensor, " p"],
        places: Int64[Tensor, " r"],
        base: Float[Tensor, "m n"],
        given: tuple[Int64[Tensor, " s"], Float[Tensor, "s n"]] | None,
        negative_slope: float,
    ) -> Float[Tensor, "all n"] | None:
        """``f(z + d) - f(z)`` of a leaky relu f, for multiples d at ``places`` and for rows d given with theirs."""
        ...


class NoKernels:
    """A device without kernels: rules compose plain operations."""

    def normalize_relu_channel(self, *_: Any) -> None:
        """None."""

    def normalize_relu_dense(self, *_: Any, overwrite: bool) -> None:
        """None."""

    def convolve_channel(self, *_: Any) -> None:
        """None."""

    def convolve_dense(self, *_: Any) -> None:
        """None."""

    def linear_of_blocks(self, *_: Any) -> None:
        """None."""

    def convolve_to_tail(self, *_: Any) -> None:
        """None."""

    def slices_to_tail(self, *_: Any) -> None:
        """None."""

    def affine_to_tail(self, *_: Any, factor: bool) -> None:
        """None."""

    def shifted_slices(self, *_: Any) -> None:
        """None."""

    def attention(self, *_: Any) -> None:
        """None."""

    def max_pool(self, *_: Any) -> None:
        """None."""

    def activation(self, *_: Any, overwrite: bool) -> None:
        """None."""

    def perceptron(self, *_: Any) -> None:
        """None."""

    def normalize(self, *_: Any, mean: bool, overwrite: bool) -> None:
        """None."""

    def softmax(self, *_: Any, log: bool, overwrite: bool) -> None:
        """None."""

    def label_losses(self, *_: Any) -> None:
        """None."""

    def label_losses_of_sums(self, *_: Any) -> None:
        """None."""

    def behind_kink(self, *_: Any) -> None:
        """None."""

    def rows_that_cross(self, *_: Any) -> None:
        """None."""

    def rectified_rows(self, *_: Any) -> None:
        """None."""


class SomeKernels(NoKernels):
    """A device whose modules have kernels for a part of the functions.

    Args:
        modules: what it has, by the names of :class:`Kernels`.
    """

    def __init__(self, *modules: ModuleType) -> None:
        for module in modules:
            own = {n: f for n, f in vars(module).items() if n in vars(Kernels) and not n.startswith("_")}
            self.__dict__.update(own)


BY_DEVICE: dict[str, Kernels] = {
    "cpu": cpu_kernels,
    "cuda": SomeKernels(cuda_kernels, cuda_row_kernels, cuda_attention_kernels),
}
"""Type of a device -> its kernels."""
NONE = NoKernels()


def on(tensor: Tensor) -> Kernels:
    """The kernels of the device that holds ``tensor``."""
    return BY_DEVICE.get(tensor.device.type, NONE)
