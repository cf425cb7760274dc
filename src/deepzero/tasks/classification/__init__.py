"""Classification of images or rows of a table, from function values or by the methods that the paper compares with."""

from deepzero.tasks.classification.classification_config import (
    ClassificationConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
    from_record,
)
from deepzero.tasks.classification.score_classifier import Scored, score_run
from deepzero.tasks.classification.train_classifier import train
from deepzero.tasks.task_config import DataConfig

__all__ = [
    "ClassificationConfig",
    "DataConfig",
    "EstimatorConfig",
    "ModelConfig",
    "Scored",
    "SparsityConfig",
    "from_record",
    "score_run",
    "train",
]
