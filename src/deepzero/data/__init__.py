"""Data sets, and batches of them that stay on one device."""

from deepzero.data.augmentation import Augmentation
from deepzero.data.cifar10 import load_cifar10
from deepzero.data.dataset import Dataset, Splits, split
from deepzero.data.digits import load_digits
from deepzero.data.fashion_mnist import load_fashion_mnist
from deepzero.data.folder import load_image_folder
from deepzero.data.images import channel_statistics, downsample
from deepzero.data.loader import BatchLoader
from deepzero.data.registry import load, names

__all__ = [
    "Augmentation",
    "BatchLoader",
    "Dataset",
    "Splits",
    "channel_statistics",
    "downsample",
    "load",
    "load_cifar10",
    "load_digits",
    "load_fashion_mnist",
    "load_image_folder",
    "names",
    "split",
]
