"""The picture of a sweep."""

from __future__ import annotations

import io

from deepzero.doctor.diagnosis import Diagnosis
from deepzero.errors import InvalidInputError
from deepzero.extras import required_for

STYLES = {"forward": "-", "central": "--"}


def plot_sweep(diagnosis: Diagnosis, *, title: str = "") -> bytes:
    """Error against step size with the recommended and the configured step, as a PNG file.

    Raises:
        InvalidInputError: the diagnosis has no sweep, since the loss was not finite.
        MissingPackageError: Matplotlib is not installed.
    """
    with required_for("a plot"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - takes a second: only for a picture
        from matplotlib.figure import Figure  # noqa: PLC0415

    sweep = diagnosis.sweep
    if sweep is None:
        raise InvalidInputError(
            "the diagnosis holds no sweep to plot: the loss is not finite at the current parameters"
        )
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(curve.evaluator for curve in sweep.curves))}
    for curve in sweep.curves:
        drawn = [(point.step_size, point.error) for point in curve.points if point.error]
        axis.plot(
            [step for step, _ in drawn],
            [error for _, error in drawn],
            STYLES.get(curve.stencil, ":"),
            marker=".",
            color=colors[curve.evaluator],
            label=f"{curve.evaluator}, {curve.stencil}",
        )
    if (choice := diagnosis.step) is not None:
        axis.axvspan(choice.low, choice.high, color="C2", alpha=0.15, label="flat part")
        axis.axvline(choice.step_size, color="C2", label=f"recommended: {choice.step_size:.1e}")
        axis.axvline(choice.configured, color="k", linestyle=":", label=f"configured: {choice.configured:.1e}")
    axis.set(xscale="log", yscale="log", xlabel="step size", ylabel=f"relative error to {sweep.reference}", title=title)
    axis.grid(alpha=0.3)
    axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
