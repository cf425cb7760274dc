"""Speed and memory of difference propagation against the loops that people write, measured in one process in turns."""

from deepzero.bench.cases import CASES, Case, Problem, problem
from deepzero.bench.record import record
from deepzero.bench.runner import CaseReport, Settings, run
from deepzero.bench.scaling import Forecast, Machine, simulate
from deepzero.bench.tables import tables

__all__ = [
    "CASES",
    "Case",
    "CaseReport",
    "Forecast",
    "Machine",
    "Problem",
    "Settings",
    "problem",
    "record",
    "run",
    "simulate",
    "tables",
]
