"""Shapes are checked in tests, and only there: jaxtyping's import hook wraps the packages below with beartype.

Only annotations that hold an array are checked. mypy checks all others, and whatever a user may get wrong (an option of
the wrong type, say) the package refuses itself, which is tested too.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin

import jaxtyping
from beartype import beartype

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
    """``jaxtyped``, but for what names no array: it would be wrapped all the same, which is a third of the time of a rule."""
    if target is None:
        return functools.partial(wrapped, typechecker=typechecker)
    function = target.__init__ if dataclasses.is_dataclass(target) else target
    if isinstance(function, types.FunctionType) and not names_array(function):
        return target
    return _jaxtyped(target, typechecker=typechecker)


_jaxtyped = jaxtyping.jaxtyped
_known: dict[object, bool] = {}


def names_array(function: types.FunctionType) -> bool:
    """Whether an annotation holds an array; looked up once for a function that is defined inside of another."""
    key = (function.__code__, *function.__annotations__.items())  # the __init__ of two dataclasses may be equal code
    if key not in _known:
        _known[key] = any(holds_array(_read(a, function)) for a in function.__annotations__.values())
    return _known[key]


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
