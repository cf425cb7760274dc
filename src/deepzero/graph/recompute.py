"""Queries that differences cannot follow: the operations behind the parameter are run again, those before it are not.

So feature reuse still holds: in a network whose last part has no rule, a query costs that last part.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float64
from torch import Tensor

from deepzero.graph.capture import Graph, Node
from deepzero.graph.forward import Dealer, Values, native, substitute
from deepzero.graph.program import downstream
from deepzero.randomness import Draws


class Recomputation:
    """The operations downstream of some graph inputs, to be run at other values of these.

    Args:
        graph: the graph.
        sources: the inputs that move.
        values: base values of a forward that kept what the operations read.
        draws: the step's random numbers.
        wide: the values are a float64 forward's.
    """

    def __init__(
        self, graph: Graph, sources: tuple[Node, ...], values: Values, draws: Draws, *, wide: bool = False
    ) -> None:
        self._graph, self._values = graph, values
        self._nodes = downstream(graph, sources)
        self._dealer = Dealer(graph, draws, wide=wide)
        last = {used: node for node in self._nodes for used in node.inputs}
        self._frees: dict[Node, list[Node]] = {}
        for used, node in last.items():
            self._frees.setdefault(node, []).append(used)

    def loss(self, moved: Mapping[Node, Tensor]) -> Float64[Tensor, ""]:
        """The loss where the sources are ``moved``; averaged in float64."""
        there = dict(moved)
        with torch.no_grad():
            for node in self._nodes:
                args, kwargs = substitute(node, lambda n: there[n] if n in there else native(self._values[n]))
                there[node] = self._dealer.call(node, args, kwargs)
                for dead in self._frees.get(node, ()):
                    if dead is not self._graph.output:
                        there.pop(dead, None)
        output = there.get(self._graph.output)
        value: Tensor = native(self._values[self._graph.output]) if output is None else output
        return value.double().mean()
