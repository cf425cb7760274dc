"""Pointwise rules of several operands: everything is brought to the entries that differ.

Differences of the operands are broadcast to the shape of the output and brought to one kind: one-hot if all of them
differ at the same entries, a channel if they differ on the same channels, dense otherwise. Base values follow: only
those entries of them are read.

Legend: p perturbations; entries: those that differ, one in each perturbation ``[p]``, a channel in each
``[p, *rest]``, or all ``[p, *shape]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Num, Shaped
from torch import Tensor

from deepzero.graph.calls import Operand
from deepzero.graph.differences import (
    Channel,
    Dense,
    Difference,
    LowRank,
    OneHot,
    RankOne,
    Segment,
    same_channels,
    same_entries,
)

Pattern = OneHot | Channel | Dense
"""A difference whose entries are all alike."""


class Moving(NamedTuple):
    """An argument at the entries that differ: its base value (a tensor or a number), and its difference, if any."""

    base: Any
    delta: Any

    @property
    def moved(self) -> Any:
        """``z + d``."""
        return self.base if self.delta is None else perturbed(self.base, self.delta)

    def map(self, function: Callable[[Any], Any]) -> Moving:
        """The same function of both: a linear one, or a cast."""
        return Moving(function(self.base), None if self.delta is None else function(self.delta))


def perturbed(base: Shaped[Tensor, "*#entries"], delta: Num[Tensor, "*#entries"]) -> Shaped[Tensor, "*#entries"]:
    """``z + d``; exact for integers and booleans, whose differences are integers."""
    if base.is_floating_point() or base.is_complex():
        return base + delta
    return (base.to(torch.int64) + delta).to(base.dtype)


def jointly(shape: torch.Size, arguments: Sequence[Any], function: Callable[..., Tensor]) -> Difference:
    """``function`` on the entries that differ, for an output of ``shape``.

    Args:
        shape: shape of the output's base value, to which all arguments broadcast.
        arguments: operands and numbers; at least one operand differs.
        function: takes a :class:`Moving` for each argument and gives the change of the output at those entries.

    Returns:
        One-hot or channel where all differences sit together, dense otherwise.
    """
    differences = [
        broadcast(a.difference, shape) if isinstance(a, Operand) and a.difference is not None else None
        for a in arguments
    ]
    frame = _Frame(_common_kind([d for d in differences if d is not None]))
    pairs = [
        Moving(frame.base(a.base) if isinstance(a, Operand) else a, None if d is None else frame.delta(d))
        for a, d in zip(arguments, differences, strict=True)
    ]
    return frame.difference(function(*pairs))


def broadcast(difference: Difference, shape: torch.Size) -> Difference:
    """The difference of a value that is broadcast to ``shape``; a channel stays a channel where it can."""
    if difference.shape == shape:
        return difference
    lead = len(shape) - len(difference.shape)
    if isinstance(difference, OneHot):
        difference = _onehot_as_channel(difference)
    if isinstance(difference, Channel) and shape[difference.axis + lead] == difference.shape[difference.axis]:
        axis = difference.axis + lead
        delta = difference.delta.reshape(difference.count, *(1 for _ in range(lead)), *difference.delta.shape[1:])
        rest = torch.Size(s for d, s in enumerate(shape) if d != axis)
        return Channel(axis, difference.channels, delta.expand(difference.count, *rest), shape)
    delta = difference.dense()
    delta = delta.reshape(difference.count, *(1 for _ in range(lead)), *difference.shape)
    return Dense(delta.expand(difference.count, *shape))


def _onehot_as_channel(difference: OneHot) -> Difference:
    """A one-hot difference of a value with a single dimension longer than 1 is a channel of one entry."""
    long = [d for d, size in enumerate(difference.shape) if size > 1]
    if len(long) > 1 or not difference.shape:
        return difference
    axis = long[0] if long else len(difference.shape) - 1
    rest = tuple(s for d, s in enumerate(difference.shape) if d != axis)
    delta = difference.values.reshape(-1, *(1 for _ in rest)).expand(-1, *rest)
    return Channel(axis, difference.indices, delta, difference.shape)


def _common_kind(differences: list[Difference]) -> Pattern:
    first, *others = differences
    if isinstance(first, OneHot) and all(isinstance(o, OneHot) and same_entries(first, o) for o in others):
        return first
    if isinstance(first, Channel) and all(isinstance(o, Channel) and same_channels(first, o) for o in others):
        return first
    return first if isinstance(first, Dense) else Dense(first.dense())


@dataclass(frozen=True)
class _Frame:
    """The entries that differ, given by one difference that sits on them."""

    pattern: Pattern

    def base(self, value: Shaped[Tensor, "*value"]) -> Shaped[Tensor, "*entries"]:
        """A base value there, broadcastable against the differences."""
        pattern = self.pattern
        if value.dim() == 0 or isinstance(pattern, Dense):
            return value
        if isinstance(pattern, OneHot):
            if value.shape == pattern.shape:
                return value.reshape(-1)[pattern.indices]
            return value.expand(pattern.shape)[pattern.positions()]
        aligned = value.reshape(*(1 for _ in range(len(pattern.shape) - value.dim())), *value.shape)
        if aligned.shape[pattern.axis] == 1:
            return aligned.select(pattern.axis, 0).unsqueeze(0)
        return pattern.of(aligned)

    def delta(self, difference: Difference) -> Num[Tensor, " p *rest"]:
        """A difference there."""
        if isinstance(self.pattern, Dense):
            return difference.dense()
        assert not isinstance(difference, (RankOne, Segment, LowRank)), "it sits on no channel"
        return difference.values if isinstance(difference, OneHot) else difference.delta

    def difference(self, values: Num[Tensor, " p *rest"]) -> Difference:
        """The difference that has ``values`` there."""
        if isinstance(self.pattern, OneHot):
            return OneHot(self.pattern.indices, values, self.pattern.shape)
        return self.pattern.with_delta(values) if isinstance(self.pattern, Channel) else Dense(values)
