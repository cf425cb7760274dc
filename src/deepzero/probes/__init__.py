"""Probes: the directions of a step."""

from deepzero.probes.base import (
    CoordinateDirections,
    Displacement,
    JointDirections,
    Perturbations,
    Probes,
    are_coordinates,
    are_joint,
    coordinates_of,
)
from deepzero.probes.coordinate import CoordinateDisplacement, CoordinatePerturbations, CoordinateProbes
from deepzero.probes.random import DISTRIBUTIONS, RandomDisplacement, RandomPerturbations, RandomProbes

__all__ = [
    "DISTRIBUTIONS",
    "CoordinateDirections",
    "CoordinateDisplacement",
    "CoordinatePerturbations",
    "CoordinateProbes",
    "Displacement",
    "JointDirections",
    "Perturbations",
    "Probes",
    "RandomDisplacement",
    "RandomPerturbations",
    "RandomProbes",
    "are_coordinates",
    "are_joint",
    "coordinates_of",
]
