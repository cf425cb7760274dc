"""A denoiser in front of a classifier that can only be queried, so that the pair is certifiably robust."""

from deepzero.tasks.defense.smoothing import (
    ABSTAIN,
    Certificate,
    Smoothed,
    certified_accuracy,
    largest_radius,
    lower_bound,
    require_reachable,
)

__all__ = [
    "ABSTAIN",
    "Certificate",
    "Smoothed",
    "certified_accuracy",
    "largest_radius",
    "lower_bound",
    "require_reachable",
]
