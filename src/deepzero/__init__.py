"""deepzero: train deep networks from function values alone.

What the package offers is listed in ``__init__.pyi``, and imported when it is first used: ``import deepzero`` takes no
time, and the command line can answer before PyTorch is there.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
