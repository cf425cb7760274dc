"""Speed and memory of difference propagation against the loops that people write, measured in one process in turns."""

from deepzero.measure.bench_report import record, tables
from deepzero.measure.benchmark import CaseReport, Settings, run
from deepzero.measure.cases import CASES, Case, Problem, problem
from deepzero.measure.simulated_workers import Machine, SimulatedStep, simulate

__all__ = [
    "CASES",
    "Case",
    "CaseReport",
    "Machine",
    "Problem",
    "Settings",
    "SimulatedStep",
    "problem",
    "record",
    "run",
    "simulate",
    "tables",
]
