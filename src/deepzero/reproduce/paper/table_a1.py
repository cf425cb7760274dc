"""Table A1 and Fig. A2: where the time of an estimate goes when queries are made one by one, and how it grows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepzero.estimator import CGE
from deepzero.losses import LOSSES
from deepzero.measure.cases import cnn_case, problem
from deepzero.measure.naive_loop import NaiveLoop
from deepzero.randomness import derive_seed
from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell, SingleMeasurement
from deepzero.reproduce.experiment import Experiment
from deepzero.reproduce.paper import published
from deepzero.reproduce.paper.fig3 import DepthsScale
from deepzero.reproduce.presentation import MISSING, Outcomes, Presentation, spread_text
from deepzero.stopwatch import StageStopwatch, seconds_of

STAGES = ("directions", "perturbation", "inference", "arithmetic")
"""Stages 1 to 4 of the paper's Appendix C."""

STEP_SIZE = 5e-3
STEPS, EPOCHS = 390, 50
"""Steps of an epoch of CIFAR-10 in batches of 128, and the paper's epochs."""


@torch.no_grad()
def random_estimate(loop: NaiveLoop, queries: int, watch: StageStopwatch) -> dict[str, Tensor]:
    """RGE of a number of queries: a gaussian direction over all parameters is added, and taken away again."""
    parameters = loop.parameters
    gradient = {name: torch.zeros_like(p) for name, p in parameters.items()}
    device = next(iter(parameters.values())).device
    generator = torch.Generator(device).manual_seed(derive_seed(0, "directions"))
    for _ in range(queries):
        with watch("directions"):
            u = [torch.empty_like(p).normal_(generator=generator) for p in parameters.values()]
        loss = loop.query_along(u)
        with watch("arithmetic"):
            slope = (loss.item() - loop.base) / loop.step_size
            torch._foreach_add_(list(gradient.values()), u, alpha=slope / queries)
    return gradient


@torch.no_grad()
def coordinate_estimate(loop: NaiveLoop, chosen: Iterable[tuple[str, int]], watch: StageStopwatch) -> dict[str, Tensor]:
    """CGE at pairs of a parameter's name and a flat index."""
    gradient = {name: torch.zeros_like(p) for name, p in loop.parameters.items()}
    for name, index in chosen:
        loss = loop.query(name, index)
        with watch("arithmetic"):
            gradient[name].view(-1)[index] = (loss.item() - loop.base) / loop.step_size
    return gradient


def stages(*, depth: int, method: str, data_name: str, batch_size: int, queries: int, device: str) -> dict[str, Any]:
    """Seconds of one estimate by stage; ``queries`` of its d are timed, and every query costs the same."""
    task = problem(cnn_case(depth, data_name), batch=batch_size, step_size=STEP_SIZE).on(device)
    watch = StageStopwatch(STAGES)
    loop = NaiveLoop(task, watch=watch)
    d = task.coordinates.count
    count = min(queries, d)
    loop.loss()
    if method == "RGE":
        random_estimate(loop, count, watch)
    else:
        pairs = [(name, i) for name, p in loop.parameters.items() for i in range(p.numel())]
        order = torch.randperm(d, generator=torch.Generator().manual_seed(derive_seed(0, "coordinates"))).tolist()
        coordinate_estimate(loop, [pairs[i] for i in order[:count]], watch)
    return {"d": d, "timed_queries": count, **{name: s * d / count for name, s in watch.seconds.items()}}


def propagation(*, depth: int, data_name: str, batch_size: int, repeats: int, device: str) -> dict[str, Any]:
    """Seconds of whole CGE estimates by difference propagation."""
    task = problem(cnn_case(depth, data_name), batch=batch_size, step_size=STEP_SIZE).on(device)
    zo = CGE(task.model, loss=LOSSES["cross-entropy"], step_size=STEP_SIZE, sparsity=task.coordinates)
    zo.estimate(*task.batch)  # exports, compiles and verifies
    seconds = [seconds_of(lambda: zo.estimate(*task.batch)) for _ in range(repeats)]
    return {"d": task.coordinates.count, "seconds": seconds}


PROPAGATED = "CGE, difference propagation"


@dataclass(frozen=True, kw_only=True)
class TableA1Scale(DepthsScale):
    """The scale of Table A1.

    Attributes:
        queries: of an estimate that are timed when they are made one by one.
        repeats: estimates by difference propagation that are timed.
    """

    queries: int
    repeats: int


def cells(scale: TableA1Scale) -> Iterator[Cell]:
    """Both estimators one by one, and coordinates by propagation, at every depth."""
    for depth in scale.depths:
        common = {"depth": depth, "data_name": scale.data_name, "batch_size": scale.batch_size}
        for method in ("RGE", "CGE"):
            options = {**common, "method": method, "queries": scale.queries}
            yield Cell(labels={"depth": depth, "method": method}, work=SingleMeasurement(stages, options))
        yield Cell(
            labels={"depth": depth, "method": PROPAGATED},
            work=SingleMeasurement(propagation, {**common, "repeats": scale.repeats}),
        )


def present(outcomes: Outcomes, _: TableA1Scale) -> Presentation:
    """Seconds by stage, ours and the paper's, and the time of a whole training run by number of parameters."""
    rows: list[list[str]] = []
    totals: dict[str, dict[int, float]] = {}
    for depth in outcomes.labelled("depth"):
        for run in outcomes.where(depth=depth):
            method, d = str(run.labels["method"]), run.result["d"]
            if method == PROPAGATED:
                estimates = run.result["seconds"]
                total = sum(estimates) / len(estimates)
                seconds, text, theirs = [MISSING] * len(STAGES), spread_text(estimates), None
            else:
                stages = [run.result[stage] for stage in STAGES]
                total = sum(stages)
                seconds, text = [f"{s:.3g}" for s in stages], f"{total:.3g}"
                theirs = published.TAB_A1[method].get(d)
            totals.setdefault(method, {})[d] = total
            paper = [f"{value:g}" for value in theirs] if theirs else [MISSING] * len(STAGES)
            rows.append([f"{d:,}", method, *seconds, text, *paper])
    table = Table(
        title="Seconds of one estimate by stage, q = d",
        columns=["d", "method", *STAGES, "all", *(f"paper: {stage}" for stage in STAGES)],
        rows=rows,
        note=(
            "One forward a query (a sample of the queries is timed, each costs the same), in train mode; difference "
            "propagation answers many at once and has no such stages: mean ± standard deviation (estimates)."
        ),
    )
    hours = Figure(
        title=f"Fig. A2: time of {EPOCHS} epochs of {STEPS} steps against the number of parameters",
        x_label="parameters d",
        y_label="hours",
        series=[
            Series(name=name, x=list(curve), y=[s * STEPS * EPOCHS / 3600 for s in curve.values()])
            for name, curve in totals.items()
        ],
        y_log=True,
    )
    return Presentation(tables=[table], figures=[hours])


EXPERIMENT = Experiment(
    name="tabA1",
    also=("figA2",),
    title="Table A1 and Fig. A2: time of CGE and RGE",
    scales={
        "smoke": TableA1Scale(
            caption="Digits, batch of 16, one depth, 20 queries.",
            depths=(1,),
            data_name="digits",
            batch_size=16,
            queries=20,
            repeats=2,
        ),
        "small": TableA1Scale(
            caption="Noise of 3x32x32, batch of 128; 100 queries of each kind are timed, and 3 estimates.",
            batch_size=128,
            queries=100,
            repeats=3,
        ),
        "paper": TableA1Scale(
            caption="Noise of 3x32x32, batch of 256; every query is timed, and 5 estimates.",
            batch_size=256,
            queries=12_610,
            repeats=5,
        ),
    },
    cells=cells,
    present=present,
)
