"""Tab. 2: certified accuracy of a black-box classifier behind a denoiser, by how the denoiser is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deepzero.data.data_files import candidate_folders, not_found
from deepzero.recipes.defense_recipes import RECIPES, with_method
from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell, Labels, Place
from deepzero.reproduce.experiment import MISSING, Experiment, Outcomes, Presentation, Scale
from deepzero.reproduce.paper import published as paper
from deepzero.tasks.defense import METHODS, CertifyConfig, DefenseConfig, DenoiserConfig, StageConfig, certify, defend
from deepzero.tasks.defense.defense_config import DENOISER, FO_DS, OPAQUE, QUERYING, SMOOTHING, ZO_DS
from deepzero.training.metrics import read_metrics

CLASSIFIER = "classifier.onnx"
"""The model file of somebody else's classifier, beside the images."""
TARGET, METHOD, BUDGET = "classifier", "method", "budget"
POINTS = 40
"""Of the curve of the loss."""


@dataclass(frozen=True)
class Defense:
    """A denoiser trained and certified, continued where it was stopped.

    Its result holds certified accuracies by radius, the average certified radius, queries, seconds, and the loss by
    queries.

    Attributes:
        config: of the defense.
        certification: of the pair.
        given: whether the classifier is the file beside the images; else it is one of our own.
        shared: name of the folder of the stages that cells share.
    """

    config: DefenseConfig
    certification: CertifyConfig
    given: bool
    shared: str

    def settings(self) -> dict[str, Any]:
        """Both configurations, and whose classifier it is."""
        return {
            "defense": asdict(self.config),
            "certification": asdict(self.certification),
            "classifier": CLASSIFIER if self.given else "our own",
        }

    def run(self, folder: Path, place: Place) -> dict[str, Any] | None:
        """Train, certify, and read what came of it."""
        out = folder / "run"
        done = defend(
            self.config,
            out=out,
            resume=(out / "run.json").exists(),
            classifier=self._classifier(place) if self.given else None,
            stages=folder.parent / self.shared,
            data_dir=place.data_dir,
            max_seconds=place.stop.remaining,
        )
        if done.summary is None:
            return None
        found = certify(out, self.certification, data_dir=place.data_dir, max_seconds=place.stop.remaining)
        if found.result is None:
            return None
        return {
            "radii": found.result["radii"],
            "certified_accuracy": found.result["certified_accuracy"],
            "average_certified_radius": found.result["average_certified_radius"],
            "curve": found.result["curve"],
            "queries": done.summary["queries"],
            "seconds": done.summary["seconds"],
            "classifier_sha256": done.summary["classifier_sha256"],
            "loss": _losses(out / "finetuning" / "metrics.jsonl"),
        }

    def forecast(self, _: Place) -> float | None:
        """Not known before it is run: a query costs what the classifier costs."""
        return None

    def _classifier(self, place: Place) -> Path:
        folders = candidate_folders(self.config.data.name, place.data_dir)
        found = next((folder / CLASSIFIER for folder in folders if (folder / CLASSIFIER).is_file()), None)
        if found is None:
            raise not_found(
                f"The classifier {CLASSIFIER}",
                folders,
                where_to_get=(
                    "It is an ONNX file that takes images in [0, 1]; for CIFAR-10, "
                    "benchmarks/third_party_classifier.py makes it from a package."
                ),
                what_to_put=CLASSIFIER,
            )
        return found


def _losses(path: Path) -> list[list[float]]:
    """Queries and mean loss of equal parts of the finetuning."""
    if not path.exists():
        return []
    steps = [record for record in read_metrics(path) if record["kind"] == "step"]
    size = max(1, len(steps) // POINTS)
    parts = [steps[k : k + size] for k in range(0, len(steps), size)]
    return [[part[-1]["queries"], sum(step["loss"] for step in part) / len(part)] for part in parts]


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method at every budget, in front of every classifier."""
    for name, target in scale["targets"].items():
        for seed in range(target.get("seeds", scale.seeds)):
            for method in METHODS:
                if method == FO_DS and target["given"]:
                    continue  # a model file is no white box
                budgets = target["budgets"] if method in QUERYING else target["budgets"][-1:]
                for budget in budgets:
                    config = with_method(target["config"](), method)
                    rate = target.get("rates", {}).get(method, 1.0) * config.finetuning.learning_rate
                    finetuning = replace(config.finetuning, learning_rate=rate)
                    config = replace(config, budget=budget, seed=seed, finetuning=finetuning)
                    labels: Labels = {TARGET: name, METHOD: method, BUDGET: budget, "seed": seed}
                    shared = f"stages-{config.data.name}-{seed}"
                    yield Cell(labels=labels, work=Defense(config, target["certification"], target["given"], shared))


def present(outcomes: Outcomes, _: Scale) -> Presentation:
    """Certified accuracy by radius, and the average certified radius by queries."""
    tables, figures = [], []
    for name in outcomes.labelled(TARGET):
        of = outcomes.where(**{TARGET: name})
        tables.append(_table(of, name))
        figures += [_by_queries(of, name), _by_radius(of, name)]
    tables.append(
        Table(
            title="The paper: ImageNet-10, 1,152 queries an estimate",
            columns=["radius", *paper.TAB_2],
            rows=[
                [f"{r:g}", *(f"{values[k]:.2f}" for values in paper.TAB_2.values())] for k, r in enumerate(paper.RADII)
            ],
            note="Certified accuracy, %.",
        )
    )
    return Presentation(tables=tables, figures=figures)


def _table(outcomes: Outcomes, name: str) -> Table:
    radii = outcomes[0].result["radii"]
    rows = []
    for method in outcomes.labelled(METHOD):
        for budget in sorted(outcomes.where(**{METHOD: method}).labelled(BUDGET)):
            of = outcomes.where(**{METHOD: method, BUDGET: budget})
            queries = of.mean("queries") or 0.0
            accuracies = [Outcomes(_entry(o, k) for o in of).percent("value") for k in range(len(radii))]
            radius = of.mean("average_certified_radius")
            rows.append(
                [
                    method,
                    f"{queries:,.0f}",
                    *accuracies,
                    MISSING if radius is None else f"{radius:.4f}",
                    of.duration(),
                ]
            )
    return Table(
        title=f"Certified accuracy, %: {name}",
        columns=["method", "queries", *(f"r = {radius:g}" for radius in radii), "average radius", "time of a run"],
        rows=rows,
        note="Mean ± standard deviation (runs). Times hold no certification, and the stages that runs share only once.",
    )


def _entry(outcome: Any, k: int) -> Any:
    return replace(outcome, result={"value": outcome.result["certified_accuracy"][k]})


def _by_queries(outcomes: Outcomes, name: str) -> Figure:
    """The average certified radius after so many queries; all begin at that of the pretrained denoiser."""
    start = outcomes.where(**{METHOD: DENOISER}).mean("average_certified_radius")
    series = []
    for method in outcomes.labelled(METHOD):
        if method not in QUERYING:
            continue
        of = outcomes.where(**{METHOD: method})
        budgets = sorted(of.labelled(BUDGET))
        parts = [of.where(**{BUDGET: budget}) for budget in budgets]
        points = [(part.mean("queries") or 0.0, part.mean("average_certified_radius") or 0.0) for part in parts]
        spread = [part.deviation("average_certified_radius") for part in parts]
        if start is not None:
            points, spread = [(0.0, start), *points], [0.0, *spread]
        series.append(Series(name=method, x=[x for x, _ in points], y=[y for _, y in points], spread=spread))
    reference = outcomes.where(**{METHOD: "fo-ds"}).mean("average_certified_radius")
    if reference is not None and series:
        most = max(max(one.x) for one in series)
        series.append(Series(name="fo-ds (white box)", x=[0.0, most], y=[reference] * 2, reference=True))
    return Figure(
        title=f"Average certified radius against queries: {name}",
        x_label="queries of the classifier",
        y_label="average certified radius",
        series=series,
    )


def _by_radius(outcomes: Outcomes, name: str) -> Figure:
    """Certified accuracy against radius at the largest budget, first seed."""
    most = max(outcomes.labelled(BUDGET))
    seed = min(outcomes.labelled("seed"))
    series = []
    for outcome in outcomes.where(**{BUDGET: most, "seed": seed}):
        first = outcome.result["certified_accuracy"][0]
        points = [(0.0, first), *((radius, accuracy) for radius, accuracy in outcome.result["curve"])]
        series.append(
            Series(
                name=str(outcome.labels[METHOD]),
                x=[x for x, _ in points],
                y=[100 * y for _, y in points],
                reference=outcome.labels[METHOD] in (SMOOTHING, DENOISER),
            )
        )
    return Figure(
        title=f"Certified accuracy against radius: {name}",
        x_label="radius",
        y_label="certified accuracy (%)",
        series=series,
    )


def _smoke() -> DefenseConfig:
    config = RECIPES.find("digits").config()
    return replace(
        config,
        data=replace(config.data, limit=200, batch_size=16),
        denoiser=DenoiserConfig(depth=3, width=4),
        classifier=StageConfig(steps=60, batch_size=32),
        pretraining=StageConfig(steps=20, batch_size=16),
        finetuning=replace(config.finetuning, batch_size=16),
        directions=4,
    )


def _small_cifar10() -> DefenseConfig:
    """What two cores can do: smaller batches, fewer directions, and less pretraining."""
    config = RECIPES.find("cifar10").config()
    return replace(
        config,
        data=replace(config.data, batch_size=16),
        pretraining=replace(config.pretraining, steps=1000),
        finetuning=replace(config.finetuning, batch_size=16, learning_rate=3e-4),
        directions=32,
    )


_DIGITS = RECIPES.find("digits")

EXPERIMENT = Experiment(
    name="tab2",
    title="Tab. 2: certified accuracy of black-box defenses",
    scales={
        "smoke": Scale(
            caption="Digits, a denoiser of 3 layers of 4 channels, a handful of steps.",
            data=_DIGITS.config().data,
            grid={
                "targets": {
                    "digits": {
                        "config": _smoke,
                        "budgets": (16 * 65,),
                        "certification": CertifyConfig(images=2, trials=200, first=20, radii=(0.0, 0.25)),
                        "given": False,
                    }
                }
            },
        ),
        "small": Scale(
            caption=(
                "Digits (8x8 pixels): a classifier of our own behind an ONNX file, a DnCNN of 5 layers of 32 channels, "
                "noise of 0.35, 10,000 samples for each of 100 test images. CIFAR-10, one seed: the classifier of a "
                "third party (76.57 % on the test images), a DnCNN of 7 layers of 32 channels, noise of 0.25, 1,000 "
                "samples for each of 50 test images. Certificates hold with confidence 99.9 %."
            ),
            data=_DIGITS.config().data,
            seeds=3,
            grid={
                "targets": {
                    "digits": {
                        "config": _DIGITS.config,
                        "budgets": (333_000, 1_000_000),
                        "certification": CertifyConfig(),
                        "given": False,
                    },
                    "cifar10": {
                        "config": _small_cifar10,
                        "budgets": (100_000,),
                        "certification": CertifyConfig(images=50, trials=1000, radii=(0.0, 0.25, 0.5)),
                        "given": True,
                        "seeds": 1,
                        "rates": {ZO_DS: 0.1, OPAQUE: 0.1},  # few directions in 3,072 dimensions: noisy
                    },
                }
            },
        ),
        "paper": Scale(
            caption=(
                "ImageNet-10 from a folder of images, a classifier from a model file, a DnCNN of 17 layers of 64 "
                "channels, 1,152 queries an estimate. The paper states neither noise nor batch: 0.25 and 64 here."
            ),
            data=RECIPES.find("imagenet10").config().data,
            grid={
                "targets": {
                    "imagenet10": {
                        "config": RECIPES.find("imagenet10").config,
                        "budgets": (RECIPES.find("imagenet10").config().budget,),
                        "certification": CertifyConfig(images=500),
                        "given": True,
                    }
                }
            },
        ),
    },
    cells=cells,
    present=present,
)
