"""A network that gives its input back through a few numbers, trained from function values."""

from deepzero.tasks.compression.compression_config import CompressionConfig
from deepzero.tasks.compression.train_compression import compress, settings_of

__all__ = ["CompressionConfig", "compress", "settings_of"]
