"""The precision in which a GPU stores and multiplies the differences of a chunk; base values never change by it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch

_BACKENDS: Any = torch.backends
SWITCHES = (_BACKENDS.cudnn.conv, _BACKENDS.cudnn.rnn, _BACKENDS.cuda.matmul)
"""PyTorch's own switches of TF32: for convolutions, for recurrent layers (it wants them alike), for matrix products."""


@dataclass(frozen=True)
class Precision:
    """Storage and products of dense differences on a GPU.

    Attributes:
        tf32: multiply float32 differences in TF32, with 10 bits after the point; None: where PyTorch may anyway.
        half: store dense differences in float16.
        scale: a power of two by which what is stored in float16 is multiplied; None: nothing is stored so.
    """

    tf32: bool | None = None
    half: bool = False
    scale: float | None = None

    def of_step(self, size: float) -> Precision:
        """For differences that begin with a step of some size: scaled so that those of that size are near 1."""
        return replace(self, scale=2.0 ** round(-math.log2(abs(size)))) if self.half else self

    @property
    def convolves_in_tf32(self) -> bool:
        """True if convolutions of float32 differences may take TF32."""
        return bool(SWITCHES[0].fp32_precision == "tf32") if self.tf32 is None else self.tf32

    @property
    def multiplies_in_tf32(self) -> bool:
        """True if products of float32 differences may take TF32."""
        return bool(SWITCHES[2].fp32_precision == "tf32") if self.tf32 is None else self.tf32


USUAL = Precision()
_CURRENT: ContextVar[Precision] = ContextVar("precision", default=USUAL)


def current() -> Precision:
    """The precision of the chunk that is being propagated."""
    return _CURRENT.get()


@contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """A block whose differences have this precision; PyTorch's switches are as before afterwards."""
    token, before = _CURRENT.set(precision), [switch.fp32_precision for switch in SWITCHES]
    try:
        if precision.tf32 is not None:
            for switch in SWITCHES:
                switch.fp32_precision = "tf32" if precision.tf32 else "ieee"
        yield
    finally:
        if precision.tf32 is not None:
            for switch, value in zip(SWITCHES, before, strict=True):
                switch.fp32_precision = value
        _CURRENT.reset(token)
