"""Table A1 and Fig. A2: where the time of an estimate goes when queries are made one by one, and how it grows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from deepzero.estimator import CGE
from deepzero.losses import LOSSES
from deepzero.measure.cases import cnn_case, problem
from deepzero.measure.naive_loop import NaiveLoop
from deepzero.randomness import derive_seed
from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell, Measurement
from deepzero.reproduce.experiment import MISSING, Experiment, Outcomes, Presentation, Scale
from deepzero.reproduce.paper import published as paper
from deepzero.reproduce.presentation import spread_text
from deepzero.stopwatch import StageStopwatch, seconds_of
from deepzero.tasks.classification import DataConfig

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


def cells(scale: Scale) -> Iterator[Cell]:
    """Both estimators one by one, and coordinates by propagation, at every depth."""
    for depth in scale["depths"]:
        common = {"depth": depth, "data_name": scale.images.name, "batch_size": scale.images.batch_size}
        for method in ("RGE", "CGE"):
            options = {**common, "method": method, "queries": scale["queries"]}
            yield Cell(labels={"depth": depth, "method": method}, work=Measurement(stages, options))
        yield Cell(
            labels={"depth": depth, "method": PROPAGATED},
            work=Measurement(propagation, {**common, "repeats": scale["repeats"]}),
        )


PROPAGATED = "CGE, difference propagation"


def present(outcomes: Outcomes, _: Scale) -> Presentation:
    """Seconds by stage, ours and the paper's, and the time of a whole training run by number of parameters."""
    rows: list[list[str]] = []
    totals: dict[str, dict[int, float]] = {}
    for depth in outcomes.labelled("depth"):
        of = {run.labels["method"]: run.result for run in outcomes.where(depth=depth)}
        for method in ("RGE", "CGE"):
            if method in of:
                d = of[method]["d"]
                published = paper.TAB_A1[method].get(d)
                seconds = [of[method][stage] for stage in STAGES]
                totals.setdefault(method, {})[d] = sum(seconds)
                theirs = [f"{value:g}" for value in published] if published else [MISSING] * len(STAGES)
                rows.append([f"{d:,}", method, *(f"{s:.3g}" for s in seconds), f"{sum(seconds):.3g}", *theirs])
        if PROPAGATED in of:
            d, seconds = of[PROPAGATED]["d"], of[PROPAGATED]["seconds"]
            totals.setdefault(PROPAGATED, {})[d] = sum(seconds) / len(seconds)
            rows.append([f"{d:,}", PROPAGATED, *[MISSING] * 4, spread_text(seconds), *[MISSING] * 4])
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
        "smoke": Scale(
            caption="Digits, batch of 16, one depth, 20 queries.",
            data=DataConfig(name="digits", batch_size=16),
            grid={"depths": (1,), "queries": 20, "repeats": 2},
        ),
        "small": Scale(
            caption="Noise of 3x32x32, batch of 128; 100 queries of each kind are timed, and 3 estimates.",
            data=DataConfig(name="cifar10", batch_size=128),
            grid={"depths": (1, 2, 3, 4, 5), "queries": 100, "repeats": 3},
        ),
        "paper": Scale(
            caption="Noise of 3x32x32, batch of 256; every query is timed, and 5 estimates.",
            data=DataConfig(name="cifar10", batch_size=256),
            grid={"depths": (1, 2, 3, 4, 5), "queries": 12_610, "repeats": 5},
        ),
    },
    cells=cells,
    present=present,
)
