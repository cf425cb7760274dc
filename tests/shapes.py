"""Shapes are checked in tests, and only there: jaxtyping's import hook wraps the packages below with beartype.

Only annotations that hold an array are checked. mypy checks all others, and whatever a user may get wrong (an option of
the wrong type, say) the package refuses itself, which is tested too. A function is checked once for all arrays of the
same types and shapes: the outcome depends on nothing else, and checks were half of the time of a step.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args, get_origin

import jaxtyping
import numpy as np
from beartype import beartype
from torch import Tensor

# Left out: graph.loops, which numba compiles, and modules whose signatures name no shape.
CHECKED_MODULES = (
    "deepzero.baselines",
    "deepzero.coordinates",
    "deepzero.data",
    "deepzero.estimator",
    "deepzero.evaluators.batched",
    "deepzero.evaluators.propagated_step",
    "deepzero.executors.executor_evaluator",
    "deepzero.graph.calls",
    "deepzero.graph.decompositions",
    "deepzero.graph.differences",
    "deepzero.graph.cpu.activation_kernels",
    "deepzero.graph.cpu.convolution_kernels",
    "deepzero.graph.cpu.convolution_layouts",
    "deepzero.graph.cpu.attention_kernels",
    "deepzero.graph.cpu.cpu_kernels",
    "deepzero.graph.cpu.perceptron_kernels",
    "deepzero.graph.cpu.rank_one_kernels",
    "deepzero.graph.cpu.row_blocks",
    "deepzero.graph.cpu.row_kernels",
    "deepzero.graph.cpu.winograd_kernels",
    "deepzero.graph.cuda.cuda_attention_kernels",
    "deepzero.graph.cuda.cuda_kernels",
    "deepzero.graph.cuda.cuda_row_kernels",
    "deepzero.graph.footprint",
    "deepzero.graph.forward",
    "deepzero.graph.host_numbers",
    "deepzero.graph.kernels",
    "deepzero.graph.propagate",
    "deepzero.graph.rule_check",
    "deepzero.graph.rules",
    "deepzero.graph.tails",
    "deepzero.graph.windows",
    "deepzero.losses",
    "deepzero.measure.sides",
    "deepzero.measure.slope_errors",
    "deepzero.models",
    "deepzero.opaque",
    "deepzero.sparsity",
    "deepzero.stencils",
    "deepzero.tasks",
    "deepzero.training.gradient_sources",
)


def install() -> None:
    """From now on, these modules are checked when they are imported."""
    jaxtyping.install_import_hook(CHECKED_MODULES, f"{__name__}.checked")
    jaxtyping.jaxtyped = wrapped  # what the hook puts above every function and class


def wrapped(target: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """``jaxtyped``, but for what names no array, and with a memory of what was checked before."""
    if target is None:
        return functools.partial(wrapped, typechecker=typechecker)
    if dataclasses.is_dataclass(target):
        if isinstance(target.__init__, types.FunctionType) and not hasattr(target.__init__, "checks"):
            target.__init__ = checking(target.__init__, typechecker)  # type: ignore[misc]
        return target
    return checking(target, typechecker) if isinstance(target, types.FunctionType) else target


def checking(function: types.FunctionType, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its checks, or as it is if it names no array."""
    checks = checks_of(function, typechecker)
    if checks is None:
        return function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return checks.call(function, args, kwargs)

    call.checks = checks  # type: ignore[attr-defined]
    return call


_known: dict[object, Checks | None] = {}


def checks_of(function: types.FunctionType, typechecker: Callable[..., Any]) -> Checks | None:
    """Those of a function; the same for a function that is defined inside of another, whenever that is called."""
    key = (function.__code__, *function.__annotations__.items())  # the __init__ of two dataclasses may be equal code
    if key not in _known:
        hints = {name: _read(hint, function) for name, hint in function.__annotations__.items()}
        with_array = {name: hint for name, hint in hints.items() if holds_array(hint)}
        _known[key] = Checks(function, with_array, typechecker) if with_array else None
    return _known[key]


class Checks:
    """jaxtyping's checks of one function, and the kinds of arguments and results that passed them."""

    def __init__(self, function: types.FunctionType, hints: dict[str, Any], typechecker: Callable[..., Any]) -> None:
        code = function.__code__
        names = code.co_varnames[: code.co_argcount]
        self.positions = [i for i, name in enumerate(names) if name in hints]
        self.names = frozenset(hints)
        self.variadic = len(names) if code.co_flags & 0x04 else None  # *args
        self.lasting = not any("{" in text for hint in hints.values() for text in dimensions(hint))
        self.passed: dict[object, set[object]] = {}
        self.asked = threading.local()
        self.checked = jaxtyped(self._stand_in(function), typechecker=typechecker)

    def _stand_in(self, function: types.FunctionType) -> types.FunctionType:
        """A function with the signature, and the names, of another one, which calls what it is told to."""
        asked = self.asked

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            return asked.function(*args, **kwargs)

        own = types.FunctionType(stand_in.__code__, function.__globals__, function.__name__, None, stand_in.__closure__)
        functools.update_wrapper(own, function)
        return own

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        try:
            given = self._given(args, kwargs)
            passed = self.passed.get(given) if self.lasting else None
        except TypeError:  # sizes that stand for any number, as an export has them, go into no dictionary
            return self._check(function, args, kwargs)
        if passed is None:
            result = self._check(function, args, kwargs)
            if self.lasting:
                self.passed.setdefault(given, set()).add(kind(result))
            return result
        result = function(*args, **kwargs)
        if "return" in self.names and (found := kind(result)) not in passed:
            self._check(lambda *_, **__: result, args, kwargs)
            passed.add(found)
        return result

    def _check(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.asked.function = function
        try:
            return self.checked(*args, **kwargs)
        finally:
            self.asked.function = None  # which may hold a result

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[object, ...]:
        count = len(args)
        own = tuple([kind(args[i]) for i in self.positions if i < count])
        more = () if self.variadic is None else kind(args[self.variadic :])
        return own, more, count, tuple([(name, kind(v)) for name, v in kwargs.items() if name in self.names])


def kind(value: Any) -> object:
    """All that a check of an array, or of what holds arrays, depends on."""
    if isinstance(value, Tensor):
        return type(value), value.dtype, value.shape
    if isinstance(value, (tuple, list)):
        return type(value), *map(kind, value)
    if isinstance(value, np.ndarray):
        return np.ndarray, value.dtype, value.shape
    if isinstance(value, dict):
        return dict, *((kind(key), kind(item)) for key, item in value.items())
    return value if isinstance(value, str) else type(value)


def dimensions(hint: Any) -> Iterator[str]:
    """The dimensions of all arrays of an annotation, as they are written."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        yield hint.dim_str
    for part in get_args(hint):
        yield from dimensions(part)


jaxtyped = jaxtyping.jaxtyped
"""The original, which ``install`` replaces."""


def _read(annotation: Any, function: types.FunctionType) -> Any:
    """What an annotation says; nothing if it names what is imported for mypy alone, as jaxtyping takes it."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, function.__globals__)  # noqa: S307 - the package's own annotations
    except Exception:
        return None


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype on the annotations that hold an array."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if holds_array(hint)}
    return beartype(function) if function.__annotations__ else function


def holds_array(hint: Any) -> bool:
    """Whether an array type such as ``Float[Tensor, "n c"]`` is the annotation or a part of it.

    Not in sequences: beartype checks one item, which it draws from Python's global generator, and tests watch that one.
    """
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = get_args(hint)
    drawn = get_origin(hint) in (list, Sequence) or Ellipsis in parts
    return not drawn and any(map(holds_array, parts))
