"""Speed and memory of difference propagation against the loops that people write, measured in one process in turns."""

from deepzero.measure.bench_record import BenchRecord
from deepzero.measure.bench_report import growth_table, tables, whole_table
from deepzero.measure.benchmark import CaseReport, Settings, run
from deepzero.measure.cases import CASES, Case, Problem, problem
from deepzero.measure.simulated_workers import Machine, SimulatedStep, simulate

__all__ = [
    "CASES",
    "BenchRecord",
    "Case",
    "CaseReport",
    "Machine",
    "Problem",
    "Settings",
    "SimulatedStep",
    "growth_table",
    "problem",
    "run",
    "simulate",
    "tables",
    "whole_table",
]
