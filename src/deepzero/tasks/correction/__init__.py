"""Solver in the loop: a network that corrects a coarse PDE solver which can only be run."""

from deepzero.tasks.correction.correction_config import METHODS, CorrectionConfig, FlowConfig
from deepzero.tasks.correction.reference_flows import Reference, reference, shedding
from deepzero.tasks.correction.train_correction import correct, load_network, settings_of
from deepzero.tasks.correction.wake import Flows, WakeFlow, divergence, downsampled, vorticity

__all__ = [
    "METHODS",
    "CorrectionConfig",
    "FlowConfig",
    "Flows",
    "Reference",
    "WakeFlow",
    "correct",
    "divergence",
    "downsampled",
    "load_network",
    "reference",
    "settings_of",
    "shedding",
    "vorticity",
]
