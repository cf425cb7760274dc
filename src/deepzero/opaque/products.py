"""Vector-Jacobian products of something that can only be queried, from its outputs alone.

For row b with cotangent :math:`v_b`, the scalar :math:`s_b(z) = \\langle v_b, f(z)_b \\rangle` is differenced along
directions in the row's own inputs. The cotangent is known exactly, so an output of many entries costs no more than one
of a single entry, and since rows do not depend on each other, all rows and directions travel together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from deepzero.errors import InvalidInputError
from deepzero.opaque.directions import COORDINATES, UNIT, RowDirections
from deepzero.opaque.locality import Colouring
from deepzero.stencils import Stencil

CHUNK_BYTES = 64 << 20
"""Bytes of perturbed inputs that are made at a time."""

Function = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n o"]]
"""Rows of flat inputs to rows of flat outputs; a row that was skipped is NaN."""


@dataclass(frozen=True)
class ProductPoint:
    """The rows at which products are estimated.

    Attributes:
        inputs: ``[b, d]``, flat.
        output: the function there, ``[b, o]``.
        cotangent: v, ``[b, o]``.
    """

    inputs: Float[Tensor, "b d"]
    output: Float[Tensor, "b o"]
    cotangent: Float[Tensor, "b o"]

    def of(self, rows: Tensor) -> ProductPoint:
        """Some of its rows."""
        return ProductPoint(self.inputs[rows], self.output[rows], self.cotangent[rows])


def usual_step(inputs: Float[Tensor, "b d"], stencil: Stencil) -> Float64[Tensor, " b"]:
    """The step of the entries of each row that balances rounding and curvature, from their dtype and size.

    .. math:: h_b = \\varepsilon^{1/(p+1)} \\max(\\mathrm{rms}(z_b), 10^{-3})

    with p the order of the stencil (Dennis and Schnabel, 1983, section 5.4, with the size of a row for its entries).

    Example:
        >>> from deepzero.stencils import CENTRAL
        >>> f"{float(usual_step(torch.ones(1, 4, dtype=torch.float64), CENTRAL)):.1e}"
        '6.1e-06'
    """
    unit = float(torch.finfo(inputs.dtype).eps ** (1 / (stencil.order + 1)))
    return inputs.double().square().mean(1).sqrt().clamp_min(1e-3) * unit


@dataclass
class Differences:
    """Differences of a function's rows along directions, contracted with the cotangent.

    Attributes:
        function: the function.
        stencil: nodes along a direction at which it is evaluated.
        step_size: length of a direction of unit scale; None: by :func:`usual_step`, times the square root of d for
            directions of unit length, so that an entry moves as far in all distributions.
        kind: the distribution of directions.
        observed: called with rows, directions and slopes of the whole output along them.
    """

    function: Function
    stencil: Stencil
    step_size: float | None = None
    kind: str = COORDINATES
    observed: Callable[[Tensor, Tensor, Tensor], None] | None = None

    def step(self, inputs: Float[Tensor, "b d"]) -> Float64[Tensor, "b 1 1"]:
        """The step at each row."""
        if self.step_size is not None:
            found = torch.full((len(inputs),), self.step_size, dtype=torch.float64, device=inputs.device)
        else:
            found = usual_step(inputs, self.stencil)
            found = found * math.sqrt(inputs.shape[1]) if self.kind in UNIT else found
        return found.reshape(-1, 1, 1)

    def rounds_little(self, inputs: Tensor, directions: Tensor, offset: Tensor) -> bool:
        """True if rounding of a step is far below the step, so that it need not be looked at."""
        entry = float(offset.abs().min()) * float(directions.square().mean(-1).min()) ** 0.5
        return bool(float(inputs.abs().max()) * float(torch.finfo(inputs.dtype).eps) < 1e-3 * entry)

    def moved(self, inputs: Float[Tensor, "b 1 d"], directions: Tensor, offset: Float64[Tensor, "b 1 1"]) -> Tensor:
        """``z + t u``, and a refusal where that is mostly rounding."""
        wide = directions.double() * offset
        moved = inputs + wide.to(inputs.dtype)
        error = (moved.double() - inputs.double() - wide).square().sum()
        if not bool(error <= 0.25 * wide.square().sum()):
            raise InvalidInputError(
                f"inputs of dtype {inputs.dtype} moved by {float(offset.abs().max()):g} are mostly rounding; give a "
                "larger step_size, or inputs of a wider dtype"
            )
        return moved

    def slopes(
        self, point: ProductPoint, directions: Float[Tensor, "b k d"], step: Float64[Tensor, "b 1 1"]
    ) -> Float64[Tensor, "b k"]:
        """Slopes of :math:`s_b` along the directions of each row; 0 along one that was skipped."""
        count, inputs = directions.shape[1], point.inputs.unsqueeze(1)
        little = self.rounds_little(inputs, directions, step)
        offsets = [node * step for node in self.stencil.nodes]
        rows = torch.cat(
            [
                inputs + directions * offset.to(inputs.dtype) if little else self.moved(inputs, directions, offset)
                for offset in offsets
            ],
            dim=1,
        )
        answers = self.function(rows.flatten(0, 1)).double().reshape(len(inputs), -1, point.output.shape[1])
        weights = self.stencil.weights
        change = sum_of(weights, answers - point.output.double().unsqueeze(1), count)
        if little:
            change = change / step  # [b, k, o]
        else:
            taken, wide = rows.double() - inputs.double(), directions.double()
            along = torch.einsum("bjkd,bkd->bjk", taken.reshape(len(inputs), -1, *wide.shape[1:]), wide)
            length = sum_of(weights, along.flatten(1), count)
            change = change / (length / wide.square().sum(2)).unsqueeze(2)
        if self.observed is not None:
            flat = point.inputs.repeat_interleave(count, 0)
            self.observed(flat, directions.reshape(len(flat), -1), change.flatten(0, 1))
        return torch.einsum("bko,bo->bk", change, point.cotangent.double()).nan_to_num(nan=0.0)


def sum_of(weights: Sequence[float], values: Float64[Tensor, "b jk ..."], count: int) -> Float64[Tensor, "b k ..."]:
    """The weighted sum over the nodes of a stencil, which lie one after the other, ``count`` directions each."""
    parts = torch.split(values, count, dim=1)
    total: Tensor = weights[0] * parts[0]
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        total = total + weight * part
    return total


def along_random(
    differences: Differences, point: ProductPoint, queries: int, seed: int, guess: Float[Tensor, "b d"] | None
) -> Float[Tensor, "b d"]:
    """The product by ``queries`` random directions of each row.

    .. math:: \\hat g = \\tilde g + \\frac{c}{q} \\sum_k u_k (s_k - u_k^T \\tilde g)

    with the guess :math:`\\tilde g` (0 without one) as control variate: unbiased whatever the guess, with an error in
    proportion to :math:`\\|g - \\tilde g\\|^2`.
    """
    rows, dimension = point.inputs.shape
    drawn = RowDirections(differences.kind, rows, dimension, queries, seed, point.inputs)
    step = differences.step(point.inputs)
    total = torch.zeros_like(point.inputs, dtype=torch.float64)
    guessed = None if guess is None else guess.double()
    for block in drawn.blocks(_at_once(point.inputs, differences.stencil)):
        slopes = differences.slopes(point, block, step)
        if guessed is not None:
            slopes = slopes - torch.einsum("bkd,bd->bk", block.double(), guessed)
        total += torch.einsum("bk,bkd->bd", (slopes * drawn.scale).to(block.dtype), block).double()
    found = total if guessed is None else total + guessed
    return found.to(point.inputs.dtype)


def along_coordinates(differences: Differences, point: ProductPoint) -> Float[Tensor, "b d"]:
    """The product by every coordinate: exact but for the stencil's own error."""
    rows, dimension = point.inputs.shape
    step = differences.step(point.inputs)
    found = torch.zeros_like(point.inputs, dtype=torch.float64)
    most = _at_once(point.inputs, differences.stencil)
    for start in range(0, dimension, most):
        count = min(most, dimension - start)
        directions = point.inputs.new_zeros(count, dimension)
        directions[torch.arange(count), torch.arange(start, start + count)] = 1
        found[:, start : start + count] = differences.slopes(point, directions.expand(rows, -1, -1), step)
    return found.to(point.inputs.dtype)


def along_colours(differences: Differences, point: ProductPoint, colouring: Colouring) -> Float[Tensor, "b d"]:
    """The product by every colour: what all coordinates give, in as many evaluations as there are colours."""
    inputs, step = point.inputs, differences.step(point.inputs)
    rows, dimension = inputs.shape
    colours, seen = colouring.colours.to(inputs.device), colouring.seen.to(inputs.device)
    wide = torch.promote_types(inputs.dtype, torch.float32)  # of differences, which are exact in their own dtype
    output, cotangent = point.output.to(wide).unsqueeze(1), point.cotangent.to(wide).unsqueeze(1)
    change = torch.zeros(rows, dimension, dtype=wide, device=inputs.device)
    length = torch.zeros(rows, dimension, dtype=torch.float64, device=inputs.device)
    stencil, most, origin = differences.stencil, _at_once(inputs, differences.stencil), inputs.unsqueeze(1)
    little = differences.rounds_little(origin, torch.ones_like(inputs[:1]), step)
    reached = [(row >= 0).nonzero().flatten() for row in seen]
    entries = [row[there] for row, there in zip(seen, reached, strict=True)]
    for start in range(0, colouring.count, most):
        some = torch.arange(start, min(start + most, colouring.count), device=inputs.device)
        directions = (colours.unsqueeze(0) == some.unsqueeze(1)).to(inputs.dtype).unsqueeze(0)  # [1, k, d]
        for node, weight in zip(stencil.nodes, stencil.weights, strict=True):
            offset = node * step
            if little:
                moved = torch.addcmul(origin, directions, offset.to(inputs.dtype))
            else:
                moved = differences.moved(origin, directions, offset)
                length += weight * ((moved.double() - origin.double()) * directions).sum(1)
            answers = differences.function(moved.flatten(0, 1)).to(wide).reshape(rows, len(some), -1)
            weighted = (answers - output).mul_(weight * cotangent)
            for j, colour in enumerate(some.tolist()):
                change.index_add_(1, entries[colour], weighted[:, j].index_select(1, reached[colour]))
    slopes = change / step.flatten(1) if little else torch.where(length == 0, 0.0, change / length)
    return slopes.nan_to_num(nan=0.0).to(inputs.dtype)  # 0 along a direction that was skipped


def _at_once(inputs: Tensor, stencil: Stencil) -> int:
    """Directions of each row whose perturbed inputs are made at a time."""
    return max(1, CHUNK_BYTES // max(1, inputs.numel() * inputs.element_size() * len(stencil.nodes)))
