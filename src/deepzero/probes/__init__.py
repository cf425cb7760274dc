"""Which directions are queried."""

from deepzero.probes.base import Perturbations, Probes
from deepzero.probes.coordinate import CoordinatePerturbations, CoordinateProbes
from deepzero.probes.random import DISTRIBUTIONS, RandomPerturbations, RandomProbes

__all__ = [
    "DISTRIBUTIONS",
    "CoordinatePerturbations",
    "CoordinateProbes",
    "Perturbations",
    "Probes",
    "RandomPerturbations",
    "RandomProbes",
]
