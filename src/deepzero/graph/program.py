"""From a graph to a program: the steps that a perturbation of each parameter has to visit, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from deepzero.errors import GraphError
from deepzero.graph.capture import Graph, Node, is_getitem
from deepzero.graph.rules import RULES, SHAPE_ONLY, batch_norm_relu, fallback
from deepzero.graph.rules.activation import KERNELS
from deepzero.graph.rules.convolution import convolution
from deepzero.graph.rules.convolved_tail import convolved_tail
from deepzero.graph.rules.perceptron import perceptron
from deepzero.randomness import is_random

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a rule.

    Attributes:
        node: the operation whose output the rule's difference belongs to.
        rule: the rule; None for the choice of one output of several.
        args: arguments with nodes where their values go.
        kwargs: keyword arguments, likewise.
        parts: operations that the step stands for, in order; the last is ``node``.
        overwrite: whether the first operand's difference may be destroyed.
        frees: nodes whose differences are not needed afterwards.
        spends: those of them that are one argument, once: a rule may overwrite their differences.
    """

    node: Node
    rule: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    parts: tuple[Node, ...]
    overwrite: bool = False
    frees: tuple[Node, ...] = ()
    spends: tuple[Node, ...] = ()

    @cached_property
    def inputs(self) -> list[Node]:
        """The nodes among the arguments."""
        return Node("", self.rule or _nothing, self.args, self.kwargs).inputs


def _nothing() -> None:
    """Stands for no operation."""


@dataclass(frozen=True)
class Cone:
    """Everything downstream of one parameter that leads to the loss.

    Attributes:
        parameter: its name.
        sources: the graph inputs that hold it.
        steps: calls of rules, in order.
        reason: why differences cannot follow, if they cannot: then the operations themselves are run again at each
            query.
    """

    parameter: str
    sources: tuple[Node, ...]
    steps: tuple[Step, ...]
    reason: str = ""


@dataclass(frozen=True)
class Program:
    """The cones of all trainable parameters.

    Attributes:
        graph: the graph they were cut from.
        cones: by parameter name. A parameter that the loss does not depend on has a cone without steps.
        kept: nodes whose base values some rule may ask for.
        fallbacks: operations that some cone visits and that have no rule of their own.
    """

    graph: Graph
    cones: dict[str, Cone]
    kept: frozenset[Node]
    fallbacks: tuple[str, ...]

    @property
    def recomputed(self) -> dict[str, str]:
        """Parameters whose queries run operations again, and why."""
        return {name: cone.reason for name, cone in self.cones.items() if cone.reason}

    def joint(self) -> Cone:
        """The cone of all parameters together, for directions in which all of them move."""
        steps = {step.node: step for cone in self.cones.values() for step in cone.steps}
        sources = tuple(node for cone in self.cones.values() for node in cone.sources)
        order = [replace(steps[n], frees=()) for n in self.graph.nodes if n in steps]
        reasons = [cone.reason for cone in self.cones.values() if cone.reason]
        return Cone("", sources, _with_frees(order, self.graph.output), reasons[0] if reasons else "")

    def without(self, parameter: str, reason: str) -> Program:
        """The same program, with a parameter whose queries run operations again."""
        cones = {**self.cones, parameter: replace(self.cones[parameter], reason=reason)}
        return replace(self, cones=cones)


def compile_program(graph: Graph, parameters: Mapping[str, Tensor], *, strict: bool = True) -> Program:
    """Cut the graph into cones, fuse, and account for every use of every parameter.

    Args:
        graph: the graph.
        parameters: the trainable ones.
        strict: a parameter that differences cannot follow is an error; otherwise its cone says why.

    Raises:
        GraphError: a parameter is used in a way that differences cannot follow; the message lists the path.
    """
    absent = sorted(set(parameters) - set(graph.parameter_inputs().values()))
    if absent:
        raise GraphError(f"parameters {', '.join(absent)} do not appear in the exported graph")
    useful = graph.ancestors
    steps = [step for step in _fused(graph) if step.node in useful]
    inputs = graph.parameter_inputs()
    cones = {}
    for name in parameters:
        sources = tuple(node for node, parameter in inputs.items() if parameter == name)
        cones[name] = _cone(name, sources, steps, graph.output)
        if strict and cones[name].reason:
            raise GraphError(cones[name].reason)
    visited = {step.node: step for cone in cones.values() for step in cone.steps}
    kept = {node for step in visited.values() for node in (*step.inputs, *step.parts)}
    kept |= {node for cone in cones.values() if cone.reason for node in reads(graph, cone)}
    missing = sorted({str(s.node.target) for s in visited.values() if s.rule is fallback})
    return Program(graph, cones, frozenset(kept), tuple(missing))


def downstream(graph: Graph, sources: Iterable[Node]) -> list[Node]:
    """The operations between some inputs and the loss, in order."""
    reached, useful = set(sources), graph.ancestors
    found = []
    for node in graph.nodes:
        if node in useful and node.target not in SHAPE_ONLY and not reached.isdisjoint(node.inputs):
            reached.add(node)
            found.append(node)
    return found


def frontier(graph: Graph, cone: Cone, done: int) -> set[Node]:
    """Operations behind a cone's sources that the rest of the program reads when ``done`` of the steps are done.

    It is found from the operations, not from the steps, and so has what a cone overlooks. Of an operation with several
    outputs it has those that are read.
    """
    pending = {part for step in cone.steps[done:] for part in step.parts if not is_getitem(part)}
    behind = downstream(graph, cone.sources)
    for node in behind:
        if not pending.isdisjoint(node.inputs):
            pending.add(node)
    there = {*cone.sources, *behind} - pending
    return {used for node in pending for used in node.inputs if used in there} | ({graph.output} & there)


def reads(graph: Graph, cone: Cone) -> set[Node]:
    """Base values that running a cone's operations again needs."""
    nodes = downstream(graph, cone.sources)
    return {used for node in nodes for used in node.inputs} - set(nodes)


def _cone(name: str, sources: tuple[Node, ...], steps: list[Step], output: Node) -> Cone:
    path: dict[Node, Node | None] = dict.fromkeys(sources)
    chosen: list[Step] = []
    reason = ""
    for step in steps:
        origin = next((node for node in step.inputs if node in path), None)
        if origin is None or step.node.target in SHAPE_ONLY:
            continue
        path[step.node] = origin
        reason = reason or _why_not(step, name, path)
        chosen.append(step)
    return Cone(name, sources, _with_frees(chosen, output), reason)


def _with_frees(steps: list[Step], output: Node) -> tuple[Step, ...]:
    last = {node: i for i, step in enumerate(steps) for node in step.inputs}
    freed = []
    for i, step in enumerate(steps):
        inputs = step.inputs
        frees = tuple(n for n in dict.fromkeys(inputs) if last[n] == i and n is not output)
        freed.append(replace(step, frees=frees, spends=tuple(n for n in frees if inputs.count(n) == 1)))
    return tuple(freed)


def _why_not(step: Step, parameter: str, path: Mapping[Node, Node | None]) -> str:
    """Why differences cannot pass an operation; empty if they can."""
    target = step.node.target
    if step.rule is not fallback:
        return ""
    if not isinstance(target, torch._ops.OpOverload):
        reason = "is not an ATen operation"
    elif is_random(target, step.node.args, step.node.kwargs):
        reason = "draws random numbers whose use depends on the perturbed values"
    elif target in (aten.item.default, aten._local_scalar_dense.default):
        reason = "turns a tensor into a Python number"
    else:
        return ""
    return (
        f"a perturbation of {parameter} cannot be followed: {target} {reason}.\n"
        f"  path: {_trail(step.node, path, parameter)}\n  at: {step.node.source or 'unknown'}"
    )


def _trail(node: Node, path: Mapping[Node, Node | None], parameter: str) -> str:
    names: list[str] = []
    current: Node | None = node
    while current is not None:
        names.append(current.name)
        current = path[current]
    return " -> ".join([parameter, *reversed(names[:-1])])


def _plain(node: Node, users: Mapping[Node, list[Node]], graph: Graph) -> Step:
    rule = None if is_getitem(node) else RULES.get(node.target, fallback)
    if node.target is aten._native_batch_norm_legit_functional.default and _reads_updated(node, users, graph):
        rule = fallback  # its own rule follows the output alone
    return Step(node, rule, node.args, node.kwargs, (node,))


def _reads_updated(norm: Node, users: Mapping[Node, list[Node]], graph: Graph) -> bool:
    """True if the loss depends on the running statistics that a batch norm has just updated."""
    return any(is_getitem(u) and u.args[1] >= 3 and u in graph.ancestors for u in users.get(norm, []))


def _fused(graph: Graph) -> list[Step]:
    """Plain steps; merged are (convolution +) batch norm (+ residual) + relu (+ maxima), and linear layers in pairs."""
    users: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        for used in node.inputs:
            users.setdefault(used, []).append(node)
    merged: dict[Node, Step] = {}
    absorbed: set[Node] = set()
    for node in graph.nodes:
        step = _batch_norm_relu(node, users, graph) if node.target is aten.relu.default else None
        step = _perceptron(node, users, graph) if node.target is aten.linear.default else step
        if step is not None and absorbed.isdisjoint(step.parts):
            step = step if step.rule is perceptron else _convolved_tail(step, users, graph) or step
            merged[step.node] = step
            absorbed.update(step.parts)
            absorbed.update(pick for part in step.parts for pick in _picks(part, users))
    rest = (node for node in graph.nodes if node in merged or node not in absorbed)
    return [merged.get(node) or _plain(node, users, graph) for node in rest]


def _picks(node: Node, users: Mapping[Node, list[Node]]) -> list[Node]:
    return [u for u in users.get(node, []) if is_getitem(u) and u.args[1] == 0]


def _batch_norm_relu(relu: Node, users: Mapping[Node, list[Node]], graph: Graph) -> Step | None:
    before = relu.args[0]
    candidates: list[tuple[Node, Node | None]] = [(before, None)]
    if before.target is aten.add.Tensor and not before.kwargs and len(users[before]) == 1:
        a, b = before.args
        if isinstance(a, Node) and isinstance(b, Node) and a is not b:
            candidates += [(a, b), (b, a)]
    for pick, residual in candidates:
        norm = pick.args[0] if is_getitem(pick) and pick.args[1] == 0 and len(users[pick]) == 1 else None
        if (
            isinstance(norm, Node)
            and _trains(norm)
            and pick is not graph.output
            and not _reads_updated(norm, users, graph)
        ):
            x, weight, bias, *_, eps = norm.args
            fresh = RULES.get(x.target) is convolution and users[x] == [norm] and isinstance(x, Node)
            args = (x, weight, bias, eps, residual)
            return Step(relu, batch_norm_relu, args, {}, (norm, before, relu), overwrite=fresh)
    return None


def _convolved_tail(step: Step, users: Mapping[Node, list[Node]], graph: Graph) -> Step | None:
    """The convolution of images in front of a merged step too, if nothing else reads it, and maxima behind the relu."""
    x, weight, bias, eps, residual = step.args
    convolves = isinstance(x, Node) and x.target in (aten.conv2d.default, aten.conv2d.padding)
    if not convolves or users[x] != [step.parts[0]] or x is graph.output or x.kwargs:
        return None
    behind = users.get(step.node, [])
    pool = behind[0] if len(behind) == 1 and residual is None and step.node is not graph.output else None
    if pool is None or pool.target is not aten.max_pool2d.default or pool.kwargs:
        args, parts = (x.args, (weight, bias, eps), residual, ()), (x, *step.parts)
        return Step(step.node, convolved_tail, args, {}, parts)
    args, parts = (x.args, (weight, bias, eps), None, pool.args[1:]), (x, *step.parts, pool)
    return Step(pool, convolved_tail, args, {}, parts)


def _perceptron(outer: Node, users: Mapping[Node, list[Node]], graph: Graph) -> Step | None:
    """Two linear layers and the activation between them, if nothing else reads what goes from one to the next."""
    activation = outer.args[0] if outer.args else None
    if not isinstance(activation, Node) or activation.target not in KERNELS:
        return None
    inner = activation.args[0] if activation.args else None
    if not isinstance(inner, Node) or inner.target is not aten.linear.default or inner.kwargs or outer.kwargs:
        return None
    if users[inner] != [activation] or users[activation] != [outer] or graph.output in (inner, activation):
        return None
    x, *layer = inner.args
    function = (activation.target, activation.args[1:], activation.kwargs)
    args = (x, tuple(layer), outer.args[1:], *function)
    return Step(outer, perceptron, args, {}, (inner, activation, outer))


def _trains(node: Node) -> bool:
    """True for a batch norm by the statistics of the batch, with running statistics or without."""
    if node.target is aten._native_batch_norm_legit.no_stats:
        return node.args[3] is True
    return node.target is aten._native_batch_norm_legit_functional.default and node.args[5] is True
