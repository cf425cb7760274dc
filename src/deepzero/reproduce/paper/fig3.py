"""Fig. 3: coordinate-wise estimates without feature reuse, with it, and by difference propagation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from deepzero.measure.cases import cnn_case, problem
from deepzero.measure.rounds import Spread, by_side, in_turns, rates, ratio
from deepzero.measure.sides import BlockReuse, DeepZero, Naive, Side, check_agreement
from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell, SingleMeasurement
from deepzero.reproduce.experiment import Experiment, Scale
from deepzero.reproduce.presentation import Outcomes, Presentation

SIDES = {"naive": "no reuse", "block_reuse": "feature reuse", "deepzero": "difference propagation"}


def compare(*, depth: int, data_name: str, batch_size: int, rounds: int, seconds: float, device: str) -> dict[str, Any]:
    """Seconds of a dense estimate on the simple CNN by each side, in turns; the sides must agree first."""
    task = problem(cnn_case(depth, data_name), batch=batch_size).on(device)
    naive, reuse, deepzero = Naive(task), BlockReuse(task), DeepZero(task)
    agreement = check_agreement(naive, [reuse, deepzero])
    sides: list[Side] = [naive, reuse, deepzero]
    timings = by_side(in_turns({side.name: partial(side.time, seconds / rounds) for side in sides}, rounds))
    naive_rates = rates(timings[naive.name])
    return {
        "d": task.coordinates.count,
        "seconds": {name: asdict(Spread.of(t.seconds for t in timed)) for name, timed in timings.items()},
        "speed_up": {name: asdict(ratio(rates(timed), naive_rates)) for name, timed in timings.items()},
        "deviation": agreement.deviation,
        "tolerance": agreement.tolerance,
    }


@dataclass(frozen=True, kw_only=True)
class DepthsScale(Scale):
    """The scale of an experiment that times estimates on the simple CNN by its depth.

    Attributes:
        depths: of the network.
        data_name: data set whose images, or noise of their shape, are the batch.
        batch_size: images of the batch.
    """

    depths: tuple[int, ...] = (1, 2, 3, 4, 5)
    data_name: str = "cifar10"
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Fig3Scale(DepthsScale):
    """The scale of Fig. 3.

    Attributes:
        rounds: in which the sides take turns.
        seconds: of timing a side, in all rounds.
    """

    rounds: int
    seconds: float


def cells(scale: Fig3Scale) -> Iterator[Cell]:
    """Every depth."""
    for depth in scale.depths:
        options = {
            "depth": depth,
            "data_name": scale.data_name,
            "batch_size": scale.batch_size,
            "rounds": scale.rounds,
            "seconds": scale.seconds,
        }
        yield Cell(labels={"depth": depth}, work=SingleMeasurement(compare, options, seconds=3 * scale.seconds))


def present(outcomes: Outcomes, _: Fig3Scale) -> Presentation:
    """Seconds of an estimate and speed-ups by number of parameters."""
    rows = []
    for run in outcomes:
        seconds, gain = run.result["seconds"], run.result["speed_up"]
        rows.append(
            [
                f"{run.result['d']:,}",
                *(f"{seconds[side]['median']:.3g}" for side in SIDES),
                *(_range(gain[side]) for side in ("block_reuse", "deepzero")),
            ]
        )
    table = Table(
        title="Seconds of a dense estimate",
        columns=["d", *SIDES.values(), "gain by reuse", "gain by propagation"],
        rows=rows,
        note=(
            "Median of the rounds (lowest to highest); gains over no reuse, round by round. All sides answer the same "
            "queries. The paper: about 2x by feature reuse."
        ),
    )
    figure = Figure(
        title="Time of a dense estimate against the number of parameters",
        x_label="parameters d",
        y_label="seconds",
        series=[
            Series(
                name=text,
                x=[run.result["d"] for run in outcomes],
                y=[run.result["seconds"][side]["median"] for run in outcomes],
            )
            for side, text in SIDES.items()
        ],
        y_log=True,
    )
    return Presentation(tables=[table], figures=[figure])


def _range(spread: dict[str, float]) -> str:
    return f"{spread['median']:.1f}x ({spread['min']:.1f} to {spread['max']:.1f})"


EXPERIMENT = Experiment(
    name="fig3",
    title="Fig. 3: feature reuse",
    scales={
        "smoke": Fig3Scale(
            caption="Digits, batch of 16, depths 1 and 2.",
            depths=(1, 2),
            data_name="digits",
            batch_size=16,
            rounds=1,
            seconds=0.2,
        ),
        "small": Fig3Scale(
            caption="Noise of 3x32x32, batch of 128; each side is timed for 20 s at every depth, if need be in part.",
            batch_size=128,
            rounds=3,
            seconds=20.0,
        ),
        "paper": Fig3Scale(
            caption="Noise of 3x32x32, batch of 256; each side is timed for 5 minutes at every depth.",
            batch_size=256,
            rounds=5,
            seconds=300.0,
        ),
    },
    cells=cells,
    present=present,
)
