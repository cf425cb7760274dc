"""From a module, a loss and a batch to a flat graph of ATen operations in which parameters and buffers are inputs."""

from __future__ import annotations

import io
import itertools
import logging
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from deepzero.errors import GraphError
from deepzero.graph.decompositions import table
from deepzero.objective import Loss, NetworkObjective


@dataclass(frozen=True, eq=False)
class Node:
    """One operation.

    Attributes:
        name: unique name.
        target: the ATen overload, or ``operator.getitem``.
        args: arguments; nodes stand where their values go.
        kwargs: keyword arguments, likewise.
        source: where in the user's code it comes from, for messages.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: str = ""

    @property
    def inputs(self) -> list[Node]:
        """The nodes among the arguments, in order."""
        found: list[Node] = []
        fx.node.map_aggregate((self.args, self.kwargs), lambda a: found.append(a) if isinstance(a, Node) else None)
        return found

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Graph:
    """A functional graph of ``loss(model(x), y)``.

    Attributes:
        inputs: graph input -> what it is: ``("parameter", name)``, ``("buffer", name)``, ``("batch", index)`` or
            ``("constant", name)``.
        nodes: operations in topological order.
        output: the loss (a scalar or a tensor of per-sample losses).
        buffer_updates: buffer name -> the node that holds its value after the query.
        constants: tensors that the model creates itself.
    """

    inputs: dict[Node, tuple[str, str | int]]
    nodes: list[Node]
    output: Node
    buffer_updates: dict[str, Node]
    constants: dict[str, Tensor] = field(default_factory=dict)

    def parameter_inputs(self) -> dict[Node, str]:
        """Graph input -> parameter name."""
        return {node: str(name) for node, (kind, name) in self.inputs.items() if kind == "parameter"}


class _LossOfModel(nn.Module):
    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self._loss = (loss,)  # in a tuple, so that a loss module's own parameters are not registered

    def forward(self, x: Any, y: Any) -> Tensor:
        return self._loss[0](self.model(x), y)


def capture(objective: NetworkObjective, x: Any, y: Any) -> Graph:
    """Export ``loss(model(x), y)`` for the shapes and the mode at hand.

    Raises:
        GraphError: the model cannot be exported; the message names the cause and the way out.
    """
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(_LossOfModel(objective.model, objective.loss), (x, y), strict=False)
            program = program.run_decompositions(table())
    except Exception as error:
        raise GraphError(_not_exportable(error)) from error
    return _convert(program, objective)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs and prints pages on its way to an error; the error says what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _not_exportable(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = lines[0] if lines else type(error).__name__
    control_flow = "data-dependent" in str(error) or "GuardOnDataDependent" in type(error).__name__
    kind = "its control flow depends on the values of tensors" if control_flow else "torch.export cannot trace it"
    return (
        f"the model cannot be exported: {kind} ({type(error).__name__}: {cause[:300]}). "
        "Rewrite that part with tensor operations (torch.where), or query the model as a black box, one full forward a "
        "query: evaluator=dz.SequentialEvaluator()"
    )


def _convert(program: torch.export.ExportedProgram, objective: NetworkObjective) -> Graph:
    specs = iter(program.graph_signature.input_specs)
    batch_index = itertools.count()
    canonical = _canonical_names(objective.model)
    made: dict[fx.Node, Node] = {}
    inputs: dict[Node, tuple[str, str | int]] = {}
    nodes: list[Node] = []
    constants: dict[str, Tensor] = {}
    for old in program.graph.nodes:
        if old.op == "placeholder":
            node = made[old] = Node(old.name, _placeholder, (), {})
            inputs[node] = _input_kind(next(specs), batch_index, canonical, program, constants)
        elif old.op == "call_function":
            args, kwargs = pytree.tree_map(lambda a: made[a] if isinstance(a, fx.Node) else a, (old.args, old.kwargs))
            node = made[old] = Node(old.name, old.target, args, dict(kwargs), _source(old))
            nodes.append(node)
        elif old.op != "output":
            raise GraphError(f"the exported graph holds a {old.op} ({old.name}): higher-order operations have no rule")
    return _with_outputs(program, made, inputs, nodes, constants)


def _with_outputs(
    program: torch.export.ExportedProgram,
    made: dict[fx.Node, Node],
    inputs: dict[Node, tuple[str, str | int]],
    nodes: list[Node],
    constants: dict[str, Tensor],
) -> Graph:
    returned = program.graph.output_node().args[0]
    updates: dict[str, Node] = {}
    output: Node | None = None
    for spec, value in zip(program.graph_signature.output_specs, returned, strict=True):
        if spec.kind == OutputKind.BUFFER_MUTATION:
            updates[str(spec.target).removeprefix("model.")] = made[value]
        elif spec.kind == OutputKind.USER_OUTPUT and isinstance(value, fx.Node):
            output = made[value]
        else:
            raise GraphError(
                f"the model changes {spec.target or 'its inputs'} in place; only buffers may change in a forward"
            )
    if output is None:
        raise GraphError("the loss does not depend on the model or the batch")
    return Graph(inputs, nodes, output, updates, constants)


def _placeholder() -> None:
    raise AssertionError("a graph input is never called")


def _input_kind(
    spec: Any,
    batch_index: Iterator[int],
    canonical: dict[str, str],
    program: torch.export.ExportedProgram,
    constants: dict[str, Tensor],
) -> tuple[str, str | int]:
    if spec.kind == InputKind.PARAMETER:
        name = spec.target.removeprefix("model.")
        return "parameter", canonical.get(name, name)
    if spec.kind == InputKind.BUFFER:
        name = spec.target.removeprefix("model.")
        return "buffer", canonical.get(name, name)
    if spec.kind == InputKind.USER_INPUT:
        return "batch", next(batch_index)
    if spec.target in program.constants and isinstance(program.constants[spec.target], Tensor):
        constants[spec.target] = program.constants[spec.target]
        return "constant", spec.target
    raise GraphError(f"the exported graph takes an input of a kind without a rule: {spec.kind.name} {spec.target}")


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer -> the first name it is listed under (tied weights, shared modules)."""
    first = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    every = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: first[id(t)] for name, t in every}


def _source(node: fx.Node) -> str:
    stack = node.meta.get("stack_trace") or ""
    frames = [line.strip() for line in stack.splitlines() if line.strip().startswith("File")]
    return frames[-1] if frames else ""


def is_getitem(node: Node) -> bool:
    """Whether a node picks one output of an operation with several."""
    return node.target is operator.getitem
