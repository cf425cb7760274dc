"""The result of a run: what a training returns, and its files: weights, picture, model, model card, summary."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from deepzero.errors import MissingPackageError, RunFolderError
from deepzero.extras import required_for
from deepzero.files import read_from, replace_file
from deepzero.training.checkpoint_contents import snapshot
from deepzero.training.metrics import read_metrics
from deepzero.training.model_file import ModelFile
from deepzero.training.run_folder import RunFolder, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CARD = "README.md"
"""The Hugging Face hub looks for a card under this name, too."""
SHOWN = 20
"""Classes that a card lists."""
X_AXES = {"queries": "queries", "seconds": "seconds"}

log = logging.getLogger("deepzero")


@dataclass(frozen=True)
class Result:
    """The outcome of a call of :meth:`deepzero.Trainer.fit`.

    Attributes:
        model: with the selected weights if the run has finished, else as it was when the run stopped.
        folder: the run's folder; None if nothing is written.
        summary: the run's result as in ``summary.json``; None if it was stopped before its end.
        stopped: why it was stopped, None if it has finished.
    """

    model: nn.Module
    folder: Path | None
    summary: dict[str, Any] | None
    stopped: str | None = None


def write_result(
    folder: RunFolder,
    summary: Mapping[str, Any],
    *,
    name: str,
    model: nn.Module,
    model_file: ModelFile | None,
    inputs: Mapping[str, Any] | None,
) -> None:
    """Write the files of a run that has finished, its summary last: where that is, all of them are.

    Args:
        folder: of the run.
        summary: its result.
        name: of the run, for its picture and its card.
        model: with the weights that are the result.
        model_file: by which the model is made again; None: the folder keeps its weights alone.
        inputs: shape and dtype of the model's input, if it takes one tensor.
    """
    folder.write_weights(snapshot(model))
    _write_plot(folder, _title(name, summary))
    if model_file is not None:
        write_card(folder, name, model_file.write(folder, model, inputs), summary)
    folder.write_summary(summary)


def _write_plot(folder: RunFolder, title: str) -> None:
    """Write ``plot.png``; a run does not fail at its end for want of Matplotlib, or for damaged records."""
    try:
        with read_from(folder.metrics, advice="the run is whole without its picture"):
            image = plot_run(read_metrics(folder.metrics), title=title)
    except (MissingPackageError, RunFolderError) as missing:
        log.warning("%s is left out: %s", folder.path / "plot.png", missing)
        return
    folder.write_plot(image)


def _title(name: str, summary: Mapping[str, Any]) -> str:
    accuracy = summary.get("test_accuracy", summary.get("validation_accuracy"))
    return name if accuracy is None else f"{name}: {accuracy:.2%}"


def plot_run(records: Sequence[dict[str, Any]], *, title: str) -> bytes:
    """Training loss and validation accuracy against queries and against seconds, as a PNG file.

    Args:
        records: the lines of a run's ``metrics.jsonl``.
        title: written above.

    Raises:
        MissingPackageError: Matplotlib is not installed.
    """
    with required_for("a plot"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow, used once at the end
        from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(2, 2, sharey="row", sharex="col")
    steps = [r for r in records if r["kind"] == "step"]
    epochs = [r for r in records if r["kind"] == "epoch"]
    tests = [r for r in records if r["kind"] == "test"]
    for column, (key, label) in enumerate(X_AXES.items()):
        _losses(axes[0, column], steps, epochs, key)
        _accuracies(axes[1, column], epochs, tests, key)
        axes[1, column].set_xlabel(label)
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("accuracy")
    axes[0, 0].legend()
    axes[1, 0].legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _losses(axis: Axes, steps: list[dict[str, Any]], epochs: list[dict[str, Any]], key: str) -> None:
    axis.plot([r[key] for r in steps], [r["loss"] for r in steps], alpha=0.3, label="training, each step")
    trained = [r for r in epochs if "training_loss" in r]  # a run may end where no step was made since the last epoch
    means = [r["training_loss"] for r in trained]
    axis.plot([r[key] for r in trained], means, color="C0", label="training, epoch mean")
    looked = [r for r in epochs if "validation_loss" in r]
    axis.plot([r[key] for r in looked], [r["validation_loss"] for r in looked], color="C1", label="validation")


def _accuracies(axis: Axes, epochs: list[dict[str, Any]], tests: list[dict[str, Any]], key: str) -> None:
    looked = [r for r in epochs if "validation_accuracy" in r]
    axis.plot([r[key] for r in looked], [r["validation_accuracy"] for r in looked], "C1.-", label="validation")
    for r in tests:
        axis.plot([r[key]], [r["test_accuracy"]], "k*", markersize=10, label=f"test {r['test_accuracy']:.2%}")


def write_card(folder: RunFolder, name: str, file: ModelFile, summary: Mapping[str, Any]) -> None:
    """Write the card of a finished run, in the form of Mitchell et al., 2019, "Model Cards for Model Reporting".

    Facts that a program cannot know (intended use, biases of the data) stand there as questions to the publisher.

    Args:
        folder: of the run.
        name: of the run.
        file: describes inputs and outputs.
        summary: the run's result.
    """
    scores = {k: v for k, v in summary.items() if k.startswith(("test_", "validation_")) and v is not None}
    header = ["---", "library_name: deepzero", "tags:", "- zeroth-order-optimization", "- no-backpropagation", "---"]
    lines = [
        *header,
        "",
        f"# {name}",
        "",
        f"A network of {summary['parameters']:,} trainable parameters, trained from function values alone by deepzero "
        f"{summary['versions']['deepzero']}: {summary['steps']:,} steps, {summary['queries']:,} queries, "
        f"{summary['seconds']:,.0f} s.",
        "",
        "## Use",
        "",
        "```python",
        "import deepzero as dz",
        "",
        "run = dz.load_run(FOLDER)  # this folder; load only folders that you trust",
        f"run.{'predict(x)' if file.classes else 'outputs(x)'}",
        "```",
        "",
        *_inputs(file),
        "",
        "## Results",
        "",
        *(_table(scores) if scores else ["None were measured."]),
        "",
        "## Training",
        "",
        f"Weights of epoch {summary['selected_epoch'] + 1} of {summary['epochs']}"
        f"{', selected on validation data' if any(k.startswith('validation_') for k in scores) else ''}. Settings:",
        "",
        "```json",
        json.dumps(summary["config"], indent=2),
        "```",
        "",
        f"PyTorch {summary['versions']['torch']}, {summary['hardware']['gpu'] or summary['hardware']['cpu']}.",
        "",
        "## For whoever publishes it",
        "",
        "What is it meant for, and what not? Whose data are these, and whom do they leave out? Nothing says so yet.",
        "",
    ]
    with writing(folder.path / CARD):
        replace_file(folder.path / CARD, "\n".join(lines).encode())


def _table(scores: Mapping[str, float]) -> list[str]:
    rows = [f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in sorted(scores.items())]
    return ["| number | value |", "|---|---|", *rows]


def _inputs(file: ModelFile) -> list[str]:
    """The lines about inputs and outputs."""
    lines = ["## Inputs and outputs", ""]
    if file.inputs is not None:
        shape = ", ".join(["n", *map(str, file.inputs["shape"])])
        lines.append(f"The network takes `[{shape}]`, {file.inputs['dtype']}.")
    if file.preprocessing is not None:
        lines.append("`predict` takes raw inputs; how they become those of the network stands in `model.json`.")
    if file.classes is not None:
        more = f", ... ({len(file.classes)} in all)" if len(file.classes) > SHOWN else ""
        lines.append(f"Classes: {', '.join(file.classes[:SHOWN])}{more}.")
    return lines
