"""Rules by themselves: an operation is exported, and every kind of difference of every argument is sent through it.

The truth is ``f(z + d) - f(z)`` in float64: with differences of the order of the values, where it is exact to rounding
and nothing is linear; and for rules in float32, with differences of 1e-6, where only a form that does not cancel comes
near it.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from oracle import normal
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from deepzero.graph.calls import Call, Operand, Rule, Value
from deepzero.graph.capture import Node
from deepzero.graph.decompositions import table
from deepzero.graph.differences import Channel, Dense, Difference, OneHot
from deepzero.graph.rules import RULES, SHAPE_ONLY, fallback, in_kind_for

COUNT = 3


@dataclass(frozen=True)
class Case:
    """A function of tensors of some shapes.

    Attributes:
        function: of tensors; returns a tensor, or several of which the floating-point ones are compared.
        shapes: of its arguments.
        falls_back: some rule may evaluate the operation twice.
        positive: the arguments are positive.
        dtype: real or complex; the precision is the check's.
    """

    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    falls_back: bool = False
    positive: bool = False
    dtype: torch.dtype = torch.float64


def case(function: Callable[..., Any], *shapes: tuple[int, ...], **options: Any) -> Case:
    return Case(function, shapes or ((2, 4, 6, 5),), **options)


class _Together(nn.Module):
    """Many functions beside each other, because exporting is what takes the time."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, *groups: list[Tensor]) -> Any:
        return [tree_leaves(case.function(*tensors)) for case, tensors in zip(self.cases, groups, strict=True)]


def seed() -> None:
    """As ``torch.manual_seed(0)`` on a CPU, which also asks every other kind of device, and keeps the stack of each call."""
    torch.default_generator.manual_seed(0)


def bases(case: Case, dtype: torch.dtype) -> list[Tensor]:
    found = []
    for seed, shape in enumerate(case.shapes):
        z = normal(*shape, seed=seed).to(torch.float32)
        z = z.abs() + 1.5 if case.positive else z
        if case.dtype.is_complex:
            z = torch.complex(z, normal(*shape, seed=seed + 50).to(torch.float32))
        found.append(z.to(dtype.to_complex() if case.dtype.is_complex else dtype))
    return found


def kinds(base: Tensor, scale: float, seed: int) -> Iterator[tuple[str, Difference]]:
    """One-hot, a channel of each dimension (several channels in one stack, and one alone), dense."""

    def draw(*shape: int) -> Tensor:
        real = (normal(*shape, seed=seed) * scale).to(base.real.dtype)
        other = (normal(*shape, seed=seed + 1) * scale).to(base.real.dtype)
        return torch.complex(real, other) if base.is_complex() else real

    if base.numel() == 0:
        return
    places = torch.arange(COUNT) * 7 % base.numel()
    yield "one-hot", OneHot(places, draw(COUNT), base.shape)
    for axis, size in enumerate(base.shape):
        rest = [s for d, s in enumerate(base.shape) if d != axis]
        yield f"channels {axis}", Channel(axis, torch.arange(COUNT) * 2 % size, draw(COUNT, *rest), base.shape)
        if axis == 1:
            yield f"channel {axis}", Channel(axis, torch.full((COUNT,), size - 1), draw(COUNT, *rest), base.shape)
    yield "dense", Dense(draw(COUNT, *base.shape))


def combinations(values: list[Tensor], scale: float) -> Iterator[tuple[str, list[Difference | None]]]:
    """Every kind in every argument alone, then with all others dense, then all arguments of a kind."""
    dense = [dict(kinds(v, scale, seed=31 + i)).get("dense") for i, v in enumerate(values)] if len(values) > 1 else []
    for place, base in enumerate(values):
        for name, difference in kinds(base, scale, seed=11 + 2 * place):
            alone: list[Difference | None] = [None] * len(values)
            alone[place] = difference
            yield f"argument {place} {name}", alone
            if len(values) > 1 and name in ("one-hot", "channels 1", "dense"):
                yield f"argument {place} {name}, others dense", [*dense[:place], difference, *dense[place + 1 :]]
    if len(values) > 1:
        several = [dict(kinds(v, scale, seed=61 + i)) for i, v in enumerate(values)]
        for name in several[0]:
            yield f"all {name}", [found.get(name) for found in several]


@dataclass(frozen=True)
class Exported:
    """Of several cases: all operations, and the inputs and results of each case."""

    operations: list[Node]
    inputs: list[list[Node]]
    returned: list[list[Node]]


def export(cases: list[Case], given: list[list[Tensor]]) -> Exported:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(_Together(cases), tuple(given), strict=False).run_decompositions(table())
    made: dict[fx.Node, Any] = {}
    inputs: list[Node] = []
    operations: list[Node] = []
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for old in program.graph.nodes:
        if old.op == "placeholder" and specs[old.name].target is not None:
            made[old] = program.constants[specs[old.name].target]
        elif old.op == "placeholder":
            made[old] = Node(old.name, operator.pos, (), {})
            inputs.append(made[old])
        elif old.op == "call_function":
            args, kwargs = fx.node.map_aggregate(
                (old.args, old.kwargs), lambda a: made[a] if isinstance(a, fx.Node) else a
            )
            made[old] = Node(old.name, old.target, args, dict(kwargs))
            operations.append(made[old])
    with torch.no_grad():
        seed()
        sizes = [len(tree_leaves(case.function(*tensors))) for case, tensors in zip(cases, given, strict=True)]
    returned = iter([made[r] for r in program.graph.output_node().args[0]])
    every = iter(inputs)
    return Exported(
        operations,
        [[next(every) for _ in tensors] for tensors in given],
        [[next(returned) for _ in range(size)] for size in sizes],
    )


def run(operations: list[Node], inputs: dict[Node, Tensor]) -> dict[Node, Value]:
    values = {node: Value(base) for node, base in inputs.items()}
    seed()
    for node in operations:
        args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), lambda a: values[a].base if isinstance(a, Node) else a)  # fmt: skip
        values[node] = Value(node.target(*args, **kwargs))
    return values


def propagate(operations: list[Node], values: dict[Node, Value], live: dict[Node, Any]) -> list[str]:
    """Carry differences through all operations; returns those that were evaluated twice."""
    fallen = []
    for node in operations:
        if not any(n in live for n in node.inputs) or node.target in SHAPE_ONLY:
            continue
        if node.target is operator.getitem:
            live[node] = live[node.args[0]][node.args[1]]
        else:
            rule = RULES.get(node.target, fallback)
            args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), partial(_operand, rule, values, live))
            live[node] = rule(Call(node, (values[node],)), *args, **kwargs)
        if live[node] is None:
            del live[node]
        if node.target not in RULES and node.target is not operator.getitem:
            fallen.append(str(node.target))
        if any(key.startswith("fallback") for key in values[node].memo):
            fallen.append(str(node.target))
    return fallen


def _operand(rule: Rule, values: dict[Node, Value], live: dict[Node, Any], argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return Operand(Value(argument), None)
    if not isinstance(argument, Node):
        return argument
    difference = live.get(argument)
    return Operand(values[argument], None if difference is None else in_kind_for(rule, difference))


class Truth:
    """``f(z + d) - f(z)`` in float64, one perturbation after another."""

    def __init__(self, case: Case, values: list[Tensor]) -> None:
        self._case = case
        self._wide = torch.complex128 if case.dtype.is_complex else torch.float64
        self._values = [v.to(self._wide) for v in values]
        self._base = self._outputs(self._values)

    def __call__(self, differences: list[Difference | None]) -> list[Tensor]:
        deltas = [None if d is None else d.dense().to(self._wide) for d in differences]
        pairs = list(zip(self._values, deltas, strict=True))
        rows = [self._outputs([v if d is None else v + d[p] for v, d in pairs]) for p in range(COUNT)]
        return [torch.stack([row[i] for row in rows]) - z for i, z in enumerate(self._base)]

    def _outputs(self, tensors: list[Tensor]) -> list[Tensor]:
        seed()
        return [t for t in tree_leaves(self._case.function(*tensors)) if _compared(t)]


def check_all(cases: dict[str, Case]) -> None:
    """Every combination of differences of every case, in both precisions; the message names each that is wrong."""
    wrong: dict[str, str] = {}
    for dtype, scale, tolerance in ((torch.float64, 0.3, 1e-12), (torch.float32, 1e-6, 1e-5)):
        given = [bases(case, dtype) for case in cases.values()]
        exported = export(list(cases.values()), given)
        together = dict(pair for nodes, values in zip(exported.inputs, given, strict=True) for pair in zip(nodes, values, strict=True))  # fmt: skip
        for place, (name, one) in enumerate(cases.items()):
            try:
                _check(one, exported, place, together, scale, tolerance)
            except Exception as error:  # collected below
                wrong[f"{name}, {dtype}"] = f"{type(error).__name__}: {str(error)[:300]}"
    assert not wrong, "\n".join(f"{name}: {message}" for name, message in wrong.items())


def _check(
    case: Case, exported: Exported, place: int, together: dict[Node, Tensor], scale: float, tolerance: float
) -> None:
    inputs, returned = exported.inputs[place], exported.returned[place]
    given = [together[node] for node in inputs]
    mine = _ancestors(exported.operations, returned)
    values = run(mine, {node: together[node] for node in inputs})
    truth = Truth(case, given)
    outputs = [r for r in returned if isinstance(values[r].base, Tensor) and _compared(values[r].base)]
    for name, differences in combinations(given, scale):
        live: dict[Node, Any] = {n: d for n, d in zip(inputs, differences, strict=True) if d is not None}
        fallen = propagate(mine, values, live)
        assert case.falls_back or not fallen, f"{name} falls back: {fallen}"
        for node, expected in zip(outputs, truth(differences), strict=True):
            _compare(f"{name}, {node.name}", live.get(node), values[node].base, expected, scale, tolerance)


def _ancestors(operations: list[Node], returned: list[Node]) -> list[Node]:
    """The operations that one case needs, so that it draws its random numbers as it does alone."""
    needed = set(returned)
    for node in reversed(operations):
        if node in needed:
            needed.update(node.inputs)
    return [node for node in operations if node in needed]


def _compared(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _compare(
    where: str, found: Difference | None, base: Tensor, expected: Tensor, scale: float, tolerance: float
) -> None:
    change = torch.zeros_like(expected) if found is None else found.dense().to(expected.dtype)
    assert change.shape == expected.shape, f"{where}: {tuple(change.shape)}, not {tuple(expected.shape)}"
    if found is not None:
        dtype = found.values.dtype if isinstance(found, OneHot) else found.dense().dtype
        assert found.shape == base.shape, f"{where}: of shape {tuple(found.shape)}, the value {tuple(base.shape)}"
        assert dtype in (base.dtype, torch.float64), f"{where}: {dtype} of a value in {base.dtype}"
    if expected.numel() == 0:
        return
    error, largest = float((change - expected).abs().max()), float(expected.abs().max())
    assert error <= tolerance * max(largest, 1e-2 * scale), f"{where}: off by {error:.2e} of {largest:.2e}"
