"""Declared locality: inputs far apart are perturbed together, and told apart by the outputs that they reach.

If no output depends on two inputs of the same colour, one evaluation with all inputs of a colour moved gives the slopes
along every one of them: the Jacobian's columns are coloured (Curtis, Powell and Reid, 1974). A convolution of k x k
over C channels needs :math:`C k^2` evaluations in place of :math:`C H W`, and the result is that of all coordinates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from deepzero import validation
from deepzero.errors import InvalidInputError


@dataclass(frozen=True)
class Colouring:
    """Colours of the entries of a row's input, and which entry of a colour an output sees.

    Attributes:
        colours: colour of each entry of the input, flat.
        count: number of colours.
        seen: ``[colour, output entry]``: the entry of that colour which the output depends on; -1 if there is none.
    """

    colours: Int64[Tensor, " inputs"]
    count: int
    seen: Int64[Tensor, "colours outputs"]


class Locality(ABC):
    """A declaration about rows: which entries of the input an entry of the output may depend on."""

    @abstractmethod
    def colouring(self, inputs: torch.Size, outputs: torch.Size) -> Colouring:
        """The colours for a row's shapes.

        Raises:
            InvalidInputError: such a map has other shapes.
        """


@dataclass(frozen=True)
class Elementwise(Locality):
    """Each entry of the output depends on the entry of the input at its place: one evaluation, whatever the size.

    Example:
        >>> Elementwise().colouring(torch.Size([2, 3]), torch.Size([2, 3])).count
        1
    """

    def colouring(self, inputs: torch.Size, outputs: torch.Size) -> Colouring:
        """One colour."""
        if inputs != outputs:
            raise InvalidInputError(
                f"locality=Elementwise() is for outputs of the input's shape, {tuple(inputs)}; got {tuple(outputs)}"
            )
        entries = inputs.numel()
        return Colouring(torch.zeros(entries, dtype=torch.int64), 1, torch.arange(entries).unsqueeze(0))


@dataclass(frozen=True)
class PerToken(Locality):
    """Rows ``[T, F]`` to ``[T, G]`` in which token t of the output depends on token t of the input: F evaluations.

    Args:
        dim: dimension of the tokens in a row (0: the first after the batch).

    Example:
        >>> PerToken().colouring(torch.Size([7, 3]), torch.Size([7, 2])).count
        3
    """

    dim: int = 0

    def colouring(self, inputs: torch.Size, outputs: torch.Size) -> Colouring:
        """A colour for each feature."""
        validation.count("dim", self.dim, minimum=0)
        if self.dim >= min(len(inputs), len(outputs)) or inputs[self.dim] != outputs[self.dim]:
            raise InvalidInputError(
                f"locality=PerToken(dim={self.dim}) is for inputs and outputs with as many tokens in dimension "
                f"{self.dim} of a row, got rows of shape {tuple(inputs)} and {tuple(outputs)}"
            )
        entries = torch.arange(inputs.numel()).reshape(inputs).movedim(self.dim, 0).flatten(1)  # [T, F]
        tokens, features = entries.shape
        colours = torch.empty(inputs.numel(), dtype=torch.int64)
        colours[entries] = torch.arange(features).expand(tokens, features)
        token = torch.arange(tokens).reshape(-1, *(1 for _ in outputs[1:])).expand(tokens, *_without(outputs, self.dim))
        token = token.movedim(0, self.dim).reshape(-1)  # of each output entry
        return Colouring(colours, features, entries[token].T.contiguous())


def _without(shape: torch.Size, dim: int) -> list[int]:
    return [size for d, size in enumerate(shape) if d != dim]


@dataclass(frozen=True)
class Conv(Locality):
    """Rows ``[C, *positions]`` to ``[D, *positions']`` as of a convolution: :math:`C k^n` evaluations for n dimensions.

    Args:
        kernel: k, the width of the receptive field (with a dilation: from its first to its last position); one number,
            or one for each dimension.
        stride: of the outputs, likewise.
        padding: positions before the first at which the field of the first output begins, likewise; None: ``kernel //
            2``, as in "same" convolutions of odd kernels.

    Example:
        >>> Conv(kernel=3).colouring(torch.Size([4, 32, 32]), torch.Size([8, 32, 32])).count
        36
    """

    kernel: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] | None = None

    def colouring(self, inputs: torch.Size, outputs: torch.Size) -> Colouring:
        """A colour for each channel and each position within a field."""
        dims = len(inputs) - 1
        if dims < 1 or len(outputs) != len(inputs):
            raise InvalidInputError(
                f"locality=Conv(...) is for rows of channels and positions, [C, H, W] or [C, L], got rows of shape "
                f"{tuple(inputs)} and {tuple(outputs)}"
            )
        kernel, stride = _each("kernel", self.kernel, dims), _each("stride", self.stride, dims)
        padding = (
            tuple(k // 2 for k in kernel) if self.padding is None else _each("padding", self.padding, dims, minimum=0)
        )
        grids = [_axis(*one) for one in zip(inputs[1:], outputs[1:], kernel, stride, padding, strict=True)]
        colour, seen = _product(grids, inputs[1:])
        channels, per_channel = inputs[0], seen.shape[0]
        positions = colour.numel()
        lead = torch.arange(channels)
        colours = (lead.unsqueeze(1) * per_channel + colour).reshape(-1)
        at = seen.unsqueeze(0) + lead.reshape(-1, 1, 1) * positions  # [C, colours of a channel, positions']
        at = torch.where(seen.unsqueeze(0) < 0, -1, at)
        at = at.flatten(0, 1).unsqueeze(1).expand(-1, outputs[0], -1).flatten(1)
        return Colouring(colours, channels * per_channel, at.contiguous())


def _each(name: str, value: int | tuple[int, ...], dims: int, minimum: int = 1) -> tuple[int, ...]:
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims:
        raise InvalidInputError(f"{name} must be one number or {dims}, one for each dimension of a row, got {value!r}")
    return tuple(validation.count(name, one, minimum=minimum) for one in values)


def _axis(size: int, out: int, kernel: int, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """Colours along one dimension, and ``[colour, output]``: the input of that colour in the output's field, or -1."""
    colours = torch.arange(size) % kernel
    first = torch.arange(out) * stride - padding
    colour = torch.arange(kernel).unsqueeze(1)
    at = first + (colour - first) % kernel
    return colours, torch.where((at >= 0) & (at < size), at, -1)


def _product(grids: list[tuple[Tensor, Tensor]], sizes: torch.Size) -> tuple[Tensor, Tensor]:
    """Colours and fields of several dimensions together, flat."""
    colour, seen = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    for (along, at), size in zip(grids, sizes, strict=True):
        count = at.shape[0]
        colour = (colour.unsqueeze(1) * count + along).reshape(-1)
        both = seen.unsqueeze(1).unsqueeze(3) * size + at.unsqueeze(0).unsqueeze(2)
        outside = (seen < 0).unsqueeze(1).unsqueeze(3) | (at < 0).unsqueeze(0).unsqueeze(2)
        seen = torch.where(outside, -1, both).flatten(2).flatten(0, 1)
    return colour, seen


@dataclass(frozen=True)
class PerChannel:
    """Entry ``i`` of a parameter along ``dim`` acts on channel ``i`` of the output alone.

    So the weights of all channels are perturbed together: :math:`C k^2` evaluations for a convolution's weight over C
    input channels, one for its bias.

    Args:
        dim: dimension of the parameter.
        output: dimension of a row of the output (0: the first after the batch).
    """

    dim: int = 0
    output: int = 0

    def colours(self, parameter: torch.Size, outputs: torch.Size) -> tuple[Tensor, Tensor]:
        """``[entries of the others, channel]``: flat indices into the parameter; channel of each output entry."""
        if self.dim >= len(parameter) or self.output >= len(outputs) or parameter[self.dim] != outputs[self.output]:
            raise InvalidInputError(
                f"PerChannel(dim={self.dim}, output={self.output}) is for a parameter that is as long in dimension "
                f"{self.dim} as a row of the output in dimension {self.output}, got {tuple(parameter)} and "
                f"{tuple(outputs)}"
            )
        entries = (
            torch.arange(parameter.numel()).reshape(parameter).movedim(self.dim, 0).reshape(parameter[self.dim], -1)
        )
        shape = [1] * len(outputs)
        shape[self.output] = outputs[self.output]
        channel = torch.arange(outputs[self.output]).reshape(shape).expand(outputs).reshape(-1)
        return entries.T.contiguous(), channel
