"""Which directions are queried."""

from deepzero.probes.base import Displacement, Perturbations, Probes
from deepzero.probes.coordinate import CoordinateDisplacement, CoordinatePerturbations, CoordinateProbes
from deepzero.probes.random import DISTRIBUTIONS, RandomDisplacement, RandomPerturbations, RandomProbes

__all__ = [
    "DISTRIBUTIONS",
    "CoordinateDisplacement",
    "CoordinatePerturbations",
    "CoordinateProbes",
    "Displacement",
    "Perturbations",
    "Probes",
    "RandomDisplacement",
    "RandomPerturbations",
    "RandomProbes",
]
