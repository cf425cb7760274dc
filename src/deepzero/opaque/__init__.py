"""Black boxes inside of networks: see :class:`Opaque`."""

from deepzero.opaque.endpoints import HttpModel, OnnxModel
from deepzero.opaque.locality import Colouring, Conv, Elementwise, Locality, PerChannel, PerToken
from deepzero.opaque.module import Opaque
from deepzero.opaque.rows import Ledger
from deepzero.opaque.simulation import Corrected, Simulator
from deepzero.opaque.surrogate import Learned

__all__ = [
    "Colouring",
    "Conv",
    "Corrected",
    "Elementwise",
    "HttpModel",
    "Learned",
    "Ledger",
    "Locality",
    "OnnxModel",
    "Opaque",
    "PerChannel",
    "PerToken",
    "Simulator",
]
