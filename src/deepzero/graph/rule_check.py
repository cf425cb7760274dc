"""A comparison of rules with plain runs in float64 whose work grows with the depth of a program, not with its square.

Parameters are checked from the loss backwards. The differences of a few coordinates are propagated, and compared with
plain runs: at the loss, or before a step where the way on has been checked already. Which rules follow, and what they
do, is decided by the *state* there (:func:`deepzero.graph.forms.state`); differences of other parameters went on from
the same state and came out right, so it is enough that these are right now, entry by entry. A wrong rule in front of
such a place shows there, one behind it has shown before: the state is trusted only after several walks that passed it
ended in agreement, with a difference large enough to tell.

Where a difference is too small to be compared sharply in some state, it goes on. One that is nothing but noise, as of a
bias in front of batch norm, may end where such noise has passed before, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from deepzero.graph.capture import Node
from deepzero.graph.differences import SomeSamples, TooLargeError, entries
from deepzero.graph.forms import state
from deepzero.graph.forward import in_own_types
from deepzero.graph.program import Cone, frontier
from deepzero.graph.propagate import advance, at_the_loss, one_hot
from deepzero.graph.wide_forward import WideForward
from deepzero.objective import as_real
from deepzero.step_sizes import size_of

CANDIDATES = 8
"""Random coordinates of a parameter that are propagated, and compared where a trusted state ends their walk."""
AT_THE_LOSS = 2
"""Those of them that are compared at the loss: the one that matters most, and the first; a plain run there is long."""
MORE = 64
"""Candidates where none of the first has an effect: tables of which a batch looks up a few rows."""
RELATIVE = 1e-6
"""Largest accepted error of a rule in float64, relative to the difference."""
NEAR = 1e-3
"""Step of a coordinate, relative to its parameter."""
VISIBLE = 1e3
"""Effect on the loss that shows an error of a thousandth, in multiples of the floor."""
TRUST = 4
"""Points at which a state is trusted: two sharp walks have passed it, or four in which a thousandth would show."""
SHARP_WALK, VISIBLE_WALK = 2, 1
"""Points of a walk."""


@dataclass(frozen=True)
class Comparison:
    """The difference that one coordinate makes at one place, both ways, at the entry where they are furthest apart.

    Attributes:
        index: flat index of the coordinate.
        place: the node; empty at the loss.
        found: the propagated difference.
        expected: that of the plain run.
        size: the largest entry of the plain run's difference.
        floor: smallest difference that can be told from noise.
    """

    index: int
    place: str
    found: float
    expected: float
    size: float
    floor: float

    @property
    def error(self) -> float:
        """Distance of the two."""
        return abs(self.found - self.expected)

    @property
    def agrees(self) -> bool:
        """True if no rule is to blame; what is not finite has to be so on both sides."""
        if not (math.isfinite(self.found) and math.isfinite(self.expected)):
            return math.isfinite(self.found) == math.isfinite(self.expected)
        return self.error <= self.floor + RELATIVE * self.size

    @property
    def sharp(self) -> bool:
        """True if an error of :data:`RELATIVE` would have shown."""
        return self.size * RELATIVE > self.floor

    def __str__(self) -> str:
        where = f" at {self.place}" if self.place else ""
        return f"[{self.index}]{where}: propagated {self.found:.9e}, plain run {self.expected:.9e}"


@dataclass
class _Walk:
    """A walk of some coordinates towards the loss.

    Attributes:
        chosen: flat indices of the coordinates.
        step: by which they move.
        passed: the states that were passed.
        faint: those of them in which the differences were nothing but noise.
        comparisons: at its end.
        moves: whether any coordinate makes a difference there.
    """

    chosen: Int64[Tensor, " n"]
    step: float
    passed: list[Hashable] = field(default_factory=list)
    faint: list[Hashable] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    moves: bool = False

    @property
    def agrees(self) -> bool:
        """True if all comparisons do."""
        return all(one.agrees for one in self.comparisons)

    @property
    def sharp(self) -> bool:
        """True if one of its comparisons is."""
        return any(one.sharp for one in self.comparisons)


class RuleCheck:
    """Compares the rules of one parameter after another; what has been checked is not walked again."""

    def __init__(self, wide: WideForward) -> None:
        self._wide = wide
        self._points: Counter[Hashable] = Counter()

    def compare(self, cone: Cone, size: float, seed: int) -> list[Comparison]:
        """Differences of a few coordinates of one parameter, both ways.

        At a step of a thousandth of the parameter, whatever the estimate's: rules are exact at any step, and the plain
        runs' rounding must not hide the difference. At the estimate's own, ``size``, where that one has no effect
        (losses that move in jumps).
        """
        if not cone.sources:
            return []
        source = self._wide.inputs[cone.sources[0]]
        count = as_real(source).numel()
        generator = torch.Generator().manual_seed(seed)
        found: list[Comparison] = []
        for most, step in ((CANDIDATES, NEAR * (size_of(source) or 1.0)), (MORE, size)):
            chosen = torch.randint(count, (most,), generator=generator)
            found, moves = self._walks(cone, chosen, step)
            if moves or not all(one.agrees for one in found):
                break
        return found

    def _walks(self, cone: Cone, chosen: Int64[Tensor, " n"], step: float) -> tuple[list[Comparison], bool]:
        """Walks of as many coordinates as there is room for, until two have been compared and one of them sharply."""
        waiting = list(torch.split(chosen, self._wide.at_once))
        found: list[Comparison] = []
        moves = False
        while waiting:
            walk = _Walk(waiting.pop(0), step)
            try:
                self._follow(cone, walk)
            except TooLargeError:
                if len(walk.chosen) == 1:
                    raise
                waiting[:0] = walk.chosen.tensor_split(2)
                continue
            found += walk.comparisons
            moves = moves or walk.moves
            if not walk.agrees or (walk.sharp and len({one.index for one in found}) > 1):
                break
        return found, moves

    def _follow(self, cone: Cone, walk: _Walk) -> None:
        """Walk to the loss, or to a state from which the way on is trusted, and compare there."""
        values = self._wide.values
        live: dict[Node, Any] = {n: one_hot(values[n].base, walk.chosen, walk.step) for n in cone.sources}
        try:
            with torch.no_grad(), in_own_types():
                ends = self._ends_early(cone, walk, live)
                if ends is None:
                    self._compare_losses(cone, walk, live)
                else:
                    self._compare_nodes(cone, walk, live, ends)
        finally:
            for value in values.values():
                value.memo.clear()
        if walk.agrees:
            self._give_points(walk)

    def _ends_early(self, cone: Cone, walk: _Walk, live: dict[Node, Any]) -> set[Node] | None:
        """Walk; the nodes to compare where a trusted state ended it, or where nothing differs any more."""
        for position, step in enumerate(cone.steps):
            if any(node in live for node in step.inputs):
                here = state(step, live) if all(node in self._wide.floors for node in live) else None
                faint = False
                if self._is_trusted(here):
                    strengths = self._strengths(live)
                    faint = all(bool((one <= 1).all()) for one in strengths.values())
                    enough = _is_sharp(strengths) or (faint and self._is_trusted((here, FAINT)))
                    if enough and (ends := self._place(cone, position)) is not None:
                        return ends
                if here is not None:
                    walk.passed.append(here)
                if faint:
                    walk.faint.append(here)
                advance(step, self._wide.values, live)
            for node in step.frees:
                live.pop(node, None)
            if not live:
                return self._place(cone, position + 1)
        return None

    def _place(self, cone: Cone, position: int) -> set[Node] | None:
        """All that the steps from a position on read of what may differ, unless some of it cannot be compared."""
        read = frontier(self._wide.program.graph, cone, position)
        return read if all(node in self._wide.floors for node in read) else None

    def _is_trusted(self, here: Hashable) -> bool:
        return here is not None and self._points[here] >= TRUST

    def _strengths(self, live: Mapping[Node, Any]) -> dict[Node, Float64[Tensor, " n"]]:
        """The largest entry of each difference of each node, in multiples of the node's floor."""
        return {node: _sizes(difference) / self._wide.floors[node] for node, difference in live.items()}

    def _compare_nodes(self, cone: Cone, walk: _Walk, live: dict[Node, Any], nodes: set[Node]) -> None:
        """Compare differences of nodes; of those of which none was propagated, with zero."""
        effects = torch.zeros(len(walk.chosen))
        if live:
            effects = torch.stack(list(self._strengths(live).values())).amax(0).cpu()
        walk.moves = bool(effects.any())
        picked = _picked(effects, CANDIDATES)
        found = {node: difference.dense() for node, difference in live.items()}
        live.clear()
        runs = self._wide.plain(cone)
        for k in picked:
            index = int(walk.chosen[k])
            for node, expected in runs.differences(index, walk.step, nodes | set(found)).items():
                own = found[node][k] if node in found else torch.zeros_like(expected)
                walk.comparisons.append(_at_node(index, node, own, expected, self._wide.floors[node]))

    def _compare_losses(self, cone: Cone, walk: _Walk, live: dict[Node, Any]) -> None:
        wide, runs = self._wide, self._wide.plain(cone)
        found = at_the_loss(live, wide.values, wide.program.graph.output, len(walk.chosen)).cpu()
        live.clear()
        walk.moves = bool(found.any())
        for k in _picked(found.abs(), AT_THE_LOSS):
            index = int(walk.chosen[k])
            expected = runs.loss_difference(index, walk.step)
            walk.comparisons.append(Comparison(index, "", float(found[k]), expected, abs(expected), wide.floor))

    def _give_points(self, walk: _Walk) -> None:
        """For the states that a walk has passed, by how small an error would have shown at its end."""
        strength = max((one.size / one.floor for one in walk.comparisons if one.floor), default=0.0)
        if walk.sharp:
            self._points.update(dict.fromkeys(walk.passed, SHARP_WALK))
        elif strength > VISIBLE:
            self._points.update(dict.fromkeys(walk.passed, VISIBLE_WALK))
        elif strength <= 1:
            self._points.update(dict.fromkeys([(here, FAINT) for here in walk.faint], SHARP_WALK))


FAINT = "faint"
"""Marks a state as one that differences have passed which are nothing but noise."""


def _is_sharp(strengths: Mapping[Node, Tensor]) -> bool:
    """True if the coordinate that matters most can be compared sharply at all nodes where it is more than noise."""
    every = torch.stack(list(strengths.values()))
    most = every[:, int(every.amax(0).nan_to_num(nan=math.inf).argmax())]
    seen = most[most > 1]
    return bool(every.isfinite().all()) and len(seen) > 0 and bool((seen * RELATIVE > 1).all())


def _picked(effects: Tensor, count: int) -> list[int]:
    """The coordinate with the largest effect and the first ones, ``count`` in all."""
    strongest = int(effects.nan_to_num(nan=math.inf).argmax())
    first = [k for k in range(len(effects)) if k != strongest]
    return sorted([strongest, *first[: count - 1]])


def _sizes(difference: Any) -> Float64[Tensor, " n"]:
    """The largest entry of each difference."""
    difference = difference.written_out() if isinstance(difference, SomeSamples) else difference
    return entries(difference).abs().double().amax(1)


def _at_node(index: int, node: Node, found: Tensor, expected: Tensor, floor: float) -> Comparison:
    found, expected = as_real(found).flatten(), as_real(expected).flatten()
    apart = (found - expected).abs()
    worst = int(apart.nan_to_num(nan=math.inf).argmax())
    size = float(expected.abs().max())
    return Comparison(index, node.name, float(found[worst]), float(expected[worst]), size, floor)
