"""Data sets, and batches of them that stay on one device."""

from deepzero.data.cifar10 import load_cifar10
from deepzero.data.dataset import Dataset, Splits, split
from deepzero.data.dataset_registry import NAMED, load, names
from deepzero.data.detection import KINDS, detect
from deepzero.data.digits import load_digits
from deepzero.data.fashion_mnist import load_fashion_mnist
from deepzero.data.image_files import image_files, is_image
from deepzero.data.image_folders import load_image_folder
from deepzero.data.images import channel_statistics, downsample
from deepzero.data.loader import Augmentation, BatchLoader
from deepzero.data.preprocessing import Preprocessing

__all__ = [
    "KINDS",
    "NAMED",
    "Augmentation",
    "BatchLoader",
    "Dataset",
    "Preprocessing",
    "Splits",
    "channel_statistics",
    "detect",
    "downsample",
    "image_files",
    "is_image",
    "load",
    "load_cifar10",
    "load_digits",
    "load_fashion_mnist",
    "load_image_folder",
    "names",
    "split",
]
