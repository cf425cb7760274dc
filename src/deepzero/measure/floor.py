"""The floor of a query: what the machine needs at least for the operations and bytes of difference propagation.

Operations and bytes are counted by a pass of its own, in which every rule is watched: a rule reads the differences that
come in, writes the one that goes out, and makes as many multiplications and additions as its kind of difference asks
for. With measured ceilings of the machine, ``F`` operations and ``B`` bytes of a rule take at least

    max(F / operations per second, B / bytes per second),

and the floor of a query is the sum over its rules. It is the floor of this algorithm, one rule after the other, through
memory: fusing rules would lower it, and chunks that stay in a cache can come below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero.evaluators.workers import parallel_map
from deepzero.graph.calls import Call, Operand
from deepzero.graph.capture import Node
from deepzero.graph.program import Cone
from deepzero.graph.propagate import loss_differences
from deepzero.measure.cases import CPU, Problem
from deepzero.measure.sides import DeepZero
from deepzero.stopwatch import seconds_of

aten = torch.ops.aten

COPIED = 1 << 25
"""Numbers of the copy that is timed: 128 MiB, beyond the cache of a core."""
PRODUCT = 1024
"""Rows and columns of the product of matrices that is timed."""
IMAGES, CHANNELS, SIDE = 32, 64, 32
"""Shape of the 3x3 convolution that is timed."""
REPEATS = 5

SAVED = 4.0
"""Products of a 3x3 convolution of all channels for one of Winograd's algorithm, 4x4 places at a time."""

CONVOLUTIONS = {aten.conv2d.default, aten.convolution.default, aten.conv1d.default, aten.conv2d.padding}
ATTENTION = {aten.scaled_dot_product_attention.default}
PRODUCTS = {aten.linear.default, aten.mm.default, aten.bmm.default, aten.matmul.default, aten.addmm.default}


@dataclass(frozen=True)
class Ceilings:
    """The best that the machine does, measured.

    Attributes:
        threads: of torch.
        product: operations per second of a product of float32 matrices.
        convolution: operations per second of a float32 convolution.
        copy: bytes per second that a copy reads and writes together.
    """

    threads: int
    product: float
    convolution: float
    copy: float


def ceilings(device: torch.device = CPU) -> Ceilings:
    """Measure the machine, with torch's threads as they are; a second or two."""
    a, out = (torch.ones(PRODUCT, PRODUCT, device=device) for _ in range(2))
    x = torch.ones(IMAGES, CHANNELS, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)
    w = torch.ones(CHANNELS, CHANNELS, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    source, target = (torch.ones(COPIED, device=device) for _ in range(2))

    def per_second(work: float, call: Callable[[], object]) -> float:
        with torch.no_grad():
            call()
            return work / min(seconds_of(call) for _ in range(REPEATS))

    return Ceilings(
        torch.get_num_threads(),
        per_second(2 * PRODUCT**3, lambda: torch.mm(a, a, out=out)),
        per_second(2 * x.numel() * CHANNELS * 9, lambda: F.conv2d(x, w, padding=1)),
        per_second(2 * source.nbytes, lambda: target.copy_(source)),
    )


@dataclass(frozen=True)
class QueryWork:
    """The least work of a query, the mean over all coordinates.

    Attributes:
        operations: multiplications and additions of its products and convolutions.
        bytes: of the differences that its rules read and write.
        seconds: at the machine's ceilings.
    """

    operations: float
    bytes: float
    seconds: float

    def __add__(self, other: QueryWork) -> QueryWork:
        return QueryWork(self.operations + other.operations, self.bytes + other.bytes, self.seconds + other.seconds)

    def times(self, factor: float) -> QueryWork:
        """The work of a number of queries."""
        return QueryWork(factor * self.operations, factor * self.bytes, factor * self.seconds)


NOTHING = QueryWork(0.0, 0.0, 0.0)


def query_work(problem: Problem, side: DeepZero, machine: Ceilings) -> QueryWork:
    """Count a chunk of each parameter; a query costs the mean, weighted by coordinates."""
    program = side.evaluator.program(side.objective, problem.batch)
    values = side.evaluator.base_values(program, side.objective, problem.batch, problem.seed)

    def count(name: str) -> QueryWork:
        indices = problem.coordinates[name][: side.chunks[name]]
        watch = _Watch(machine)
        cone = watch.over(program.cones[name])
        loss_differences(cone, values, program.graph.output, indices, problem.step_size)
        return watch.found.times(1 / len(indices))

    names = problem.coordinates.names
    each = dict(zip(names, parallel_map(count, names, 1, CPU), strict=True))
    share = {name: len(indices) / problem.coordinates.count for name, indices in problem.coordinates.items()}
    return sum((each[name].times(share[name]) for name in names), NOTHING)


class _Watch:
    """Adds up the work of the rules of a cone."""

    def __init__(self, machine: Ceilings) -> None:
        self.machine, self.found = machine, NOTHING

    def over(self, cone: Cone) -> Cone:
        """The cone with every rule watched."""
        steps = (s if s.rule is None else replace(s, rule=self._watched(s.rule, s.parts)) for s in cone.steps)
        return replace(cone, steps=tuple(steps))

    def _watched(self, rule: Callable[..., Any], parts: tuple[Node, ...]) -> Callable[..., Any]:
        def watched(call: Call, *args: Any, **kwargs: Any) -> Any:
            leaves = pytree.tree_leaves((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Operand))
            operands = [leaf for leaf in leaves if isinstance(leaf, Operand)]
            coming = sum(_bytes(one.difference) for one in operands)
            outcome = rule(call, *args, **kwargs)
            self._add(call, parts, operands, coming, outcome)
            return outcome

        return watched

    def _add(self, call: Call, parts: tuple[Node, ...], operands: list[Operand], coming: int, outcome: Any) -> None:
        bytes_moved = coming + _bytes(outcome)
        convolution = any(part.target in CONVOLUTIONS for part in parts)
        speed = self.machine.convolution if convolution else self.machine.product
        operations = operations_of(parts, operands, outcome)
        if convolution:  # of all that comes out of it, whatever is pooled behind it
            operations *= call.values[0].base.numel() / call.output.base.numel()
        self.found += QueryWork(operations, bytes_moved, max(operations / speed, bytes_moved / self.machine.copy))


def operations_of(parts: tuple[Node, ...], operands: list[Operand], outcome: Any) -> float:
    """Multiplications and additions of a product, a convolution or attention; none of anything else.

    An entry of the outgoing difference is a sum over what is contracted, of which only those terms count whose factor
    differs: all of them for a dense difference, one in ``C`` for a difference on one of ``C`` channels. Of those of a
    3x3 convolution of all channels a few are enough (:data:`SAVED`).
    """
    node = next((part for part in parts if part.target in CONVOLUTIONS | PRODUCTS | ATTENTION), None)
    if node is None or len(operands) < 2:
        return 0.0
    target = node.target
    if sum(part.target in PRODUCTS for part in parts) == 2:
        return _operations_of_pair(operands, outcome)
    out = _entries(outcome)
    if target in ATTENTION:
        return 4.0 * out * operands[1].base.shape[-2]
    share = max((_share(one) for one in operands), default=0.0)
    saved = SAVED if share == 1.0 and target in CONVOLUTIONS and _is_plain(node, operands[1].base) else 1.0
    return 2.0 * out * max(1.0, share * _contracted(target, operands)) / saved


def _is_plain(node: Node, weight: Tensor) -> bool:
    """True for a 3x3 convolution place by place, in one group."""
    options: tuple[Any, ...] = (*node.args[3:], *(1, 0, 1, 1)[len(node.args[3:]) :])
    stride, dilation, groups = options[0], options[2], options[3]
    steps = pytree.tree_leaves((stride, dilation))
    return weight.shape[2:] == (3, 3) and groups == 1 and all(step == 1 for step in steps)


def _operations_of_pair(operands: list[Operand], outcome: Any) -> float:
    """Those of two linear layers in one: of the inner one, too, where its argument differs, and then of all terms.

    The inner layer's terms are as many as the numbers that its argument's difference holds for a row.
    """
    x, inner = operands[:2]
    hidden, out = len(inner.base), _entries(outcome)
    return 2.0 * out if x.difference is None else 2.0 * hidden * (out + _entries(x.difference))


def _contracted(target: Any, operands: list[Operand]) -> int:
    """The length of the sums of a product or convolution."""
    weight = operands[1].base
    if target in CONVOLUTIONS:
        return math.prod(weight.shape[1:])
    if target is aten.addmm.default:
        return weight.shape[-1]
    return operands[0].base.shape[-1]


def _share(operand: Operand) -> float:
    """The part of a value's entries that differ at a perturbation."""
    difference = operand.difference
    if difference is None or operand.base.numel() == 0:
        return 0.0
    return min(1.0, _entries(difference) / (difference.count * operand.base.numel()))


def _entries(outcome: Any) -> int:
    """The numbers that a difference, or several, hold."""
    return sum(_bytes(one) // _width(one) for one in _parts(outcome))


def _bytes(outcome: Any) -> int:
    return sum(one.nbytes for one in _parts(outcome))


def _parts(outcome: Any) -> list[Any]:
    return [one for one in (outcome if isinstance(outcome, tuple) else (outcome,)) if one is not None]


def _width(difference: Any) -> int:
    """Bytes of a number of a difference."""
    tensors = [value for value in vars(difference).values() if isinstance(value, Tensor) and value.is_floating_point()]
    return tensors[0].element_size() if tensors else 4
