"""Runs of a graph: the base forward, which keeps every value a rule may read, and runs of a part of it again.

Queries that differences cannot follow run the operations behind their parameter again, not those before it. So feature
reuse still holds: in a network whose last part has no rule, a query costs that last part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from deepzero.errors import GraphError
from deepzero.graph.calls import Value
from deepzero.graph.capture import Graph, Node
from deepzero.graph.program import downstream
from deepzero.graph.windows import Window
from deepzero.objective import NetworkObjective, Parameters, as_complex, keywords
from deepzero.operator import TARGET, answering, narrowed
from deepzero.randomness import Draws, matching, placed, without_draw

Values = dict[Node, Value]
HALF = (torch.float16, torch.bfloat16)
NATIVE = "native"
AUTOCAST = ("cpu", "cuda")
"""Devices whose operations autocast may run in another type."""
aten = torch.ops.aten


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def max_pool2d(
    z: Tensor, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    """The same maxima over the rows of all windows first, then along them, where PyTorch looks at one after another.

    Its own is as fast, or faster, on other devices and in channels-last memory; and takes what is left: padding, and
    windows that reach over an edge.
    """
    window = Window.of(kernel_size, stride, padding, dilation)
    plain = z.dim() == 4 and z.device.type == "cpu" and z.is_contiguous() and z.is_floating_point()
    if not plain or ceil_mode or any(window.padding):
        return aten.max_pool2d.default(z, kernel_size, stride, padding, dilation, ceil_mode)  # type: ignore[no-any-return]
    out = z
    for axis in (0, 1):
        step, apart, size = window.stride[axis], window.dilation[axis], z.shape[axis + 2]
        extent = (size - (window.kernel[axis] - 1) * apart - 1) // step * step + 1
        starts = range(0, window.kernel[axis] * apart, apart)
        entries = [out[(slice(None),) * (axis + 2) + (slice(start, start + extent, step),)] for start in starts]
        out = functools.reduce(torch.maximum, entries)
    return out.contiguous()


RESHAPED = (aten.view.default, aten._unsafe_view.default)
"""Operations for which a graph's run makes a copy where the memory allows no view: an exported program knows the
strides of stand-ins for its values, and those of real ones depend on the device and the kernel that it takes."""

SHARP: dict[Any, Callable[..., Any]] = {aten._weight_norm.default: _weight_norm}
"""Operation that rounds to float32 in float64, too -> its replacement in a float64 forward: the CUDA kernel of weight
norm takes its root with ``sqrtf``."""


def graph_inputs(
    graph: Graph,
    objective: NetworkObjective,
    batch: tuple[Any, ...],
    *,
    parameters: Parameters | None = None,
    dtype: torch.dtype | None = None,
) -> dict[Node, Any]:
    """Values of the graph's inputs: live parameters and buffers, the batch, constants.

    Args:
        graph: whose inputs.
        objective: holds parameters and buffers.
        batch: arguments of the program.
        parameters: in place of the live ones, as ``parameters_of(objective)`` gives them.
        dtype: floats are converted to it if given (complex values accordingly).
    """
    places = objective.places()
    live = {name: p for name, (p, _) in places.parameters.items()}
    if parameters is not None:
        live |= {name: as_complex(value, live[name]) for name, value in parameters.items()}  # type: ignore[misc]
    sources: dict[str, Mapping[Any, Any]] = {
        "parameter": live,
        "buffer": {name: b.detach().clone() for name, (b, _) in places.buffers.items()},  # an operation may write
        "batch": dict(enumerate(pytree.tree_leaves((tuple(batch), keywords(batch))))),
        "constant": graph.constants,
    }
    return {node: cast(sources[kind][key], dtype) for node, (kind, key) in graph.inputs.items()}


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """A tensor of real or complex numbers in ``dtype`` (None: as it is), without a history; anything else itself."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    if dtype is None or not (value.is_floating_point() or value.is_complex()):
        return value
    return value.to(dtype.to_complex() if value.is_complex() else dtype)


def run(
    graph: Graph,
    inputs: Mapping[Node, Any],
    *,
    keep: Iterable[Node],
    draws: Draws,
    wide: bool = False,
    watch: Callable[[Node, Any], None] | None = None,
) -> Values:
    """Evaluate the graph once; values outside ``keep`` are dropped after their last use.

    Half types are computed as such, and kept in float32, in which their differences are held.

    Args:
        graph: the graph; what its output does not depend on is left out.
        inputs: values of its inputs.
        keep: nodes whose values are returned.
        draws: the random numbers of the step.
        wide: inputs and graph are in float64, and so are the numbers drawn.
        watch: called with each operation and its value, also of those that are not kept.

    Raises:
        GraphError: the graph does not draw what the program drew.
    """
    values: Values = {node: Value(value) for node, value in inputs.items()}
    kept = set(keep) | {graph.output}
    useful = graph.ancestors
    expiring = _last_uses(graph, kept)
    dealer = Dealer(graph, draws, wide=wide)
    with torch.no_grad(), in_own_types(), answering(draws.answers):
        for node in graph.nodes:
            if node not in useful:
                continue
            args, kwargs = substitute(node, lambda n: values[n].base)
            values[node] = Value(dealer.call(node, args, kwargs))
            if watch is not None:
                watch(node, values[node].base)
            for dead in expiring.get(node, ()):
                values.pop(dead, None)
    return {node: _without_half(value.base) for node, value in values.items()}


def _without_half(value: Any) -> Value:
    """A value whose half-precision tensors are in float32; the memo keeps it as it was computed."""
    half = [v for v in pytree.tree_leaves(value) if isinstance(v, Tensor) and v.dtype in HALF]
    if not half:
        return Value(value)
    wider = pytree.tree_map(lambda v: v.float() if isinstance(v, Tensor) and v.dtype in HALF else v, value)
    return Value(wider, {NATIVE: value})


def native(value: Value) -> Any:
    """The value in the dtype in which the program computes it."""
    return value.memo.get(NATIVE, value.base)


@contextmanager
def in_own_types() -> Iterator[None]:
    """A block whose operations compute in the types of their operands.

    The casts of an autocast around a program are operations of its graph; differences would be rounded by it.
    """
    with ExitStack() as stack:
        for device in AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class Dealer:
    """Runs operations, and deals the step's random numbers to those that draw, as the program drew them."""

    def __init__(self, graph: Graph, draws: Draws, *, wide: bool = False) -> None:
        self._draws, self._wide = draws, wide
        self._position = graph.drawing

    def call(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation's result."""
        position = self._position.get(node)
        if node.target is TARGET and self._wide:
            with narrowed():
                return node.target(*args, **kwargs)
        if node.target in RESHAPED:
            return torch.reshape(*args, **kwargs)
        if node.target is aten.max_pool2d.default:
            return max_pool2d(*args, **kwargs)
        if self._wide and node.target in SHARP:
            return SHARP[node.target](*args, **kwargs)
        if position is None:
            certain = without_draw(node.target, args)
            return node.target(*args, **kwargs) if certain is None else certain
        draw = matching(self._draws.entries, position, node.target, args, kwargs)
        if draw is None:
            raise GraphError(
                f"{node.target} is draw {position} of the graph, where the program drew otherwise; the graph cannot "
                "have the program's random numbers"
            )
        if self._wide:
            draw = replace(draw, values=pytree.tree_map(lambda v: cast(v, torch.float64), draw.values))
        return placed(node.target, args, draw)


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
        output = self._graph.output
        value: Tensor = self.values(moved, {output}).get(output, native(self._values[output]))
        return value.double().mean()

    def values(self, moved: Mapping[Node, Tensor], wanted: Set[Node]) -> dict[Node, Any]:
        """The values of some nodes where the sources are ``moved``, of those that depend on them; no more is run."""
        there = dict(moved)
        missing = set(wanted) - set(there)
        with torch.no_grad(), in_own_types():
            for node in self._nodes:
                if not missing:
                    break
                args, kwargs = substitute(node, lambda n: there[n] if n in there else native(self._values[n]))
                there[node] = self._dealer.call(node, args, kwargs)
                missing.discard(node)
                for dead in self._frees.get(node, ()):
                    if dead not in wanted:
                        there.pop(dead, None)
        return {node: there[node] for node in wanted if node in there}


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
