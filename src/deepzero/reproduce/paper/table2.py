"""Tab. 2: certified accuracy of a black-box classifier behind a denoiser, by how the denoiser is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deepzero.data.data_files import candidate_folders, not_found
from deepzero.files import read_from
from deepzero.recipes.defense_recipes import RECIPES, with_method
from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell, Labels, Workplace
from deepzero.reproduce.experiment import Experiment, Scale, Seeds
from deepzero.reproduce.paper import published
from deepzero.reproduce.presentation import MISSING, Outcomes, Presentation, spread_text
from deepzero.tasks.defense import METHODS, CertifyConfig, DefenseConfig, DenoiserConfig, StageConfig, certify, defend
from deepzero.tasks.defense.defense_config import DENOISER, FO_DS, OPAQUE, QUERYING, SMOOTHING, ZO_DS
from deepzero.training.metrics import read_metrics

CLASSIFIER = "classifier.onnx"
"""The model file of somebody else's classifier, beside the images."""
POINTS = 40
"""Number of points of the curve of the loss."""
RADIUS = "average_certified_radius"


@dataclass(frozen=True)
class Defense:
    """A denoiser trained and certified, continued where it was stopped.

    Its result holds certified accuracies by radius, the average certified radius, queries, seconds, and the loss by
    queries.

    Attributes:
        config: of the defense.
        certification: of the pair.
        model_file: True if the classifier is the file beside the images; else it is one of our own.
        shared: name of the folder of the stages that cells share.
    """

    config: DefenseConfig
    certification: CertifyConfig
    model_file: bool
    shared: str

    def settings(self) -> dict[str, Any]:
        """Both configurations, and whose classifier it is."""
        return {
            "defense": asdict(self.config),
            "certification": asdict(self.certification),
            "classifier": CLASSIFIER if self.model_file else "our own",
        }

    def run(self, folder: Path, place: Workplace) -> dict[str, Any] | None:
        """Train, certify, and read what came of it."""
        out = folder / "run"
        done = defend(
            self.config,
            out=out,
            resume=(out / "run.json").exists(),
            classifier=self._classifier(place) if self.model_file else None,
            stages=folder.parent / self.shared,
            data_dir=place.data_dir,
            max_seconds=place.stop.remaining,
        )
        if done.summary is None:
            return None
        certificate = certify(out, self.certification, data_dir=place.data_dir, max_seconds=place.stop.remaining).result
        if certificate is None:
            return None
        return {
            **{name: certificate[name] for name in ("radii", "certified_accuracy", RADIUS, "curve")},
            **{name: done.summary[name] for name in ("queries", "seconds", "classifier_sha256")},
            "loss": _losses(out / "finetuning" / "metrics.jsonl"),
        }

    def forecast(self, _: Workplace) -> float | None:
        """None: a query costs what the classifier costs, which is not known."""
        return None

    def _classifier(self, place: Workplace) -> Path:
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
    with read_from(path, advice="delete the folder of that cell to run it again"):
        steps = [record for record in read_metrics(path) if record["kind"] == "step"]
        size = max(1, len(steps) // POINTS)
        parts = [steps[k : k + size] for k in range(0, len(steps), size)]
        return [[part[-1]["queries"], sum(step["loss"] for step in part) / len(part)] for part in parts]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A classifier that is defended.

    Attributes:
        config: of the defenses, but for method, budget and seed.
        budgets: queries of the classifier; methods that make none stand with the last.
        certification: of every denoiser.
        model_file: True if the classifier is the file beside the images; else it is one of our own.
        seeds: runs of each kind in place of the scale's.
        rates: factors of the learning rate of the finetuning by method, where they are not 1.
    """

    config: DefenseConfig
    budgets: tuple[int, ...]
    certification: CertifyConfig
    model_file: bool
    seeds: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    def defense(self, method: str, budget: int, seed: int) -> Defense:
        """One method trained within a budget."""
        config = with_method(self.config, method)
        rate = self.rates.get(method, 1.0) * config.finetuning.learning_rate
        finetuning = replace(config.finetuning, learning_rate=rate)
        config = replace(config, budget=budget, seed=seed, finetuning=finetuning)
        return Defense(config, self.certification, self.model_file, shared=f"stages-{config.data.name}-{seed}")


@dataclass(frozen=True, kw_only=True)
class Table2Scale(Scale):
    """The scale of Tab. 2.

    Attributes:
        targets: the classifiers by name.
        seeds: runs of each kind.
    """

    targets: Mapping[str, Target]
    seeds: Seeds = 1


def cells(scale: Table2Scale) -> Iterator[Cell]:
    """Every method at every budget, in front of every classifier."""
    for name, target in scale.targets.items():
        for seed in range(target.seeds or scale.seeds):
            for method in METHODS:
                if method == FO_DS and target.model_file:
                    continue  # a model file is no white box
                for budget in target.budgets if method in QUERYING else target.budgets[-1:]:
                    labels: Labels = {"classifier": name, "method": method, "budget": budget, "seed": seed}
                    yield Cell(labels=labels, work=target.defense(method, budget, seed))


def present(outcomes: Outcomes, _: Table2Scale) -> Presentation:
    """Certified accuracy by radius, and the average certified radius by queries."""
    targets = outcomes.by("classifier")
    paper = Table(
        title="The paper: ImageNet-10, 1,152 queries an estimate",
        columns=["radius", *published.TAB_2],
        rows=[
            [f"{radius:g}", *(f"{accuracy:.2f}" for accuracy in accuracies)]
            for radius, *accuracies in zip(published.RADII, *published.TAB_2.values(), strict=True)
        ],
        note="Certified accuracy, %.",
    )
    return Presentation(
        tables=[*(_table(of, name) for name, of in targets.items()), paper],
        figures=[draw(of, name) for name, of in targets.items() for draw in (_by_queries, _by_radius)],
    )


def _table(outcomes: Outcomes, name: str) -> Table:
    radii = outcomes[0].result["radii"]
    rows = []
    for method, budgets in outcomes.by("method").items():
        for of in budgets.by("budget").values():
            accuracies = zip(*(outcome.result["certified_accuracy"] for outcome in of), strict=True)
            percent = [spread_text([100 * accuracy for accuracy in at], 2) for at in accuracies]
            radius = of.mean(RADIUS)
            rows.append([method, of.queries(), *percent, MISSING if radius is None else f"{radius:.4f}", of.duration()])
    return Table(
        title=f"Certified accuracy, %: {name}",
        columns=["method", "queries", *(f"r = {radius:g}" for radius in radii), "average radius", "time of a run"],
        rows=rows,
        note="Mean ± standard deviation (runs). Times hold no certification, and the stages that runs share only once.",
    )


def _by_queries(outcomes: Outcomes, name: str) -> Figure:
    """The average certified radius by queries; all begin at that of the pretrained denoiser."""
    start = outcomes.where(method=DENOISER).mean(RADIUS)
    series = []
    for method, of in outcomes.by("method").items():
        if method not in QUERYING:
            continue
        parts = of.by("budget").values()
        points = [(part.mean("queries") or 0.0, part.mean(RADIUS) or 0.0, part.deviation(RADIUS)) for part in parts]
        if start is not None:
            points.insert(0, (0.0, start, 0.0))
        x, y, spread = map(list, zip(*points, strict=True))
        series.append(Series(name=method, x=x, y=y, spread=spread))
    reference = outcomes.where(method=FO_DS).mean(RADIUS)
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
    first_seed, most = min(outcomes.labelled("seed")), max(outcomes.labelled("budget"))
    series = []
    for outcome in outcomes.where(budget=most, seed=first_seed):
        method = str(outcome.labels["method"])
        first = outcome.result["certified_accuracy"][0]
        points = [(0.0, first), *((radius, accuracy) for radius, accuracy in outcome.result["curve"])]
        series.append(
            Series(
                name=method,
                x=[x for x, _ in points],
                y=[100 * y for _, y in points],
                reference=method in (SMOOTHING, DENOISER),
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
    """A size for two cores: smaller batches, fewer directions, and less pretraining."""
    config = RECIPES.find("cifar10").config()
    return replace(
        config,
        data=replace(config.data, batch_size=16),
        pretraining=replace(config.pretraining, steps=1000),
        finetuning=replace(config.finetuning, batch_size=16, learning_rate=3e-4),
        directions=32,
    )


_DIGITS = RECIPES.find("digits").config()
_IMAGENET10 = RECIPES.find("imagenet10").config()

EXPERIMENT = Experiment(
    name="tab2",
    title="Tab. 2: certified accuracy of black-box defenses",
    scales={
        "smoke": Table2Scale(
            caption="Digits, a denoiser of 3 layers of 4 channels, a handful of steps.",
            targets={
                "digits": Target(
                    config=_smoke(),
                    budgets=(16 * 65,),
                    certification=CertifyConfig(images=2, trials=200, first=20, radii=(0.0, 0.25)),
                    model_file=False,
                )
            },
        ),
        "small": Table2Scale(
            caption=(
                "Digits (8x8 pixels): a classifier of our own behind an ONNX file, a DnCNN of 5 layers of 32 channels, "
                "noise of 0.35, 10,000 samples for each of 100 test images. CIFAR-10, one seed: the classifier of a "
                "third party (76.57 % on the test images), a DnCNN of 7 layers of 32 channels, noise of 0.25, 1,000 "
                "samples for each of 50 test images. Certificates hold with confidence 99.9 %."
            ),
            seeds=3,
            targets={
                "digits": Target(
                    config=_DIGITS, budgets=(333_000, 1_000_000), certification=CertifyConfig(), model_file=False
                ),
                "cifar10": Target(
                    config=_small_cifar10(),
                    budgets=(100_000,),
                    certification=CertifyConfig(images=50, trials=1000, radii=(0.0, 0.25, 0.5)),
                    model_file=True,
                    seeds=1,
                    rates={ZO_DS: 0.1, OPAQUE: 0.1},  # few directions in 3,072 dimensions: noisy
                ),
            },
        ),
        "paper": Table2Scale(
            caption=(
                "ImageNet-10 from a folder of images, a classifier from a model file, a DnCNN of 17 layers of 64 "
                "channels, 1,152 queries an estimate. The paper states neither noise nor batch: 0.25 and 64 here."
            ),
            targets={
                "imagenet10": Target(
                    config=_IMAGENET10,
                    budgets=(_IMAGENET10.budget,),
                    certification=CertifyConfig(images=500),
                    model_file=True,
                )
            },
        ),
    },
    cells=cells,
    present=present,
)
