"""Table A1 and Fig. A2: where the time of an estimate goes when queries are made one by one, and how it grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepzero import models
from deepzero.coordinates import Coordinates
from deepzero.estimator import CGE
from deepzero.losses import LOSSES
from deepzero.measure.cases import Batch, digits_batch, noise_batch
from deepzero.measure.noise import image_shape
from deepzero.randomness import derive_seed
from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell, SingleMeasurement
from deepzero.reproduce.experiment import Experiment, Scale
from deepzero.reproduce.paper import published
from deepzero.reproduce.presentation import MISSING, Outcomes, Presentation, spread_text
from deepzero.stopwatch import StageStopwatch, seconds_of

STAGES = ("directions", "perturbation", "inference", "arithmetic")
"""Stages 1 to 4 of the paper's Appendix C."""

STEP_SIZE = 5e-3
STEPS, EPOCHS = 390, 50
"""Steps of an epoch of CIFAR-10 in batches of 128, and the paper's epochs."""


class OneByOne:
    """Estimates as they are usually written: one full forward a query, in train mode, without autograd."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.parameters: list[Tensor] = list(model.parameters())
        self.watch = StageStopwatch(STAGES)
        self.base = self.loss()

    @torch.no_grad()
    def loss(self) -> float:
        """One forward."""
        x, y = self.batch
        return float(LOSSES["cross-entropy"](self.model(x), y))

    @torch.no_grad()
    def random(self, queries: int) -> list[Tensor]:
        """So many queries of RGE: a gaussian direction over all parameters, added, and taken away again."""
        saved = [p.clone() for p in self.parameters]
        gradient = [torch.zeros_like(p) for p in self.parameters]
        generator = torch.Generator(saved[0].device).manual_seed(derive_seed(0, "directions"))
        for _ in range(queries):
            with self.watch("directions"):
                u = [torch.empty_like(p).normal_(generator=generator) for p in self.parameters]
            with self.watch("perturbation"):
                torch._foreach_add_(self.parameters, u, alpha=STEP_SIZE)
            with self.watch("inference"):
                value = self.loss()
            with self.watch("perturbation"):
                torch._foreach_copy_(self.parameters, saved)
            with self.watch("arithmetic"):
                torch._foreach_add_(gradient, u, alpha=(value - self.base) / STEP_SIZE / queries)
        return gradient

    @torch.no_grad()
    def coordinates(self, chosen: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Queries of CGE at pairs of a parameter's number and a flat index: one entry is moved and put back."""
        gradient = [torch.zeros_like(p) for p in self.parameters]
        for number, index in chosen:
            entries = self.parameters[number].view(-1)
            with self.watch("perturbation"):
                saved = entries[index].item()
                entries[index] += STEP_SIZE
            with self.watch("inference"):
                value = self.loss()
            with self.watch("perturbation"):
                entries[index] = saved
            with self.watch("arithmetic"):
                gradient[number].view(-1)[index] = (value - self.base) / STEP_SIZE
        return gradient


def stages(*, depth: int, method: str, data_name: str, batch_size: int, queries: int, device: str) -> dict[str, Any]:
    """Seconds of one estimate by stage; ``queries`` of its d are timed, and every query costs the same."""
    model, batch = _problem(depth, data_name, batch_size, device)
    sizes = [p.numel() for p in model.parameters()]
    d = sum(sizes)
    count = min(queries, d)
    loop = OneByOne(model, batch)
    loop.loss()
    if method == "RGE":
        loop.random(count)
    else:
        pairs = [(k, i) for k, size in enumerate(sizes) for i in range(size)]
        order = torch.randperm(d, generator=torch.Generator().manual_seed(derive_seed(0, "coordinates"))).tolist()
        loop.coordinates([pairs[i] for i in order[:count]])
    return {"d": d, "timed_queries": count, **{name: s * d / count for name, s in loop.watch.seconds.items()}}


def propagation(*, depth: int, data_name: str, batch_size: int, repeats: int, device: str) -> dict[str, Any]:
    """Seconds of whole CGE estimates by difference propagation."""
    model, batch = _problem(depth, data_name, batch_size, device)
    zo = CGE(model, loss=LOSSES["cross-entropy"], step_size=STEP_SIZE, sparsity=_dense(model))
    zo.estimate(*batch)  # exports, compiles and verifies
    seconds = [seconds_of(lambda: zo.estimate(*batch)) for _ in range(repeats)]
    return {"d": sum(p.numel() for p in model.parameters()), "seconds": seconds}


def _dense(model: nn.Module) -> Coordinates:
    return Coordinates.dense({name: p.shape for name, p in model.named_parameters()})


def _problem(depth: int, data_name: str, batch_size: int, device: str) -> tuple[nn.Module, Batch]:
    channels, size = image_shape(data_name)
    model = models.build("simple_cnn", in_channels=channels, image_size=size, depth=depth).to(device).train()
    x, y = (digits_batch if data_name == "digits" else noise_batch)(batch_size, 0)
    return model, (x.to(device), y.to(device))


PROPAGATED = "CGE, difference propagation"


@dataclass(frozen=True, kw_only=True)
class TableA1Scale(Scale):
    """The scale of Table A1.

    Attributes:
        depths: of the network.
        data_name: data set whose images, or noise of their shape, are the batch.
        batch_size: images of the batch.
        queries: of an estimate that are timed when they are made one by one.
        repeats: estimates by difference propagation that are timed.
    """

    depths: tuple[int, ...] = (1, 2, 3, 4, 5)
    data_name: str = "cifar10"
    batch_size: int
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
