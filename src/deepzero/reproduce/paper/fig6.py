"""Fig. 6: a network that corrects a coarse flow solver, by how it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deepzero.files import json_object
from deepzero.recipes.correction_recipes import RECIPES
from deepzero.report import Figure, Picture, Series, Table
from deepzero.report.correction_pages import ERRORS, still
from deepzero.reproduce.cells import Cell, Outcome, Place
from deepzero.reproduce.experiment import MISSING, Experiment, Outcomes, Presentation, Scale
from deepzero.reproduce.paper import published as paper
from deepzero.tasks.correction import METHODS, CorrectionConfig, correct
from deepzero.tasks.correction.correction_config import FO_SOL, NON, QUERYING, SRC
from deepzero.tasks.correction.correction_time import correction_seconds

METHOD = "method"
EVERY = 10
"""Of the errors by step, which are kept."""
SOON = 100
"""Steps before the phase of the vortices, which no method controls, decides on the error."""
PICTURED = 0
"""Seed of the runs whose pictures are kept."""


@dataclass(frozen=True)
class Correction:
    """A correction, continued where it was stopped.

    Its result holds mean absolute errors on the test flows, of the network and of the solver alone, the curve of the
    training, and the numbers of solver calls.
    """

    config: CorrectionConfig

    def settings(self) -> dict[str, Any]:
        """The configuration."""
        return {"correction": asdict(self.config)}

    def run(self, folder: Path, place: Place) -> dict[str, Any] | None:
        """Train, simulate the test flows, and read what came of it."""
        out = folder / "run"
        done = correct(
            self.config,
            out=out,
            resume=(out / "run.json").exists(),
            data_dir=place.data_dir,
            max_seconds=place.stop.remaining,
        )
        if done.summary is None:
            return None
        errors = json_object(out / ERRORS)
        pictured = self.config.seed == PICTURED and self.config.method != SRC
        return {
            **{name: done.summary[name] for name in ("mae", "source_mae", "solver_calls", "skipped", "curve")},
            "seconds": done.summary["training_seconds"],
            "maes": errors["mae"],
            "by_step": errors["by_step"][::EVERY],
            **({"picture": still(out)} if pictured else {}),
        }

    def forecast(self, place: Place) -> float:
        """By timing single steps."""
        return correction_seconds(self.config, place.data_dir)


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method; the solver alone once, since nothing of it is drawn."""
    for seed in range(scale.seeds):
        for name, changes in scale["methods"].items():
            if name == SRC and seed:
                continue
            config = replace(scale["config"](), **changes, method=_base(name), seed=seed)
            yield Cell(labels={METHOD: name, "seed": seed}, work=Correction(config))


def _base(name: str) -> str:
    """The method of a variant: ``non`` of ``non, longer``."""
    return name.partition(",")[0]


def present(outcomes: Outcomes, _: Scale) -> Presentation:
    """Errors by method, beside the paper's; errors against solver calls, and over time."""
    methods = outcomes.labelled(METHOD)
    pictures = [
        Picture(
            title=f"{outcome.labels[METHOD]}: {outcome.result['picture']['title']}",
            source=outcome.result["picture"]["source"],
        )
        for outcome in outcomes
        if "picture" in outcome.result
    ]
    if not methods:
        return Presentation()
    return Presentation(
        tables=[_table(outcomes, methods)],
        figures=[_by_calls(outcomes, methods), _by_step(outcomes, methods)],
        pictures=pictures,
    )


def _table(outcomes: Outcomes, methods: Sequence[str]) -> Table:
    source = outcomes.mean("source_mae")
    rows = []
    for method in methods:
        of = outcomes.where(**{METHOD: method})
        mae, published = of.mean("mae"), paper.FIG6.get(method)
        flows = [value for outcome in of for value in outcome.result["maes"] if value is not None]
        rows.append(
            [
                method,
                _spread(of, "mae"),
                _spread(Outcomes(map(_soon, of)), "soon"),
                f"{min(flows):.3f} to {max(flows):.3f}" if flows else MISSING,
                MISSING if mae is None or not source else f"{mae / source:.3f}",
                MISSING if published is None else f"{published / paper.FIG6[SRC]:.3f}",
                f"{of.mean('solver_calls') or 0:,.0f}",
                f"{of.mean('skipped') or 0:,.0f}",
                of.duration(),
            ]
        )
    return Table(
        title="Mean absolute error over the test flows",
        columns=[
            "method",
            "error",
            f"up to step {SOON}",
            "single flows",
            "ratio to src",
            "paper: ratio to src",
            "solver calls",
            "without an answer",
            "time of the training",
        ],
        rows=rows,
        note=(
            "Mean ± standard deviation over seeds (runs), over all steps of a flow and over the first. "
            + " ".join(f"{name}: {METHODS[name]}." for name in dict.fromkeys(map(_base, methods)))
            + f" The paper's errors are {_published()}."
        ),
    )


def _published() -> str:
    """The paper's errors in words."""
    texts = [f"{mae:.3f}" + ("" if name == SRC else f" ({name})") for name, mae in paper.FIG6.items()]
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def _spread(outcomes: Outcomes, key: str) -> str:
    """Mean, standard deviation, and of how many."""
    mean, count = outcomes.mean(key), len(outcomes.values(key))
    if mean is None:
        return MISSING
    return f"{mean:.4f} ± {outcomes.deviation(key):.4f} ({count})" if count > 1 else f"{mean:.4f} ({count})"


def _soon(outcome: Outcome) -> Outcome:
    """With the error of the first steps; none if a flow has blown up by then."""
    first = outcome.result["by_step"][: SOON // EVERY]
    return replace(outcome, result={"soon": None if None in first else sum(first) / len(first)})


def _by_calls(outcomes: Outcomes, methods: Sequence[str]) -> Figure:
    """The error after so many solver calls; methods that need no more of them are lines."""
    series, most = [], max(outcomes.where(**{METHOD: m}).mean("solver_calls") or 0.0 for m in methods)
    for method in methods:
        of = outcomes.where(**{METHOD: method})
        if _base(method) in QUERYING:
            curves = [outcome.result["curve"] for outcome in of]
            points = [list(point) for point in zip(*curves, strict=False)]
            parts = [Outcomes(replace(o, result=p) for o, p in zip(of, point, strict=True)) for point in points]
            parts = [part for part in parts if part.mean("mae") is not None]
            series.append(
                Series(
                    name=method,
                    x=[part.mean("solver_calls") or 0.0 for part in parts],
                    y=[part.mean("mae") or 0.0 for part in parts],
                    spread=[part.deviation("mae") for part in parts],
                )
            )
        elif (mae := of.mean("mae")) is not None:
            series.append(Series(name=method, x=[0.0, most], y=[mae] * 2, reference=True))
    return Figure(
        title="Error against solver calls of the training",
        x_label="solver calls (steps of single simulations)",
        y_label="mean absolute error",
        series=series,
    )


def _by_step(outcomes: Outcomes, methods: Sequence[str]) -> Figure:
    """How errors grow, mean over flows and seeds."""
    series = []
    for method in methods:
        runs = [outcome.result["by_step"] for outcome in outcomes.where(**{METHOD: method})]
        points = [[value for value in point if value is not None] for point in zip(*runs, strict=True)]
        known = [(1.0 + EVERY * k, sum(point) / len(point)) for k, point in enumerate(points) if point]
        series.append(Series(name=method, x=[x for x, _ in known], y=[y for _, y in known], reference=method == SRC))
    return Figure(
        title="Error over time on the test flows",
        x_label="step",
        y_label="mean absolute error",
        series=series,
        y_log=True,
    )


_SMALL = RECIPES.find("wake-small").config
_LONGER = {"steps": 1600}
"""As many steps as the methods of ours take within the solver calls of ``zo-sol``."""

EXPERIMENT = Experiment(
    name="fig6",
    title="Fig. 6: a network that corrects a coarse flow solver",
    scales={
        "smoke": Scale(
            caption="A grid of 8x16 cells and a few steps: that everything works. Its errors mean nothing.",
            grid={"config": RECIPES.find("wake-tiny").config, "methods": {name: {} for name in METHODS}},
        ),
        "small": Scale(
            caption=(
                "The paper's flows (64x128 cells as reference after 2,500 steps of warm-up, 32x64 as source, 500 "
                "frames), a network of 2,618 weights in place of 56,898 whose last layer starts at 0, 2 unrolled "
                "steps in place of 16, one simulation a batch in place of 3, Adam at 1e-3 with cosine decay in place "
                "of 1e-4. Steps of Adam: 700 for non, zo-sol and zo-sol-rge; 1,600 for fo-sol and non, longer, about "
                "as many as opaque and opaque-emulator take within the solver calls of zo-sol. The coordinates of "
                "zo-sol are the same part of every layer, and all biases."
            ),
            seeds=3,
            grid={
                "config": _SMALL,
                "methods": {
                    **{name: {} for name in METHODS if name != FO_SOL},
                    f"{NON}, longer": _LONGER,
                    FO_SOL: _LONGER,
                },
            },
        ),
        "paper": Scale(
            caption="The paper's setting: 56,898 weights, 16 unrolled steps, ten epochs of Adam at 1e-4.",
            grid={"config": RECIPES.find("wake").config, "methods": {name: {} for name in METHODS}},
        ),
    },
    cells=cells,
    present=present,
)
