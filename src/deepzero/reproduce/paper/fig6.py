"""Fig. 6: a network that corrects a coarse flow solver, by how it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deepzero.files import json_object, read_from
from deepzero.recipes.correction_recipes import RECIPES
from deepzero.report import Figure, Picture, Series, Table
from deepzero.report.correction_pages import ERRORS, still
from deepzero.reproduce.cells import Cell, Workplace
from deepzero.reproduce.experiment import Experiment, Scale, Seeds
from deepzero.reproduce.paper import published
from deepzero.reproduce.presentation import MISSING, Outcome, Outcomes, Presentation, spread_text
from deepzero.tasks.correction import METHODS, CorrectionConfig, correct
from deepzero.tasks.correction.correction_config import FO_SOL, NON, QUERYING, SRC
from deepzero.tasks.correction.correction_time import correction_seconds

EVERY = 10
"""Steps from one error that is kept to the next."""
EARLY = 100
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

    def run(self, folder: Path, place: Workplace) -> dict[str, Any] | None:
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
        with read_from(out, advice="delete that folder to run the cell again"):
            return self._result(out, done.summary)

    def _result(self, out: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
        errors = json_object(out / ERRORS)
        pictured = self.config.seed == PICTURED and self.config.method != SRC
        return {
            **{name: summary[name] for name in ("mae", "source_mae", "solver_calls", "skipped", "curve")},
            "seconds": summary["training_seconds"],
            "maes": errors["mae"],
            "by_step": errors["by_step"][::EVERY],
            **({"picture": still(out)} if pictured else {}),
        }

    def forecast(self, place: Workplace) -> float:
        """By timing single steps."""
        return correction_seconds(self.config, place.data_dir)


@dataclass(frozen=True, kw_only=True)
class Fig6Scale(Scale):
    """The scale of Fig. 6.

    Attributes:
        config: of the runs, but for method, seed and steps.
        methods: of training, or variants of one (``non, longer``).
        steps: of Adam, where they are not those of the configuration.
        seeds: runs of each kind.
    """

    config: CorrectionConfig
    methods: tuple[str, ...] = tuple(METHODS)
    steps: Mapping[str, int] = field(default_factory=dict)
    seeds: Seeds = 1


def cells(scale: Fig6Scale) -> Iterator[Cell]:
    """Every method; the solver alone once, since nothing of it is drawn."""
    for seed in range(scale.seeds):
        for name in scale.methods:
            if name == SRC and seed:
                continue
            steps = scale.steps.get(name, scale.config.steps)
            config = replace(scale.config, steps=steps, method=_base(name), seed=seed)
            yield Cell(labels={"method": name, "seed": seed}, work=Correction(config))


def _base(name: str) -> str:
    """The method of a variant: ``non`` of ``non, longer``."""
    return name.partition(",")[0]


def present(outcomes: Outcomes, _: Fig6Scale) -> Presentation:
    """Errors by method, beside the paper's; errors against solver calls, and over time."""
    methods = outcomes.by("method")
    if not methods:
        return Presentation()
    pictures = [
        Picture(
            title=f"{outcome.labels['method']}: {outcome.result['picture']['title']}",
            source=outcome.result["picture"]["source"],
        )
        for outcome in outcomes
        if "picture" in outcome.result
    ]
    return Presentation(
        tables=[_table(methods, outcomes.mean("source_mae"))],
        figures=[_by_calls(methods), _by_step(methods)],
        pictures=pictures,
    )


def _table(methods: Mapping[str, Outcomes], source: float | None) -> Table:
    rows = []
    for method, of in methods.items():
        mae, theirs = of.mean("mae"), published.FIG6.get(method)
        flows = [value for outcome in of for value in outcome.result["maes"] if value is not None]
        early = [error for outcome in of if (error := _early_error(outcome)) is not None]
        rows.append(
            [
                method,
                spread_text(of.values("mae"), 4),
                spread_text(early, 4),
                f"{min(flows):.3f} to {max(flows):.3f}" if flows else MISSING,
                MISSING if mae is None or not source else f"{mae / source:.3f}",
                MISSING if theirs is None else f"{theirs / published.FIG6[SRC]:.3f}",
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
            f"up to step {EARLY}",
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
    texts = [f"{mae:.3f}" + ("" if name == SRC else f" ({name})") for name, mae in published.FIG6.items()]
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def _early_error(outcome: Outcome) -> float | None:
    """Mean error of the first steps; None if a flow has blown up by then."""
    first = outcome.result["by_step"][: EARLY // EVERY]
    return None if None in first else sum(first) / len(first)


def _by_calls(methods: Mapping[str, Outcomes]) -> Figure:
    """The error by solver calls of the training; methods whose training needs none are lines."""
    series, most = [], max(of.mean("solver_calls") or 0.0 for of in methods.values())
    for method, of in methods.items():
        if _base(method) in QUERYING:
            points = zip(*(outcome.result["curve"] for outcome in of), strict=False)
            parts = [Outcomes(Outcome({}, values) for values in point) for point in points]
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


def _by_step(methods: Mapping[str, Outcomes]) -> Figure:
    """The growth of errors, mean over flows and seeds."""
    series = []
    for method, of in methods.items():
        steps = zip(*(outcome.result["by_step"] for outcome in of), strict=True)
        points = [[value for value in step if value is not None] for step in steps]
        means = {1.0 + EVERY * k: sum(point) / len(point) for k, point in enumerate(points) if point}
        series.append(Series(name=method, x=list(means), y=list(means.values()), reference=method == SRC))
    return Figure(
        title="Error over time on the test flows",
        x_label="step",
        y_label="mean absolute error",
        series=series,
        y_log=True,
    )


LONGER = f"{NON}, longer"

EXPERIMENT = Experiment(
    name="fig6",
    title="Fig. 6: a network that corrects a coarse flow solver",
    scales={
        "smoke": Fig6Scale(
            caption="A grid of 8x16 cells and a few steps: that everything works. Its errors mean nothing.",
            config=RECIPES.find("wake-tiny").config(),
        ),
        "small": Fig6Scale(
            caption=(
                "The paper's flows (64x128 cells as reference after 2,500 steps of warm-up, 32x64 as source, 500 "
                "frames), a network of 2,618 weights in place of 56,898 whose last layer starts at 0, 2 unrolled "
                "steps in place of 16, one simulation a batch in place of 3, Adam at 1e-3 with cosine decay in place "
                "of 1e-4. Steps of Adam: 700 for non, zo-sol and zo-sol-rge; 1,600 for fo-sol and non, longer, about "
                "as many as opaque and opaque-emulator take within the solver calls of zo-sol. The coordinates of "
                "zo-sol are the same part of every layer, and all biases."
            ),
            config=RECIPES.find("wake-small").config(),
            methods=(*(name for name in METHODS if name != FO_SOL), LONGER, FO_SOL),
            # As many as the methods of ours take within the solver calls of zo-sol.
            steps={LONGER: 1600, FO_SOL: 1600},
            seeds=3,
        ),
        "paper": Fig6Scale(
            caption="The paper's setting: 56,898 weights, 16 unrolled steps, ten epochs of Adam at 1e-4.",
            config=RECIPES.find("wake").config(),
        ),
    },
    cells=cells,
    present=present,
)
