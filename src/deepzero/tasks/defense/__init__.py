"""A denoiser in front of a classifier that can only be queried, so that the pair is certifiably robust."""

from deepzero.tasks.defense.certification import Certified, CertifyConfig, certify
from deepzero.tasks.defense.defense_config import METHODS, DefenseConfig, DenoiserConfig
from deepzero.tasks.defense.smoothing import (
    ABSTAIN,
    Certificate,
    Smoothed,
    certified_accuracy,
    largest_radius,
    lower_bound,
    require_reachable,
)
from deepzero.tasks.defense.train_defense import defend, settings_of
from deepzero.tasks.task_config import StageConfig

__all__ = [
    "ABSTAIN",
    "METHODS",
    "Certificate",
    "Certified",
    "CertifyConfig",
    "DefenseConfig",
    "DenoiserConfig",
    "Smoothed",
    "StageConfig",
    "certified_accuracy",
    "certify",
    "defend",
    "largest_radius",
    "lower_bound",
    "require_reachable",
    "settings_of",
]
