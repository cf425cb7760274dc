"""Speed and memory of difference propagation against the loops that people write, measured in one process in turns."""

from deepzero.measure.bench_record import record
from deepzero.measure.bench_tables import tables
from deepzero.measure.benchmark import CaseReport, Settings, run
from deepzero.measure.cases import CASES, Case, Problem, problem
from deepzero.measure.scaling import Forecast, Machine, simulate

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
