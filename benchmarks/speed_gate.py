"""Refuse a tree that lost speed: at smoke size, against the best plain loop, beside what was recorded.

    python benchmarks/speed_gate.py             # 1 if a ratio is under 70 % of the recorded one
    python benchmarks/speed_gate.py --record    # measure, and write benchmarks/records/speed-gate.json

Every case of ``deepzero bench`` at a small batch and few coordinates: an estimate and a stretch of the best plain loop
take turns on one thread, in processor seconds, which other work on the machine disturbs little. A ratio is the median
of the turns; one that is too low is measured once more, with twice the turns. Such ratios are far below those of full
batches: they say that speed was lost, not how fast the library is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import deepzero as dz
from deepzero.files import json_object
from deepzero.measure.cases import CASES, problem
from deepzero.measure.measurement_record import environment, heading, write_record
from deepzero.measure.rounds import Spread, by_side, in_turns, ratio
from deepzero.measure.sides import Naive
from deepzero.stopwatch import Stopwatch, processor_time, seconds_of

RECORD = Path(__file__).parent / "records" / "speed-gate.json"
PART = 0.7
"""Of a recorded ratio, which a tree must keep."""
TURNS = 5


@dataclass(frozen=True)
class Smoke:
    """The size at which a case is measured.

    Attributes:
        batch: images or sequences.
        each: coordinates of each parameter, its first ones.
        loop_seconds: processor seconds of a turn of the loop.
    """

    batch: int
    each: int
    loop_seconds: float = 0.15


PLAN = {
    "digits": Smoke(64, 256),
    "cnn": Smoke(16, 128),
    "cnn-1": Smoke(32, 128),
    "mlp": Smoke(64, 2048),
    "resnet20": Smoke(8, 6),
    "transformer-block": Smoke(4, 48),
    "lora-gpt": Smoke(2, 16),
}


class SmokeCase:
    """A case at smoke size: the estimate is prepared, the loop in its fastest form."""

    def __init__(self, name: str, size: Smoke) -> None:
        self.size = size
        task = problem(name, batch=size.batch)
        self.coordinates = dz.Coordinates({n: i[: size.each] for n, i in task.coordinates.items()})
        self.estimator = dz.CGE(
            task.model,
            loss=F.cross_entropy,
            step_size=task.step_size,
            sparsity=self.coordinates,
            evaluator=dz.PropagationEvaluator(workers=1),
        )
        self.batch = task.batch
        self.loop = Naive(task)
        self._estimate()  # exports and checks the program

    def _estimate(self) -> None:
        self.estimator.estimate(*self.batch)

    def ours(self, _: int) -> float:
        """Queries per processor second of an estimate."""
        return (1 + self.coordinates.count) / seconds_of(self._estimate)

    def plain(self, turn: int) -> float:
        """Queries per processor second of the loop."""
        return self.loop.time(self.size.loop_seconds, turn).rate

    def ratio(self, turns: int) -> Spread:
        """Ours over the loop's, turn by turn."""
        found = by_side(in_turns({"ours": self.ours, "plain": self.plain}, turns, swap=True))
        return ratio(found["ours"], found["plain"])


def measured(names: Sequence[str], least: Mapping[str, float]) -> dict[str, Spread]:
    """The ratios of some cases; one under its least is measured once more."""
    found = {}
    for name in names:
        watch, case = Stopwatch(), SmokeCase(name, PLAN[name])
        found[name] = case.ratio(TURNS)
        if found[name].median < least.get(name, 0.0):
            found[name] = max(found[name], case.ratio(2 * TURNS), key=lambda one: one.median)
        share = f", at least {least[name]:.2f} asked for" if name in least else ""
        print(f"{name:18s} {found[name].median:6.2f} times the best plain loop{share} ({watch.seconds():.0f} s)")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and compare or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the record in place of comparing with it")
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=list(PLAN), metavar="CASE")
    options = parser.parse_args(words)
    circumstances = environment()
    torch.set_num_threads(1)
    least = {} if options.record else {name: PART * one["ratio"]["median"] for name, one in recorded().items()}
    with processor_time():
        found = measured(options.cases, least)
    if options.record:
        write_record(RECORD, record(found, circumstances))
        return 0
    slow = [name for name in options.cases if found[name].median < least.get(name, 0.0)]
    if slow:
        print(
            f"speed was lost in {', '.join(slow)}: under {PART:.0%} of {RECORD.name}. See `deepzero bench`; "
            "if it has to be so, record it with `python benchmarks/speed_gate.py --record`",
            file=sys.stderr,
        )
    return 1 if slow else 0


def recorded() -> dict[str, Any]:
    """The cases of the record."""
    cases: dict[str, Any] = json_object(RECORD)["cases"]
    return cases


def record(found: Mapping[str, Spread], circumstances: Mapping[str, Any]) -> dict[str, Any]:
    """The ratios with their circumstances."""
    cases = {name: {"size": asdict(PLAN[name]), "ratio": asdict(spread)} for name, spread in found.items()}
    return {**heading({**circumstances, "threads": 1, "clock": "processor"}), "turns": TURNS, "cases": cases}


if __name__ == "__main__":
    sys.exit(main())
