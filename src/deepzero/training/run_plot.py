"""The picture of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deepzero.extras import required_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

X_AXES = {"queries": "queries", "seconds": "seconds"}


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
