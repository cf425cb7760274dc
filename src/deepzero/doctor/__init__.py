"""The doctor: what to know before a run, measured on a few samples of it."""

from deepzero.doctor.diagnosis import Diagnosis
from deepzero.doctor.examination import diagnose, examine
from deepzero.doctor.records import (
    Curve,
    Determinism,
    Finding,
    Forecast,
    GradientCheck,
    LayerCheck,
    LayerTime,
    LoopCosts,
    MethodCost,
    Operations,
    Point,
    QueryCheck,
    RunCost,
    StepChoice,
    Sweep,
    Trial,
)
from deepzero.doctor.surface import LossSurface, loss_surface
from deepzero.doctor.sweep_plot import plot_sweep

__all__ = [
    "Curve",
    "Determinism",
    "Diagnosis",
    "Finding",
    "Forecast",
    "GradientCheck",
    "LayerCheck",
    "LayerTime",
    "LoopCosts",
    "LossSurface",
    "MethodCost",
    "Operations",
    "Point",
    "QueryCheck",
    "RunCost",
    "StepChoice",
    "Sweep",
    "Trial",
    "diagnose",
    "examine",
    "loss_surface",
    "plot_sweep",
]
