"""The graph for a size of the batch that lies between two sizes whose graphs are known.

An export takes a second or more, and sentences come in hundreds of lengths. The integers in a graph that tell of a size
are linear functions of it, found from two exports. Between the two, a condition like ``if length > 100`` that both
exports met alike is met alike again; beyond them it may not be, so nothing is concluded from there.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepzero.graph.capture import Graph, Node


class Sizes(NamedTuple):
    """Three sizes of one thing, such as samples or tokens.

    Attributes:
        low: the smallest.
        high: the largest.
        between: the size in question.
    """

    low: int
    high: int
    between: int

    def linear(self, at_low: int, at_high: int) -> int:
        """The value at the size between, of a linear function of which two are known.

        Raises:
            ValueError: no function ``a size + b`` of integers has those two.
        """
        slope, rest = divmod(at_high - at_low, self.high - self.low)
        if rest:
            raise ValueError(f"{at_low} at {self.low} and {at_high} at {self.high} lie on no line of integers")
        return at_low + slope * (self.between - self.low)


def sizes_of(low: Hashable, high: Hashable, between: Hashable) -> Sizes | None:
    """The size in which three keys of :func:`~deepzero.graph.library.shape_key` differ, wherever it stands in them.

    Of several, such as tokens and tokens of all sentences, it is the one that differs least; the others must be linear
    functions of it. None where the keys differ otherwise, or the third size does not lie between the other two.

    Example:
        >>> import torch
        >>> shape = lambda tokens: (torch.Size([8, tokens]), torch.Size([8 * tokens]))
        >>> sizes_of(shape(10), shape(30), shape(20))
        Sizes(low=10, high=30, between=20)
        >>> sizes_of(shape(10), shape(30), shape(31)) is None
        True
    """
    try:
        found = _differing(low, high, between)
        if not found:
            return None
        sizes = min(found, key=lambda one: one.high - one.low)
        inside = sizes.low < sizes.between < sizes.high
        return sizes if inside and all(sizes.linear(o.low, o.high) == o.between for o in found) else None
    except ValueError:
        return None


def _differing(low: Any, high: Any, between: Any) -> list[Sizes]:
    """The sizes in which three keys differ; ValueError where something else does."""
    if low == high == between:
        return []
    kinds = {type(low), type(high), type(between)}
    if kinds in ({tuple}, {torch.Size}) and len(low) == len(high) == len(between):
        return [sizes for parts in zip(low, high, between, strict=True) for sizes in _of_entry(kinds, *parts)]
    raise ValueError("the keys differ in more than sizes")


def _of_entry(kinds: set[type], low: Any, high: Any, between: Any) -> list[Sizes]:
    if kinds == {tuple}:
        return _differing(low, high, between)
    return [] if low == high == between else [Sizes(low, high, between)]


def graph_between(low: Graph, high: Graph, sizes: Sizes) -> Graph | None:
    """The graph at the size between, from those at two sizes.

    None where they are not the same operations, or differ in anything but integers that are linear functions of the
    size, such as in a fraction of it or in a tensor that the model makes itself.
    """
    if not (_same_operations(low, high) and same_constants(low, high)):
        return None
    twins = dict(zip((*low.inputs, *low.nodes), (*high.inputs, *high.nodes), strict=True))
    made = dict(zip(low.inputs, low.inputs, strict=True))

    def merged(one: Any, other: Any) -> Any:
        if isinstance(one, Node) and twins[one] is other:
            return made[one]
        if type(one) is int and type(other) is int:
            return sizes.linear(one, other)
        if type(one) is type(other) and isinstance(one, (tuple, list)) and len(one) == len(other):
            return type(one)(map(merged, one, other))
        if type(one) is not type(other) or isinstance(one, Node) or one != other:
            raise ValueError(f"{one} and {other} are arguments of different operations")
        return one

    try:
        for one, other in zip(low.nodes, high.nodes, strict=True):
            kwargs = {key: merged(value, other.kwargs[key]) for key, value in one.kwargs.items()}
            made[one] = Node(one.name, one.target, merged(one.args, other.args), kwargs, one.source)
    except ValueError:
        return None
    return Graph(low.inputs, [made[node] for node in low.nodes], made[low.output], low.constants)


def _same_operations(low: Graph, high: Graph) -> bool:
    """True if two graphs call the same operations in the same order on the same inputs and return the same one."""
    called = [[(node.target, node.kwargs.keys()) for node in graph.nodes] for graph in (low, high)]
    inputs = [[*graph.inputs.values()] for graph in (low, high)]
    returned = [[*graph.inputs, *graph.nodes].index(graph.output) for graph in (low, high)]
    return called[0] == called[1] and inputs[0] == inputs[1] and returned[0] == returned[1]


def same_constants(first: Graph, second: Graph) -> bool:
    """True if two graphs hold equal tensors of the model's own."""
    return first.constants.keys() == second.constants.keys() and all(
        equal_tensors(value, second.constants[name]) for name, value in first.constants.items()
    )


def equal_tensors(first: Tensor, second: Tensor) -> bool:
    """True if two tensors hold the same numbers of the same dtype in the same shape on the same device."""
    alike = (first.dtype, first.shape, first.device) == (second.dtype, second.shape, second.device)
    return alike and torch.equal(first, second)
