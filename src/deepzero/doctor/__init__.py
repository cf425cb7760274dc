"""The doctor: an examination before a run, on a few samples of it."""

from deepzero.doctor.advice import Finding
from deepzero.doctor.determinism import Determinism
from deepzero.doctor.diagnosis import Diagnosis
from deepzero.doctor.examination import diagnose, examine
from deepzero.doctor.forecast import Forecast, LayerTime, LoopCosts, MethodCost, RunCost
from deepzero.doctor.gradient_check import GradientCheck, LayerCheck, Trial
from deepzero.doctor.metered_objective import QueryCheck
from deepzero.doctor.operations import Operations
from deepzero.doctor.step_choice import StepChoice
from deepzero.doctor.surface import LossSurface, loss_surface
from deepzero.doctor.sweep import Curve, Point, Sweep, plot_sweep

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
