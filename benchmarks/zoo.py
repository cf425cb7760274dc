"""Speed of the default estimator on networks that others wrote, against a plain loop and an earlier commit.

    python benchmarks/zoo.py --commit a39285b --out benchmarks/records/zoo.json

The networks are those of ``tests/zoo/members.py``, float32, in the mode in which they are trained. For each of them a
set of coordinates is chosen, the same for every side: up to N evenly spaced ones of each tensor, N the largest power
of 2 such that the plain loop answers all of them in ``--step`` seconds. The sides are

- ``loop``: a full forward a query, under ``torch.inference_mode`` where the program runs in it (else ``no_grad``, else
  with autograd on: the record says which). An entry is moved in place and put back. A model that draws numbers is
  seeded at every query, since all queries must see the same;
- ``here``: ``dz.CGE(...).estimate(...)`` of the working tree with its default evaluator;
- ``commit``: the same of another commit, which is checked out into a temporary folder. If it takes no ``closure=...``,
  the closure is wrapped into a module whose output is the loss. What it refuses is recorded with the error's
  first line.

The estimators each live in a process of their own, the loop in that of ``here``; one of them works at a time, on one
thread. Their first estimate is timed once, in a process that has estimated one small network before: from ``zo = ...``
to its end, with export, checks and compilation. Then the sides take turns, a fifth of a second or a whole estimate at
a time, for ``--rounds`` rounds of ``--seconds`` in all; who goes first changes. A round gives queries per second, its
queries over its seconds; figures are medians over the rounds with their extremes, and a ratio is taken round by round.

Slopes at the first step are compared with the loop's before anything is timed, with the same random numbers: PyTorch's
own, from the seed of the estimator's first step. A side that differs by more than the
rounding of the loop explains gets no ratio, and the script ends with 1. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from against_commit import ROOT, Child, git, worktree
from zoo_sides import ZOO

from deepzero.measure.measurement_record import environment, heading, write_record
from deepzero.measure.rounds import Spread, by_side, in_short_turns, ratio
from deepzero.stopwatch import Throughput

AGREEMENT = 1e-2
"""Largest accepted difference of a slope, relative to the largest slope: a loop in float32 subtracts losses."""

TURN = 0.2
"""Seconds of a turn, about; at least one estimate."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    commit: str | None = None
    members: tuple[str, ...] = tuple(ZOO)
    seconds: float = 2.0
    rounds: int = 3
    step: float = 1.0
    out: Path | None = None


def deviation(found: dict[str, list[float]], expected: dict[str, list[float]]) -> float:
    """Largest difference of a slope, relative to the largest one expected; infinite if they cannot be compared.

    Example:
        >>> deviation({"a": [1.0, 2.5]}, {"a": [1.0, 2.0]})
        0.25
    """
    sizes = [{name: len(one) for name, one in slopes.items()} for slopes in (found, expected)]
    if sizes[0] != sizes[1]:
        return float("inf")
    pairs = [pair for name, one in expected.items() for pair in zip(found[name], one, strict=True)]
    largest = max(abs(right) for _, right in pairs)
    differences = [abs(left - right) / largest if largest else float(left != 0) for left, right in pairs]
    return max(differences) if all(one == one for one in differences) else float("inf")  # noqa: PLR0124 - a NaN


class Sides:
    """The children, and the tasks that they answer."""

    def __init__(self, children: dict[str, Child]) -> None:
        self._children = children

    @property
    def estimators(self) -> tuple[str, ...]:
        """Names of the sides that estimate."""
        return tuple(self._children)

    def ask(self, side: str, task: str, **options: Any) -> dict[str, Any]:
        """The answer of a child; the loop lives beside the estimator of the working tree."""
        child = self._children["here" if side == "loop" else side]
        return child.ask(json.dumps({"task": task, **options}))

    def turn(self, side: str, seconds: float) -> Throughput:
        """Queries of about ``seconds``."""
        found = self.ask(side, "loop" if side == "loop" else "steps", seconds=seconds)
        return Throughput(found["queries"], found["seconds"])

    def one_round(self, able: Sequence[str], share: float, number: int) -> dict[str, float]:
        """Queries per second of the sides that are able, of which another one goes first in every round."""
        first = number % len(able)
        order = [*able[first:], *able[:first]]
        return in_short_turns({side: partial(self.turn, side) for side in order}, share, TURN)


def examined(sides: Sides, name: str, options: Options) -> dict[str, Any]:
    """A member's coordinates, and the first estimate of every side, compared with the loop."""
    chosen = sides.ask("loop", "choose", member=name, budget=options.step)
    coordinates, expected = chosen.pop("coordinates"), chosen.pop("slopes")
    shape = {key: chosen.pop(key) for key in ("parameters", "tensors", "per_tensor")}
    report: dict[str, Any] = {"member": name, **shape, "coordinates": sum(map(len, coordinates.values()))}
    report["sides"] = {"loop": chosen}
    for side in sides.estimators:
        first = sides.ask(side, "first", member=name, coordinates=coordinates)
        if "refused" not in first:
            slopes = first.pop("slopes")
            far = deviation(slopes, expected)
            first["deviation"] = far if far < float("inf") else "not comparable"
            first["agrees"] = far <= AGREEMENT
        report["sides"][side] = first
    return report


def measured(sides: Sides, name: str, options: Options) -> dict[str, Any]:
    """A member's whole report."""
    report = examined(sides, name, options)
    found = report["sides"]
    able = ["loop", *(side for side in sides.estimators if found[side].get("agrees"))]
    share = options.seconds / options.rounds
    rates = by_side(sides.one_round(able, share, number) for number in range(options.rounds))
    for side in able:
        found[side]["queries_per_second"] = asdict(Spread.of(rates[side]))
    pairs = [(side, "loop") for side in able[1:]] + [("here", "commit")] * ({"here", "commit"} <= set(able))
    report["ratios"] = {f"{over}/{under}": asdict(ratio(rates[over], rates[under])) for over, under in pairs}
    return report


@contextlib.contextmanager
def started(options: Options) -> Iterator[Sides]:
    """The children."""
    with contextlib.ExitStack() as ends:
        trees = {"here": ROOT}
        if options.commit is not None:
            trees["commit"] = ends.enter_context(worktree(options.commit))
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        children: dict[str, Child] = {}
        for side, tree in trees.items():
            children[side] = Child(tree, folder, 1, script="zoo_sides.py")
            ends.callback(children[side].close)
        yield Sides(children)


def run(options: Options) -> dict[str, Any]:
    """All members, as a record that is written after each of them."""
    circumstances = environment()
    torch.set_num_threads(1)
    settings = {name: value for name, value in asdict(options).items() if name not in ("out", "commit")}
    record: dict[str, Any] = {
        **heading(circumstances),
        "here": {"commit": git("rev-parse", "HEAD"), "changed_files": git("status", "--porcelain").splitlines()},
        "against": None if options.commit is None else git("rev-parse", f"{options.commit}^{{commit}}"),
        "settings": {**settings, "agreement": AGREEMENT},
        "members": [],
    }
    with started(options) as sides:
        for name in options.members:
            record["members"].append(measured(sides, name, options))
            print(f"{len(record['members'])} of {len(options.members)}: {name}", flush=True)
            write_record(options.out, record)
    return record


def row(report: dict[str, Any]) -> str:
    """A member's line of the table."""
    sides, ratios = report["sides"], report["ratios"]
    cells = [f"{report['member']:21}{report['coordinates']:>6,}"]
    cells += [f"{rate(sides['loop']):>9}", f"{rate(sides['here']):>9}", f"{shown(ratios.get('here/loop')):>22}"]
    cells += [f"{seconds(sides['here']):>7}"]
    if "commit" in sides:
        cells += [f"{rate(sides['commit']):>9}", f"{shown(ratios.get('here/commit')):>22}"]
        cells += [f"{seconds(sides['commit']):>7}"]
    remarks = [f"{side}: {remark(found)}" for side, found in sides.items() if remark(found)]
    return " ".join(cells) + "".join(f"\n    {line}" for line in remarks)


def table_heading(options: Options) -> str:
    """The first lines of the table."""
    columns = f"{'member':21}{'coord.':>6} {'loop':>9} {'here':>9} {'here / loop':>22} {'first':>7}"
    if options.commit is not None:
        columns += f" {options.commit[:9]:>9} {'here / ' + options.commit[:9]:>22} {'first':>7}"
    return (
        f"queries per second, medians of {options.rounds} rounds (extremes); seconds of the first estimate\n{columns}"
    )


def rate(side: dict[str, Any]) -> str:
    """Median queries per second."""
    return f"{side['queries_per_second']['median']:,.0f}" if "queries_per_second" in side else "-"


def shown(spread: dict[str, Any] | None) -> str:
    """A median and its extremes."""
    return "-" if spread is None else f"{spread['median']:.2f} ({spread['min']:.2f} - {spread['max']:.2f})"


def seconds(side: dict[str, Any]) -> str:
    """Seconds of the first estimate."""
    return f"{side['first_use_seconds']:.1f}" if "first_use_seconds" in side else "-"


def remark(side: dict[str, Any]) -> str:
    """Remarks that a reader of a side's figures needs."""
    if "refused" in side:
        return f"refused: {side['refused'][:100]}"
    remarks = []
    if not side.get("agrees", True):
        remarks.append(f"DIFFERS FROM THE LOOP: {side['deviation']}")
    if side.get("form", "inference_mode") != "inference_mode":
        remarks.append(f"runs under {side['form']}")
    if "not_propagated" in side:
        remarks.append(f"not propagated: {side['not_propagated'][:100]}")
    if side.get("fallbacks"):
        remarks.append(f"falls back in {', '.join(side['fallbacks'])}")
    if side.get("recomputed"):
        remarks.append(f"runs operations again for {len(side['recomputed'])} tensors")
    return "; ".join(remarks)


def main() -> None:
    """Measure, print, and write the record after every member."""
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the temporary checkout is removed
    record = run(options)
    print("\n".join(["", table_heading(options), *map(row, record["members"])]))
    found = [side for report in record["members"] for side in report["sides"].values()]
    differing = sum(not side.get("agrees", True) for side in found)
    if differing:
        raise SystemExit(f"{differing} sides differ from the loop by more than {AGREEMENT:g} of the largest slope")


def parsed() -> Options:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--commit", help="what to compare with; without it the working tree alone is measured")
    add("--members", nargs="+", choices=tuple(ZOO), default=Options.members, metavar="NAME", help=", ".join(ZOO))
    add("--seconds", type=float, default=Options.seconds, help="of each side on a member, all rounds together, about")
    add("--rounds", type=int, default=Options.rounds)
    add("--step", type=float, default=Options.step, help="seconds that the loop takes for the coordinates, at most")
    add("--out", type=Path)
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
