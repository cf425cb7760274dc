"""Error against step size, measured and drawn: where rounding and noise end, and where curvature begins."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepzero.errors import InvalidInputError
from deepzero.estimator import Estimator
from deepzero.extras import required_for
from deepzero.probes import Perturbations
from deepzero.stencils import CENTRAL, FORWARD

if TYPE_CHECKING:
    from deepzero.doctor.diagnosis import Diagnosis

PLAIN, PROPAGATION = "sequential", "propagation"
"""Names of the evaluators of plain differences of two losses, and of differences for which no step is ever added."""
STEPS = tuple(10 ** (k / 2) for k in range(-14, -1))
"""Half-decades from 1e-7 to 1e-1."""
AGREES = 0.1
"""Relative error up to which slopes agree with autograd."""
LINES = {"forward": "-", "central": "--"}
"""Line styles of the stencils in the plot."""
BLIND = 0.25
"""Part of the slopes that are 0 at a step but not at the largest, from which on the step does not see the function."""


@dataclass(frozen=True)
class Point:
    """One step size of a sweep.

    Attributes:
        step_size: the step size.
        error: relative error of the slopes in the Euclidean norm; None if a loss was not finite, or if the step
            vanishes when it is added to a parameter.
        zeros: part of the slopes that are exactly 0.
        felt: True if the step moves every parameter that it is added to.
    """

    step_size: float
    error: float | None
    zeros: float
    felt: bool = True


@dataclass(frozen=True)
class Curve:
    """Error against step size for one evaluator and one stencil, steps increasing."""

    evaluator: str
    stencil: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sweep:
    """Estimates at many step sizes.

    Attributes:
        reference: what the errors are measured against: ``float64 autograd``, ``autograd`` or ``neighbouring steps``.
        uncertainty: relative uncertainty of the reference itself; 0 for autograd.
        samples: directions that were queried at every step size.
        curves: one for each evaluator and stencil.
        noise_floor: by evaluator, the root mean square error of a loss difference at the smallest step, in units of the
            loss: a difference below it is noise.
        autograd_disagrees: autograd exists, but at no step size do function values agree with it.
        flat_below: step size below which many slopes are exactly 0 that are not at the largest step, since the loss has
            flat pieces and jumps; None if it has none.
    """

    reference: str
    uncertainty: float
    samples: int
    curves: tuple[Curve, ...]
    noise_floor: dict[str, float]
    autograd_disagrees: bool = False
    flat_below: float | None = None

    def curve(self, evaluator: str, stencil: str) -> Curve:
        """The curve of one evaluator and stencil."""
        return next(c for c in self.curves if (c.evaluator, c.stencil) == (evaluator, stencil))


def with_step(steps: Sequence[float], step_size: float) -> list[float]:
    """The steps with ``step_size`` among them, in place of the nearest if that is nearer than a quarter of a decade.

    Example:
        >>> with_step([1e-3, 1e-2], 5e-3), with_step([1e-3, 1e-2], 1.0)
        ([0.001, 0.005, 0.01], [0.001, 0.01, 1.0])
    """
    closest = min(steps, key=lambda step: abs(math.log(step / step_size)))
    replaced = abs(math.log10(closest / step_size)) <= 0.25
    return sorted({*(step for step in steps if not (replaced and step == closest)), step_size})


@dataclass(frozen=True)
class SweptSlopes:
    """Slopes of the same :math:`K` directions at :math:`S` step sizes.

    Attributes:
        steps: the step sizes, increasing.
        values: by names of evaluator and stencil, ``[S, K]`` float64; NaN where a step vanishes. The evaluator of the
            run comes first.
        felt: by evaluator, the steps that do not vanish when they are added to the parameters.
    """

    steps: list[float]
    values: dict[tuple[str, str], Tensor]
    felt: dict[str, list[float]]


def measure_slopes(
    estimators: Mapping[str, Estimator], batch: tuple[Any, ...], directions: Perturbations, steps: Sequence[float]
) -> SweptSlopes:
    """Query the same directions at all steps with all evaluators, and take slopes by all stencils.

    Args:
        estimators: one for each evaluator, by its name; the one of the run comes first.
        batch: the arguments of an estimate.
        directions: ``K`` of them.
        steps: increasing.
    """
    swept = SweptSlopes(list(steps), {}, {})
    for name, zo in estimators.items():
        stencils = tuple({s.name: s for s in (FORWARD, CENTRAL, zo.stencil)}.values())
        nodes = sorted({node for s in stencils for node in s.nodes})
        felt = swept.steps if name == PROPAGATION else _felt(zo, directions, steps, nodes)
        queries = zo.step_queries(directions, [node * step for step in felt for node in nodes], batch)
        answers = zo.measure(queries)
        differences = answers.differences.cpu().reshape(len(felt), len(nodes), -1)
        taken = answers.taken(queries).cpu().reshape(differences.shape)
        for s in stencils:
            rows = [nodes.index(node) for node in s.nodes]
            found = {step: s.slopes(differences[i, rows], taken[i, rows]) for i, step in enumerate(felt)}
            nothing = torch.full((len(directions),), math.nan, dtype=torch.float64)
            swept.values[name, s.name] = torch.stack([found.get(step, nothing) for step in steps])
        swept.felt[name] = felt
    return swept


def _felt(zo: Estimator, directions: Perturbations, steps: Sequence[float], nodes: Sequence[float]) -> list[float]:
    """The steps that do not vanish when they are added to the parameters."""
    felt = []
    for step in steps:
        with suppress(InvalidInputError):
            zo.step_queries(directions, [node * step for node in nodes]).rounded_steps()
            felt.append(step)
    return felt


def compare_slopes(swept: SweptSlopes, exact: tuple[str, Tensor] | None) -> tuple[Sweep, Tensor]:
    """The errors of slopes against exact ones, or those on which neighbouring steps agree; and these slopes ``[K]``.

    Args:
        swept: the slopes.
        exact: a name and exact slopes ``[K]``, if there are any.
    """
    central = swept.values[next(iter(swept.felt)), CENTRAL.name]
    disagrees = False
    if exact is not None:
        kind, reference, uncertainty = *exact, 0.0
        best = min(_errors(central, reference), default=math.inf)
        disagrees = not best <= AGREES and bool(central.any())
    if exact is None or disagrees:
        kind = "neighbouring steps"
        reference, uncertainty = agreed_slopes(central, swept.steps)
    curves = tuple(_curve(swept, *names, reference) for names in swept.values)
    found = Sweep(
        reference=kind,
        uncertainty=uncertainty if math.isfinite(uncertainty) else 1.0,
        samples=len(reference),
        curves=curves,
        noise_floor={
            name: swept.steps[0] * float((rows[0] - reference).square().mean().sqrt())
            for (name, stencil), rows in swept.values.items()
            if stencil == FORWARD.name and bool(rows[0].isfinite().all())
        },
        autograd_disagrees=disagrees,
        flat_below=_flat_below(curves[0]),
    )
    return found, reference


def _errors(slopes: Tensor, reference: Tensor) -> list[float]:
    """Relative errors of the rows; infinite where a slope is not finite."""
    scale = float(reference.norm()) or 1.0
    errors = [float((row - reference).norm()) / scale for row in slopes]
    return [error if math.isfinite(error) else math.inf for error in errors]


def _curve(swept: SweptSlopes, evaluator: str, stencil: str, reference: Tensor) -> Curve:
    slopes = swept.values[evaluator, stencil]
    zeros = (slopes == 0).double().mean(1).tolist()
    errors = [error if math.isfinite(error) else None for error in _errors(slopes, reference)]
    points = (
        Point(step, error, zero, step in swept.felt[evaluator])
        for step, error, zero in zip(swept.steps, errors, zeros, strict=True)
    )
    return Curve(evaluator, stencil, tuple(points))


def _flat_below(curve: Curve) -> float | None:
    """The first step that sees what the largest does, if the middle of the sweep, far above rounding, does not."""
    blind = [point.zeros > curve.points[-1].zeros + BLIND for point in curve.points]
    if not blind[len(blind) // 2]:
        return None
    return curve.points[len(blind) - blind[::-1].index(True)].step_size


def agreed_slopes(slopes: Tensor, steps: Sequence[float]) -> tuple[Tensor, float]:
    """Slopes on which two neighbouring steps agree best, extrapolated to step 0, and their relative disagreement.

    For an error of :math:`c\\mu^2` Richardson's :math:`(r^2 s(\\mu) - s(r\\mu)) / (r^2 - 1)` is free of it.

    Args:
        slopes: ``[S, K]``, of the central stencil, at increasing steps.
        steps: the ``S`` steps.

    Example:
        >>> steps = [0.1, 0.2]
        >>> cubic = torch.tensor([[3 + h**2] for h in steps], dtype=torch.float64)  # (1 + t)**3 at t = +-h
        >>> value, _ = agreed_slopes(cubic, steps)
        >>> round(float(value), 6)
        3.0
    """
    best = (torch.zeros(slopes.shape[1], dtype=torch.float64), float("inf"))
    for i in range(len(steps) - 1):
        inner, outer = slopes[i], slopes[i + 1]
        scale = float(inner.norm() + outer.norm()) / 2
        gap = float((inner - outer).norm())
        if scale > 0 and gap / scale < best[1]:
            squared = (steps[i + 1] / steps[i]) ** 2
            best = ((squared * inner - outer) / (squared - 1), gap / scale)
    return best


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
            LINES.get(curve.stencil, ":"),
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
