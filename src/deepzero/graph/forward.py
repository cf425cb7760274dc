"""The base forward: one evaluation of the graph that keeps every value a rule may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from deepzero.errors import InvalidInputError
from deepzero.graph.calls import Value
from deepzero.graph.capture import Graph, Node
from deepzero.objective import NetworkObjective
from deepzero.randomness import seeded_scope

Values = dict[Node, Value]


def graph_inputs(
    graph: Graph, objective: NetworkObjective, batch: tuple[Any, ...], dtype: torch.dtype | None = None
) -> dict[Node, Any]:
    """Values of the graph's inputs: live parameters and buffers, the batch, constants; floats in ``dtype`` if given."""
    model = objective.model
    sources: dict[str, Mapping[Any, Any]] = {
        "parameter": dict(model.named_parameters()),
        "buffer": dict(model.named_buffers()),
        "batch": dict(enumerate(pytree.tree_leaves(batch))),
        "constant": graph.constants,
    }
    return {node: _prepared(sources[kind][key], dtype) for node, (kind, key) in graph.inputs.items()}


def _prepared(value: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def run(graph: Graph, inputs: Mapping[Node, Any], *, keep: Iterable[Node], seed: int, device: torch.device) -> Values:
    """Evaluate the graph once, drawing from ``seed``; values outside ``keep`` are dropped after their last use."""
    values: Values = {node: Value(value) for node, value in inputs.items()}
    kept = set(keep) | {graph.output, *graph.buffer_updates.values()}
    expiring = _last_uses(graph, kept)
    with torch.no_grad(), seeded_scope(seed, device):
        for node in graph.nodes:
            args, kwargs = substitute(node, lambda n: values[n].base)
            values[node] = Value(_call(node, args, kwargs))
            for dead in expiring.get(node, ()):
                del values[dead]
    return values


def _call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return node.target(*args, **kwargs)
    except IndexError as error:
        raise InvalidInputError(
            f"{node.name} looks up an index that is out of range: {error}; class labels and token ids must lie in "
            f"[0, number of classes or rows), shapes here: {[tuple(a.shape) for a in args if isinstance(a, Tensor)]}"
        ) from error


def _last_uses(graph: Graph, kept: set[Node]) -> dict[Node, list[Node]]:
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        for used in node.inputs:
            last[used] = node
    expiring: dict[Node, list[Node]] = {}
    for used, node in last.items():
        if used not in kept and used not in graph.inputs:
            expiring.setdefault(node, []).append(used)
    return expiring


def substitute(node: Node, function: Callable[[Node], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a node with nodes replaced."""
    return fx.node.map_aggregate(
        (node.args, node.kwargs),
        lambda a: function(a) if isinstance(a, Node) else a,
    )


def held_bytes(values: Values) -> int:
    """Bytes of all tensors that base values and memos hold; shared memory counts once."""
    seen: dict[int, int] = {}

    def visit(leaf: Any) -> None:
        if isinstance(leaf, Value):
            pytree.tree_map(visit, (leaf.base, leaf.memo))
        elif isinstance(leaf, Tensor):
            storage = leaf.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif hasattr(leaf, "__dataclass_fields__"):
            pytree.tree_map(visit, list(vars(leaf).values()))

    for value in list(values.values()):
        visit(value)
    return sum(seen.values())
