"""From the user's program to a flat graph of ATen operations in which parameters and buffers are inputs."""

from __future__ import annotations

import hashlib
import itertools
import logging
import operator
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from deepzero.announce import announced
from deepzero.errors import GraphError
from deepzero.graph import decompositions
from deepzero.objective import NetworkObjective, device_of, keywords, parameters_of
from deepzero.placement import CRITERION, Attributes, Places
from deepzero.randomness import Draws, is_random


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

    @cached_property
    def inputs(self) -> list[Node]:
        """The nodes among the arguments, in order."""
        found: list[Node] = []
        fx.node.map_aggregate((self.args, self.kwargs), lambda a: found.append(a) if isinstance(a, Node) else None)
        return found

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Graph:
    """A functional graph of a program.

    Attributes:
        inputs: graph input -> its kind and name: ``("parameter", name)``, ``("buffer", name)``, ``("batch", index)`` or
            ``("constant", name)``.
        nodes: operations in topological order.
        output: the loss (a scalar or a tensor of per-sample losses).
        constants: tensors that the model creates itself.
    """

    inputs: dict[Node, tuple[str, str | int]]
    nodes: list[Node]
    output: Node
    constants: dict[str, Tensor] = field(default_factory=dict)

    def parameter_inputs(self) -> dict[Node, str]:
        """Graph input -> parameter name."""
        return {node: str(name) for node, (kind, name) in self.inputs.items() if kind == "parameter"}

    @cached_property
    def drawing(self) -> dict[Node, int]:
        """The operations that draw random numbers, with their places among the program's draws."""
        drawing = [node for node in self.nodes if is_random(node.target, node.args, node.kwargs)]
        return {node: i for i, node in enumerate(drawing)}

    @cached_property
    def ancestors(self) -> set[Node]:
        """The nodes that the loss depends on."""
        useful = {self.output}
        for node in reversed(self.nodes):
            if node in useful:
                useful.update(node.inputs)
        return useful

    @cached_property
    def widened(self) -> Graph:
        """The same operations in float64: dtypes of reals that are written into them are widened."""
        made = dict(zip(self.inputs, self.inputs, strict=True))
        nodes = []
        for node in self.nodes:
            args, kwargs = fx.node.map_aggregate(
                (node.args, node.kwargs), lambda a: _wide(made[a] if isinstance(a, Node) else a)
            )
            made[node] = Node(node.name, node.target, args, dict(kwargs), node.source)
            nodes.append(made[node])
        return Graph(self.inputs, nodes, made[self.output], self.constants)

    def digest(self) -> str:
        """A name for what the graph computes: equal graphs have equal digests."""
        digest = hashlib.blake2b(digest_size=12)
        for node, kind in self.inputs.items():
            digest.update(f"{node} {kind};".encode())
        for node in self.nodes:
            digest.update(f"{node} {node.target} {node.args} {node.kwargs};".encode())
        digest.update(repr(self.output).encode())
        for name, value in self.constants.items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


def _wide(argument: Any) -> Any:
    return WIDE.get(argument, argument) if isinstance(argument, torch.dtype) else argument


class _Program(nn.Module):
    """The user's program as the module that is exported."""

    def __init__(self, objective: NetworkObjective) -> None:
        super().__init__()
        self.model = objective.model
        if objective.criterion is not None:
            self.criterion = objective.criterion
        self.training = objective.model.training
        self._objective = (objective,)  # in a tuple: no module of its own

    def forward(self, batch: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            return self._objective[0].raw_program(self.model, *batch, **options)
        except RuntimeError as error:
            raise _UntraceableError(str(error)) from error


class _UntraceableError(Exception):
    """A RuntimeError of the tracing under another class: to some of those the exporter prints pages on stderr."""


def capture(objective: NetworkObjective, batch: tuple[Any, ...], draws: Draws | None = None) -> Graph:
    """Export the program for the shapes and the mode at hand.

    Nothing that the tracing leaves in the user's modules stays there. One thread captures at a time, while it borrows
    the global generators: PyTorch's tracing is no safer in threads than they are.

    Args:
        objective: whose program.
        batch: its arguments.
        draws: the step's random numbers: Python's and NumPy's draws are those of the base query.

    Raises:
        GraphError: the program cannot be exported; the message names the cause and the way out.
    """
    module = _Program(objective)
    places = objective.places()
    before = Attributes.of([*places.modules, *_stateful(objective)])
    device = device_of(parameters_of(objective))
    try:
        with (
            announced("exporting the program to a graph"),
            objective.scope(Draws(draws.seed if draws else 0), device),
            objective.restoring(),
            _quiet(),
            torch.no_grad(),
        ):
            program = torch.export.export(module, (tuple(batch), keywords(batch)), strict=False)
            program = program.run_decompositions(decompositions.table())
    except Exception as error:
        raise GraphError(_not_exportable(error)) from error
    finally:
        before.restore()
    return _Conversion(program, places).graph()


def _stateful(objective: NetworkObjective) -> list[Any]:
    function = objective.closure or objective.loss
    return [function] if hasattr(function, "__dict__") and not isinstance(function, nn.Module) else []


class _OfThisThread(logging.Filter):
    """Drops the records of one thread."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread


TORCHS_OWN = (
    ("`torch.jit.* is deprecated", DeprecationWarning),
    ("`isinstance\\(treespec, LeafSpec\\)` is deprecated", FutureWarning),
    ("The tensor attributes? .* (was|were) assigned during export", UserWarning),
    ("Detected \\d+ fake tensors that are still alive after export", UserWarning),
    ("A model attribute `.*` requires gradient", UserWarning),
)
"""Warnings of PyTorch's exporter about its own code, and about what a capture takes back or checks itself."""
TRACE = "torch.__trace"
"""Logger of PyTorch's structured trace."""


def _ignore_torchs_own() -> None:
    """PyTorch's warnings about itself do not stop a capture where warnings are errors."""
    known = {(f[0], getattr(f[1], "pattern", None), f[2]) for f in warnings.filters}
    for message, category in TORCHS_OWN:
        if ("ignore", message, category) not in known:
            warnings.filterwarnings("ignore", message=message, category=category)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs pages on its way to an error, in this thread; the error says what matters.

    Its structured trace goes to a file, and only where ``TORCH_TRACE`` asks for it: PyTorch sees to that at the first
    record, and would write all others for nothing if it never came.
    """
    _ignore_torchs_own()
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "torch" and name != TRACE]
    handlers = {h for name in ("torch", *names) for h in logging.getLogger(name).handlers}
    loggers = [logging.getLogger(name) for name in names]
    silence = _OfThisThread()
    for target in (*loggers, *handlers):
        target.addFilter(silence)
    try:
        yield
    finally:
        for target in (*loggers, *handlers):
            target.removeFilter(silence)


def _not_exportable(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = lines[0] if lines else type(error).__name__
    control_flow = "data-dependent" in str(error) or "GuardOnDataDependent" in type(error).__name__
    kind = "its control flow depends on the values of tensors" if control_flow else "torch.export cannot trace it"
    return f"the program cannot be exported: {kind} ({type(error).__name__}: {cause[:300]})"


class _Conversion:
    """An exported program on its way to a :class:`Graph`."""

    def __init__(self, program: torch.export.ExportedProgram, places: Places) -> None:
        self._program = program
        self._specs = iter(program.graph_signature.input_specs)
        self._batch_index = itertools.count()
        self._canonical = _canonical_names(places)
        self._owned = {
            (p.data_ptr(), p.shape, p.stride()): name for name, (p, _) in places.parameters.items() if p.numel()
        }
        self._made: dict[fx.Node, Node] = {}
        self._inputs: dict[Node, tuple[str, str | int]] = {}
        self._nodes: list[Node] = []
        self._constants: dict[str, Tensor] = {}

    def graph(self) -> Graph:
        """The graph of the program's operations."""
        for old in self._program.graph.nodes:
            if old.op == "placeholder":
                node = self._made[old] = Node(old.name, _placeholder, (), {})
                self._inputs[node] = self._input_kind(next(self._specs))
            elif old.op == "call_function":
                args, kwargs = pytree.tree_map(
                    lambda a: self._made[a] if isinstance(a, fx.Node) else a, (old.args, old.kwargs)
                )
                node = self._made[old] = Node(old.name, old.target, args, dict(kwargs), _source(old))
                self._nodes.append(node)
            elif old.op != "output":
                raise GraphError(
                    f"the exported graph holds a {old.op} ({old.name}): higher-order operations have no rule"
                )
        return Graph(self._inputs, self._nodes, self._output(), self._constants)

    def _output(self) -> Node:
        returned = self._program.graph.output_node().args[0]
        output: Node | None = None
        for spec, value in zip(self._program.graph_signature.output_specs, returned, strict=True):
            if spec.kind == OutputKind.USER_OUTPUT and isinstance(value, fx.Node):
                output = self._made[value]
            elif spec.kind == OutputKind.PARAMETER_MUTATION:
                raise GraphError(f"the program changes the parameter {spec.target} in place")
        if output is None:
            raise GraphError("the program returns no tensor, or one that depends on neither the model nor the batch")
        return output

    def _input_kind(self, spec: Any) -> tuple[str, str | int]:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            return "parameter" if spec.kind == InputKind.PARAMETER else "buffer", self._canonical[spec.target]
        if spec.kind == InputKind.USER_INPUT:
            return "batch", next(self._batch_index)
        value = self._program.constants.get(spec.target)
        if isinstance(value, Tensor):
            name = self._owned.get((value.data_ptr(), value.shape, value.stride()))
            if name is not None:
                return "parameter", name  # reached by .data, .detach() or a reference of the program's own
            self._constants[spec.target] = value.detach().clone()
            return "constant", spec.target
        raise GraphError(f"the exported graph takes an input of a kind without a rule: {spec.kind.name} {spec.target}")


def _placeholder() -> None:
    raise AssertionError("a graph input is never called")


def _canonical_names(places: Places) -> dict[str, str]:
    """Every name that the exporter may use for a parameter or buffer -> the first name it is listed under."""
    first = {id(t): name for name, (t, _) in (*places.parameters.items(), *places.buffers.items())}
    names: dict[str, str] = {}
    for prefix, root in (("model.", places.model), (CRITERION, places.criterion)):
        if root is not None:
            every = (*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False))
            names.update({prefix + name: first[id(t)] for name, t in every})
    return names


def _source(node: fx.Node) -> str:
    stack = node.meta.get("stack_trace") or ""
    frames = [line.strip() for line in stack.splitlines() if line.strip().startswith("File")]
    return frames[-1] if frames else ""


def is_getitem(node: Node) -> bool:
    """True if a node picks one output of an operation with several."""
    return node.target is operator.getitem
