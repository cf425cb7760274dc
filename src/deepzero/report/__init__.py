"""Runs and results as pages that a person would rather look at than read JSON lines.

What the package offers is listed in ``__init__.pyi``, and imported when it is first used: figures are data, and only
drawing them needs Matplotlib.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
