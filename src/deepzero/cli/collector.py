"""The garbage collector: it has nothing to find while a program starts, and looks at every module all the same."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_collection() -> Iterator[None]:
    """A block in which nothing is collected until :class:`CollectAgain` is told of the first step.

    Imports and the capture of a network make a million objects that stay; looking through them again and again takes a
    fifth of the time to the first step. What is there when collecting begins is not looked at any more.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class CollectAgain:
    """A sink whose first record ends the start."""

    def __init__(self) -> None:
        self._begun = False

    def write(self, _record: Mapping[str, Any]) -> None:
        """A step is made: from here on garbage is collected."""
        if not self._begun:
            self._begun = True
            gc.freeze()
            gc.enable()

    def close(self) -> None:
        """What was left out may be looked at again."""
        gc.unfreeze()
