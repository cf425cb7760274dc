"""Image classification, from function values or by what the paper compares with."""

from deepzero.tasks.classification.train_classifier import RATIOS, train

__all__ = ["RATIOS", "train"]
