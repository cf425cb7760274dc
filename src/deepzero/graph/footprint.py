"""The footprint of a step: bytes of tensors that its base forward holds and that one perturbation takes at its peak.

One perturbation and two of every parameter are propagated, and the tensors that are alive during every rule are
counted: the second tells what each takes, and what they share. Two parameters whose differences come to the same
operation in the same form go on alike, so the way from there is walked once: a footprint costs a few propagations
through the network, however many parameters it has.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deepzero.graph.capture import Node
from deepzero.graph.forms import form
from deepzero.graph.forward import Values, held_bytes, in_own_types
from deepzero.graph.program import Cone, Program, Step
from deepzero.graph.propagate import advance, nbytes, one_hot

aten = torch.ops.aten
HEADROOM = 1.5
"""Bytes that are reckoned with, in multiples of those counted: rules may take other branches at other values."""
RECOMPUTED = 4
"""Divisor of the bytes of the base forward that gives those of a query that runs operations again."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a step takes; they depend on shapes alone.

    Attributes:
        held: the base forward, with all that rules derive from it.
        queries: one perturbation at its peak, by parameter.
        shared: a chunk at its peak beyond that, whatever the number of its perturbations.
        written: all differences that one perturbation writes on its way to the loss, by parameter; empty where it is
            not known, as after a resume.
    """

    held: int
    queries: dict[str, int]
    shared: int = 0
    written: dict[str, int] = field(default_factory=dict)

    def weights(self) -> dict[str, float]:
        """A guess of what a query of each parameter costs, for as long as nothing has been measured."""
        return dict(self.written or self.queries)

    def state_dict(self) -> dict[str, Any]:
        """The part on which the chunk plan depends, as JSON-able values."""
        return {"held": self.held, "queries": dict(self.queries), "shared": self.shared}


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made in a block and are still there.

    Attributes:
        live: bytes now.
        peak: bytes at their most.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        result = func(*args, **(kwargs or {}))
        before = list(_tensors((args, kwargs)))
        known = {_memory(tensor) for tensor in before}
        made = list(_tensors(result))
        for tensor in made:
            self._count(tensor, known)
        self.peak = max(self.peak, self.live + scratch(func, before, made))
        return result

    def _count(self, tensor: Tensor, known: set[int]) -> None:
        memory, size = _memory(tensor), tensor.untyped_storage().nbytes()
        if memory not in self._users:
            if memory in known:
                return  # a view of what was there before
            self._users[memory] = 0
            self.live += size
        self._users[memory] += 1
        weakref.finalize(tensor, self._dropped, memory, size)

    def _dropped(self, memory: int, size: int) -> None:
        self._users[memory] -= 1
        if not self._users[memory]:
            del self._users[memory]
            self.live -= size


def _tensors(argument: Any) -> Iterator[Tensor]:
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, (tuple, list)):
        for part in argument:
            yield from _tensors(part)
    elif isinstance(argument, dict):
        yield from _tensors(list(argument.values()))


def _memory(tensor: Tensor) -> int:
    """The identity of a tensor's memory."""
    return int(tensor.untyped_storage()._cdata)


def scratch(operation: Any, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Bytes that an operation takes inside: copies in another layout, or patches of a convolution in float64."""
    if operation is not aten.convolution.default:
        return 0
    x, weight = inputs[0], inputs[1]
    if x.dtype is torch.float32:
        return int(x.nbytes + outputs[0].nbytes)
    return int(x.nbytes) * weight[0, 0].numel()


@dataclass(frozen=True)
class Reading:
    """Bytes on a part of the way to the loss.

    Attributes:
        query: one perturbation at its peak.
        shared: at their peak, what all perturbations of a chunk take together beyond that.
        written: all differences that one perturbation writes.
    """

    query: int = 0
    shared: int = 0
    written: int = 0

    def then(self, rest: Reading) -> Reading:
        """Of this part and the rest of the way."""
        return Reading(max(self.query, rest.query), max(self.shared, rest.shared), self.written + rest.written)


Live = dict[Node, Any]
"""The differences that are needed still."""


class Survey:
    """Walks the cones of parameters, each part of them once.

    Args:
        values: base values.
        offset: step of the perturbations.
        probes: numbers of perturbations with which a way is walked: one and two; or one alone, which makes the memos
            and reads off nothing.
    """

    def __init__(self, values: Values, offset: float, probes: tuple[int, ...] = (1, 2)) -> None:
        self._values, self._offset, self._probes = values, offset, probes
        self._known: dict[Hashable, Reading] = {}

    def along(self, cone: Cone) -> Reading:
        """The reading of a parameter; of nothing where its perturbations do not reach the loss."""
        probes = [self._sources(cone, count) for count in self._probes]
        most = probes[-1]
        parts: list[Reading] = []
        met: list[tuple[Hashable, int]] = []
        rest = Reading()
        for step in cone.steps:
            if any(node in most for node in step.inputs):
                place = _place(step, most)
                if place in self._known:
                    rest = self._known[place]
                    break
                if place is not None:
                    met.append((place, len(parts)))
                parts.append(self._read(step, probes))
            for live, node in itertools.product(probes, step.frees):
                live.pop(node, None)
        for place, position in reversed(met):
            while len(parts) > position:
                rest = parts.pop().then(rest)
            self._known[place] = rest
        while parts:
            rest = parts.pop().then(rest)
        return rest

    def _sources(self, cone: Cone, count: int) -> Live:
        return {
            node: one_hot(self._values[node].base, probed_entries(cone, node, self._values)[:count], self._offset)
            for node in cone.sources
        }

    def _read(self, step: Step, probes: list[Live]) -> Reading:
        if len(probes) == 1:
            advance(step, self._values, probes[0], by_sample=False)
            return Reading()
        two = probes[1]
        single, double = (self._peak(step, live) for live in probes)
        query = max(0, double - single)
        return Reading(query, max(0, single - query), nbytes(two[step.node]) // 2 if step.node in two else 0)

    def _peak(self, step: Step, live: Live) -> int:
        before = sum(nbytes(difference) for difference in live.values())
        meter = LiveBytes()
        with meter:
            advance(step, self._values, live, by_sample=False)
        return before + meter.peak


def probed_entries(cone: Cone, source: Node, values: Values) -> Int64[Tensor, " 2"]:
    """Flat indices of two entries of a parameter that follow each other; in a table of a row that is looked up."""
    base: Tensor = values[source].base
    first = 0
    for step in cone.steps:
        if step.node.target is aten.embedding.default and step.args[0] is source:
            looked_up = values[step.args[1]].base
            first = int(looked_up.flatten()[0]) * base.shape[1] if looked_up.numel() else 0
    entries = base.numel() * (2 if base.is_complex() else 1)
    return torch.tensor([first, min(first + 1, max(first, entries - 1))])


def _place(step: Step, live: Mapping[Node, Any]) -> Hashable:
    """The operation before which a single node differs, and the form in which it does; None if several do."""
    if len(live) > 1:
        return None
    ((node, difference),) = live.items()
    return step.node, node, form(difference)


def footprint(program: Program, values: Values, offset: float) -> Footprint:
    """Read off one perturbation and two of every parameter; the first walk makes the memos, which the second finds."""
    again = held_bytes(values)
    cones = [cone for cone in program.cones.values() if not cone.reason]
    with torch.no_grad(), in_own_types():
        for survey in (Survey(values, offset, (1,)), Survey(values, offset)):
            found = {cone.parameter: survey.along(cone) for cone in cones}
    held = held_bytes(values)
    queries = {name: max(1, int(HEADROOM * reading.query)) for name, reading in found.items()}
    queries |= dict.fromkeys(program.recomputed, max(1, held // RECOMPUTED))
    shared = int(HEADROOM * max((reading.shared for reading in found.values()), default=0))
    written = {name: max(1, found[name].written) if name in found else again for name in program.cones}
    return Footprint(held, queries, shared, written)


def joint_footprint(values: Values, one: Callable[[], object], name: str) -> Footprint:
    """The same for directions in which all parameters move, from ``one``, a propagation of one of them."""
    one()
    held = held_bytes(values)
    with LiveBytes() as meter:
        one()
    return Footprint(held, {name: max(1, int(HEADROOM * meter.peak))})
