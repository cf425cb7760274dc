"""Which problem a black box is: its function, the values that the function refers to, and its parameters' shapes."""

from __future__ import annotations

import functools
import hashlib
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor

from deepzero.arrays import OnBareArray
from deepzero.executors.reading import read_callable
from deepzero.objective import BlackBox

DIGEST_BYTES = 8

_known: dict[int, tuple[weakref.ref[Any], bytes]] = {}


def problem_of(box: BlackBox) -> str:
    """A line that says which problem a black box is: the same in every run of the same program.

    It is the function's module and qualified name, and a digest of

    - its bytecode and that of your own functions, methods and modules that it refers to, by whatever name; installed
      packages and the standard library count by name;
    - the numbers, strings and arrays, and the tuples, lists, dicts and sets of these, in the globals, closure
      variables, defaults and attributes that this code refers to. What the code itself assigns is state and does not
      count, nor do the weights of an ``nn.Module``, files, services and environment variables;
    - the names, dtypes and shapes of the parameters.

    A function is read once in a process, when its problem is first asked for, so that lists that a program writes into
    may grow afterwards.

    Example:
        >>> import numpy as np
        >>> box = BlackBox(lambda p: float(p["w"].sum()), {"w": np.zeros(2)})
        >>> problem_of(box) == problem_of(BlackBox(box.fn, {"w": np.ones(2)}))
        True
        >>> problem_of(box) == problem_of(BlackBox(box.fn, {"w": np.ones(3)}))
        False
    """
    fn = box.fn.fn if isinstance(box.fn, OnBareArray) else box.fn
    digest = hashlib.blake2b(_digest(fn), digest_size=DIGEST_BYTES)
    digest.update(f"{'array' if fn is not box.fn else 'dict'};".encode())
    for name, value in box.values.items():
        kind = "tensor" if isinstance(value, Tensor) else "array"
        digest.update(f"{name!r} {kind} {value.dtype} {tuple(value.shape)};".encode())
    return f"{_name(fn)} {digest.hexdigest()}"


def problem_of_function(fn: Callable[..., Any]) -> str:
    """A line that says which problem a plain function is: as for a black box, without parameters."""
    return f"{_name(fn)} {hashlib.blake2b(_digest(fn), digest_size=DIGEST_BYTES).hexdigest()}"


def _name(fn: Callable[..., Any]) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{named.__module__}.{named.__qualname__}"


def _digest(fn: Callable[..., Any]) -> bytes:
    """The digest of a callable as it was when this process first asked."""
    key = id(fn)
    if key in _known and _known[key][0]() is fn:
        return _known[key][1]
    found = read_callable(fn)
    with suppress(TypeError):  # an object that cannot be referred to weakly is read each time
        _known[key] = (weakref.ref(fn, lambda _: _known.pop(key, None)), found)
    return found
