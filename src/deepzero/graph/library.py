"""The programs of an objective: captured at first use, found again by shapes and state, replaced when stale."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero.errors import GraphError
from deepzero.graph.between_sizes import equal_tensors, graph_between, same_constants, sizes_of
from deepzero.graph.capture import Graph, Node, capture
from deepzero.graph.cpu.expected_loops import compile_ahead
from deepzero.graph.fingerprint import Picture, changes, picture
from deepzero.graph.footprint import Footprint
from deepzero.graph.program import Program, compile_program
from deepzero.graph.verify import Check
from deepzero.objective import NetworkObjective, State, keywords, parameters_of, shape_of
from deepzero.randomness import Draws

KEPT = 8
"""Programs that are kept, of the shapes and states used last."""
EQUAL = 2
"""Captures without a change after which an attribute is taken to play no part in the program."""
MANY = 32
"""Samples from which on rules take the same kernels for any number: below a few vectors' lanes, some compose."""
KEPT_BYTES = 256 << 20
"""Bytes of tensors that the models make themselves, such as masks, in the programs that are kept beside the newest."""
SINGLE = torch.finfo(torch.float32).eps
RESTLESS = 4
"""Captures in consecutive steps after which a program is said to change at every step."""


@dataclass
class PreparedProgram:
    """A program, what is known of its agreement with the live one, and the bytes that its queries take.

    Attributes:
        program: the program.
        digest: of its graph.
        apart: largest absolute difference of its loss and the live one that is put down to rounding.
        scale: largest loss seen.
        check: the check of its rules, once made.
        footprint: of queries along coordinates, once read off.
        joint_footprint: of queries along random directions, once read off.
        concluded: whether its graph is one between two others', not an export; it is taken up only if its loss is the
            live one's at several points.
    """

    program: Program
    digest: str
    apart: float = 0.0
    scale: float = 0.0
    check: Check | None = None
    footprint: Footprint | None = None
    joint_footprint: Footprint | None = None
    concluded: bool = False

    def agrees(self, found: Tensor, live: Tensor, unit: float) -> bool:
        """True if the graph's loss is the live program's, but for the rounding that was seen when it was made.

        A half type's own rounding unit would hide what changes a loss by a half: its graph computes what the program
        does, bit for bit in most networks, and where it does not, what was seen is close to all there is.
        """
        self.scale = max(self.scale, abs(float(live)))
        margin = 32 if unit <= SINGLE else 4
        return abs(float(found) - float(live)) <= max(margin * self.apart, 64 * min(unit, SINGLE) * abs(float(live)))

    def may_be_rounding(self, found: Tensor, live: Tensor, tolerance: float) -> bool:
        """True if a difference could be rounding that was not seen yet."""
        return abs(float(found) - float(live)) <= tolerance * (abs(float(live)) + self.scale + 1e-3)


@dataclass
class Library:
    """The programs of one objective.

    Attributes:
        entries: by what they were captured under, used last last.
        inert: where the picture changed without a change of the graph.
        volatile: where the forward itself changes the picture.
    """

    entries: OrderedDict[tuple[Hashable, int], PreparedProgram] = field(default_factory=OrderedDict)
    inert: set[Hashable] = field(default_factory=set)
    volatile: set[Hashable] = field(default_factory=set)
    _equal: dict[Hashable, int] = field(default_factory=dict)
    _last: tuple[Hashable, Picture, PreparedProgram] | None = None
    _restless: int = 0

    def get(
        self,
        objective: NetworkObjective,
        batch: tuple[Any, ...],
        draws: Draws,
        *,
        strict: bool,
        holds: Callable[[PreparedProgram], bool],
    ) -> tuple[PreparedProgram, bool]:
        """The program for a batch as things stand; True if it was made just now.

        Args:
            objective: whose program.
            batch: its arguments.
            draws: the step's random numbers.
            strict: a parameter that differences cannot follow is an error.
            holds: whether a program that was concluded from others is the live one; if not, it is captured.
        """
        shapes, seen = shape_key(batch), picture(objective)
        key = shapes, self._key(seen)
        if key in self.entries:
            self.entries.move_to_end(key)
            self._last = shapes, seen, self.entries[key]
            return self.entries[key], False
        concluded = self._concluded(parameters_of(objective), key, strict=strict)
        if concluded is not None and holds(concluded):
            self._keep(key, concluded)
            self._last = shapes, seen, concluded
            return concluded, True
        entry, new = self._made(objective, batch, draws, strict=strict, shapes=shapes, seen=seen)
        self._keep((shapes, self._key(seen)), entry)
        return entry, new

    def replace(
        self, objective: NetworkObjective, batch: tuple[Any, ...], draws: Draws, stale: PreparedProgram, *, strict: bool
    ) -> tuple[PreparedProgram, bool]:
        """A program captured again because ``stale`` has another loss than the live one.

        Raises:
            GraphError: it was captured again at each of the last steps: it changes all the time.
        """
        self._restless += 1
        if self._restless >= RESTLESS:
            raise GraphError(
                "the program changes at every step in a way that only its losses show, so a graph of it is never of use"
            )
        shapes, seen = shape_key(batch), picture(objective)
        graph = capture(objective, batch, draws)
        if graph.digest() == stale.digest:
            return stale, False
        entry = PreparedProgram(compile_program(graph, parameters_of(objective), strict=strict), graph.digest())
        self._keep((shapes, self._key(seen)), entry)
        self._last = shapes, seen, entry
        return entry, True

    def latest(self, batch: tuple[Any, ...]) -> PreparedProgram | None:
        """The program used last, if it was for a batch of these shapes."""
        return self._last[2] if self._last is not None and self._last[0] == shape_key(batch) else None

    def settled(self) -> None:
        """A step in which the graph was the program."""
        self._restless = 0

    def learn(self, objective: NetworkObjective, state: Any) -> None:
        """Attributes that the base query changes are not what a graph depends on across steps."""
        moved = state.attributes if isinstance(state, State) else ()
        if not moved:
            return
        position = {id(module.__dict__): i for i, module in enumerate(objective.places().modules)}
        fresh = {(position[id(c)], key) for c, key, _ in moved if id(c) in position} - self.volatile
        self.volatile |= fresh
        if fresh and self._last is not None:
            shapes, seen, entry = self._last
            self._keep((shapes, self._key(seen)), entry)

    def _made(
        self,
        objective: NetworkObjective,
        batch: tuple[Any, ...],
        draws: Draws,
        *,
        strict: bool,
        shapes: Hashable,
        seen: Picture,
    ) -> tuple[PreparedProgram, bool]:
        compile_ahead(objective.model, None if objective.closure else objective.loss)
        graph = capture(objective, batch, draws)
        digest = graph.digest()
        last, self._last = self._last, None
        if last is not None and last[0] == shapes and last[2].digest == digest:
            for where in changes(last[1], seen):
                self._equal[where] = self._equal.get(where, 0) + 1
                if self._equal[where] >= EQUAL:
                    self.inert.add(where)
            self._last = shapes, seen, last[2]
            return last[2], False
        entry = PreparedProgram(compile_program(graph, parameters_of(objective), strict=strict), digest)
        entry.check = self._check_of_other_batch(entry.program, shapes)
        self._last = shapes, seen, entry
        return entry, True

    def _concluded(
        self, parameters: Mapping[str, Tensor], key: tuple[Hashable, int], *, strict: bool
    ) -> PreparedProgram | None:
        """The program between the smallest and the largest size that was exported; both stay longer for it."""
        exported = [(k, entry) for k, entry in self.entries.items() if k[1] == key[1] and not entry.concluded]
        brackets = [
            (sizes.high - sizes.low, sizes, low, high)
            for low, high in itertools.permutations(exported, 2)
            if (sizes := sizes_of(low[0][0], high[0][0], key[0])) is not None
        ]
        if not brackets:
            return None
        _, sizes, (low_key, low), (high_key, high) = max(brackets, key=itemgetter(0))
        graph = graph_between(low.program.graph, high.program.graph, sizes)
        if graph is None:
            return None
        self.entries.move_to_end(low_key)
        self.entries.move_to_end(high_key)
        entry = PreparedProgram(compile_program(graph, parameters, strict=strict), graph.digest(), concluded=True)
        entry.apart = max(low.apart, high.apart)
        same = entry.program.recomputed.keys() == low.program.recomputed.keys()
        entry.check = low.check if same and sizes.low >= MANY else None
        return entry

    def _check_of_other_batch(self, program: Program, shapes: Hashable) -> Check | None:
        """The check of a program whose graph differs in the number of samples alone: its rules are these."""
        for (other_shapes, _), other in reversed(self.entries.items()):
            same = other.program.recomputed.keys() == program.recomputed.keys()
            large = other.check is not None and both_large(other_shapes, shapes)
            if large and same and alike(other.program.graph, program.graph):
                return other.check
        return None

    def _key(self, seen: Picture) -> int:
        ignored = self.inert | self.volatile
        return hash(tuple((key, value) for key, value in seen.items() if key not in ignored))

    def _keep(self, key: tuple[Hashable, int], entry: PreparedProgram) -> None:
        """Keep a program, with one copy of what it shares with others; the ones used least recently go."""
        for other in self.entries.values():
            share_constants(entry.program.graph, other.program.graph)
        self.entries[key] = entry
        self.entries.move_to_end(key)
        while len(self.entries) > 1 and (len(self.entries) > KEPT or self._bytes_beside(entry) > KEPT_BYTES):
            self.entries.popitem(last=False)

    def _bytes_beside(self, newest: PreparedProgram) -> int:
        """Bytes of the models' own tensors in all programs but one, each once."""
        own = {id(tensor) for tensor in newest.program.graph.constants.values()}
        held = {id(t): t.nbytes for entry in self.entries.values() for t in entry.program.graph.constants.values()}
        return sum(size for tensor, size in held.items() if tensor not in own)


def both_large(first: Any, second: Any) -> bool:
    """True if two keys of :func:`shape_key` differ in sizes alone that are at least :data:`MANY` in both."""
    if isinstance(first, torch.Size) and isinstance(second, torch.Size):
        pairs = zip(first, second, strict=False)
        return len(first) == len(second) and all(a == b or min(a, b) >= MANY for a, b in pairs)
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(both_large, first, second))
    return bool(first == second)


def alike(first: Graph, second: Graph) -> bool:
    """True if two graphs are the same but for integers that are in one proportion, as that of two batch sizes is."""
    if len(first.nodes) != len(second.nodes) or list(first.inputs.values()) != list(second.inputs.values()):
        return False
    places = [{node: i for i, node in enumerate((*graph.inputs, *graph.nodes))} for graph in (first, second)]
    proportions: set[tuple[int, int]] = set()

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, Node) and isinstance(other, Node):
            return places[0][one] == places[1][other]
        if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
            return len(one) == len(other) and all(map(same, one, other))
        if type(one) is int and type(other) is int and one != other:
            common = math.gcd(one, other) or 1
            proportions.add((one // common, other // common))
            return min(one, other) > 0 and len(proportions) == 1
        return type(one) is type(other) and bool(one == other)

    return (
        all(
            a.target is b.target and same(a.args, b.args) and same([*a.kwargs.items()], [*b.kwargs.items()])
            for a, b in zip(first.nodes, second.nodes, strict=True)
        )
        and same(first.output, second.output)
        and same_constants(first, second)
    )


def share_constants(graph: Graph, other: Graph) -> None:
    """Take another graph's tensors where they are equal to the graph's own."""
    for name, value in graph.constants.items():
        twin = other.constants.get(name)
        if twin is not None and equal_tensors(value, twin):
            graph.constants[name] = twin


def shape_key(batch: tuple[Any, ...]) -> Hashable:
    """The part of a batch that a graph depends on: shapes, dtypes, devices of tensors, other values, the structure."""
    leaves, spec = pytree.tree_flatten((tuple(batch), keywords(batch)))
    described = tuple(
        (shape_of(leaf), leaf.dtype, leaf.device, leaf.requires_grad) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in leaves
    )
    return described, repr(spec)


def rounding_of(objective: NetworkObjective) -> float:
    """Rounding unit of the coarsest dtype among the parameters."""
    return max(float(torch.finfo(p.dtype).eps) for p in parameters_of(objective).values())
