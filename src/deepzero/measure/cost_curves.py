"""Growth of the cost of a query: against batch, width, depth, coordinates and threads, beside a plain loop."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from deepzero.measure import cases
from deepzero.measure.cases import Case, Source
from deepzero.measure.naive_loop import Form
from deepzero.measure.rounds import Spread, by_side, in_turns, rates, ratio
from deepzero.measure.sides import DeepZero, Naive

log = logging.getLogger(__name__)

ROUNDS = 3
WHOLE_WITHIN = 30.0
"""Seconds of an estimate that is timed whole in every round."""
LOOP = Form(channels_last=True)
"""Form of the plain loop at all points; the fastest, or close to it, for all these networks on a CPU."""


@dataclass(frozen=True)
class PlannedPoint:
    """A point to be measured.

    Attributes:
        curve: the size that varies along the curve.
        at: the size.
        case: the network.
        batch: images of the batch.
        sparsity: fraction of the weights that is left out.
        threads: of torch, and so workers of deepzero.
    """

    curve: str
    at: float
    case: Case
    batch: int = 128
    sparsity: float | None = None
    threads: int = 1


@dataclass(frozen=True)
class CostPoint:
    """The cost of a query at one size.

    Attributes:
        curve: the size that varies along the curve.
        at: the size.
        network: name of the network.
        queries: of an estimate.
        setup_seconds: of a first estimate, of one coordinate: export, checks, memory of differences.
        seconds_per_query: of difference propagation, the median of rounds.
        plain_seconds_per_query: of the plain loop.
        ratio: queries per second over those of the plain loop, round by round.
    """

    curve: str
    at: float
    network: str
    queries: int
    setup_seconds: float
    seconds_per_query: float
    plain_seconds_per_query: float
    ratio: Spread


def planned_points(threads: int) -> Iterator[PlannedPoint]:
    """The points of all curves, on up to a number of threads."""
    cnn, mlp = cases.CASES["cnn"], cases.CASES["mlp"]
    yield from (PlannedPoint("batch", size, cnn, batch=size) for size in (32, 128, 512))
    yield from (PlannedPoint("width", width, _cnn_of(width)) for width in (9, 18, 36))
    yield from (PlannedPoint("depth", depth, _resnet(depth), batch=32, sparsity=0.9) for depth in (20, 32, 44))
    for sparsity in (0.99, 0.9, 0.0):
        yield PlannedPoint("share of coordinates", round(1 - sparsity, 6), mlp, sparsity=sparsity)
    yield from (PlannedPoint("threads", count, cnn, threads=count) for count in range(1, threads + 1))


def _cnn_of(width: int) -> Case:
    source = Source.noise(3, 32)
    return cases.registered_case(f"cnn of width {width}", "simple_cnn", source, depth=5, width=width)


def _resnet(depth: int) -> Case:
    return cases.registered_case(f"resnet{depth}", f"resnet{depth}", Source.noise(3, 32))


def cost_point(asked: PlannedPoint, *, step_size: float, seed: int, seconds: float) -> CostPoint:
    """Measure a point.

    Args:
        asked: the point.
        step_size: of the finite difference.
        seed: of everything that is drawn.
        seconds: that each side is timed, in all rounds together; an estimate of up to ``WHOLE_WITHIN`` is timed whole.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(asked.threads)
    try:
        task = cases.problem(asked.case, batch=asked.batch, sparsity=asked.sparsity, step_size=step_size, seed=seed)
        deepzero = DeepZero(task, whole_within=WHOLE_WITHIN)
        naive = Naive(task, LOOP)
        sides = {side.name: partial(side.time, seconds / ROUNDS) for side in (naive, deepzero)}
        timings = by_side(in_turns(sides, ROUNDS))
    finally:
        torch.set_num_threads(before)
    found, plain = (rates(timings[side.name]) for side in (deepzero, naive))
    log.info("%s %g: %.1f queries per second, a plain loop %.1f", asked.curve, asked.at, found[0], plain[0])
    each, plain_each = (1 / Spread.of(one).median for one in (found, plain))
    return CostPoint(
        asked.curve,
        asked.at,
        asked.case.name,
        task.queries,
        deepzero.setup_seconds,
        each,
        plain_each,
        ratio(found, plain),
    )
