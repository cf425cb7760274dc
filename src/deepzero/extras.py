"""Optional packages: the extra of the installation that brings each, and the error if one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deepzero.errors import MissingPackageError

PACKAGES = {
    "tyro": ("cli", "tyro"),
    "PIL": ("data", "Pillow"),
    "pyarrow": ("data", "PyArrow"),
    "sklearn": ("data", "scikit-learn"),
    "matplotlib": ("plot", "Matplotlib"),
    "scipy": ("scipy", "SciPy"),
    "mlflow": ("mlflow", "MLflow"),
    "onnx": ("onnx", "onnx"),
    "onnxruntime": ("onnx", "ONNX Runtime"),
    "onnxscript": ("onnx", "onnxscript"),
    "phi": ("physics", "PhiFlow"),
    "phiml": ("physics", "PhiML"),
    "tensorboard": ("tensorboard", "TensorBoard"),
    "wandb": ("wandb", "Weights & Biases"),
}
"""Top-level module -> the extra that brings it, and the name of the package in messages."""


@contextmanager
def required_for(purpose: str) -> Iterator[None]:
    """Surround imports of optional packages; a missing one is an error that says what to install.

    Args:
        purpose: of the packages; it begins the message.

    Raises:
        MissingPackageError: a package of :data:`PACKAGES` is not installed.

    Example:
        >>> with required_for("a plot"):
        ...     raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        Traceback (most recent call last):
            ...
        deepzero.errors.MissingPackageError: a plot needs Matplotlib, which is not installed; try pip install ...
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in PACKAGES:
            raise
        extra, title = PACKAGES[module]
        raise MissingPackageError(
            f"{purpose} needs {title}, which is not installed; try pip install 'deepzero[{extra}]'"
        ) from error
