"""The paper's tables and figures, run again: ``deepzero reproduce``.

An experiment consists of cells, each one training run or measurement. A cell is run once and kept; tables and figures
are made of the cells that are finished.
"""

from deepzero.reproduce.cells import Cell, SingleMeasurement, Training
from deepzero.reproduce.experiment import SCALES, Experiment, Scale, TrainingScale
from deepzero.reproduce.experiments import EXPERIMENTS, find, names
from deepzero.reproduce.presentation import Outcome, Outcomes, Presentation
from deepzero.reproduce.reproduction import Reproduction, Request, reproduce

__all__ = [
    "EXPERIMENTS",
    "SCALES",
    "Cell",
    "Experiment",
    "Outcome",
    "Outcomes",
    "Presentation",
    "Reproduction",
    "Request",
    "Scale",
    "SingleMeasurement",
    "Training",
    "TrainingScale",
    "find",
    "names",
    "reproduce",
]
