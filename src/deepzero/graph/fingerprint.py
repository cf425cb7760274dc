"""The Python values that a program may read and that a graph holds as constants, as one comparable picture.

A picture is cheap and not complete: it holds numbers, strings, flags and the identity of tensors and functions, in
modules, in what a loss or closure closes over, and in the globals that it names. A change outside of it is caught
where it changes the loss.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from deepzero.graph.forward import AUTOCAST
from deepzero.objective import NetworkObjective
from deepzero.placement import STRUCTURE

Picture = dict[Hashable, Hashable]
SCALARS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device)
DEPTH = 3
SHALLOW = 2
"""Depth for classes, where much is held that no forward reads."""
LONGEST = 64
LARGEST = 4096
"""Bytes of an array that is compared by what it holds, not by which it is."""


def picture(objective: NetworkObjective) -> Picture:
    """A picture of everything that the objective's program may read: attribute or variable -> its value."""
    seen: Picture = {}
    places = objective.places()
    seen["tied"] = tuple(
        (name, len(where)) for name, (_, where) in (*places.parameters.items(), *places.buffers.items())
    )
    seen["autocast"] = tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in AUTOCAST)
    for position, module in enumerate(places.modules):
        seen[position, "type"] = cast(Hashable, type(module))
        seen[position, "tensors"] = tuple(_tensors(module))
        for name, value in module.__dict__.items():
            if name not in STRUCTURE:
                seen[position, name] = value if type(value) in SCALARS else freeze(value, DEPTH)
    for kind in dict.fromkeys(type(module) for module in places.modules):
        seen.update(_class(kind))
    for name in ("_loss", "closure"):
        seen[name] = freeze(getattr(objective, name), DEPTH)
    return seen


def _class(kind: type) -> Iterator[tuple[Hashable, Hashable]]:
    """The part of a class that its forward may read: attributes that it names, and what methods that it calls name."""
    if _is_library(kind):
        return
    own = [base for base in kind.__mro__ if not _is_library(base)]
    reached, waiting = {"forward"}, ["forward"]
    while waiting:
        name = waiting.pop()
        base = next((base for base in own if name in base.__dict__), None)
        if base is None:
            continue
        value = base.__dict__[name]
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        yield (base, name), freeze(value, SHALLOW)
        if isinstance(value, types.FunctionType):
            named = [other for other in _names(value.__code__) if other not in reached]
            reached.update(named)
            waiting += named


def _is_library(kind: type) -> bool:
    """True if nobody is expected to change a class."""
    return kind.__module__.partition(".")[0] in ("torch", "builtins", "typing", "abc", "numpy")


def _tensors(module: nn.Module) -> Iterator[Hashable]:
    for table in (module._parameters, module._buffers):
        for name, tensor in table.items():
            if tensor is not None:
                yield name, tensor.shape, tensor.dtype, tensor.requires_grad, tensor.device


def freeze(value: Any, depth: int) -> Hashable:  # noqa: PLR0911, C901 - one case a line
    """A hashable picture of a value: equal pictures, as far as it looks, mean equal values."""
    if isinstance(value, SCALARS):
        return type(value), value
    if isinstance(value, Tensor):
        return "tensor", id(value), 0 if value.is_inference() else value._version, value.requires_grad
    if isinstance(value, nn.Module) or depth == 0:
        return type(value), id(value)
    if isinstance(value, (list, tuple)):
        return type(value), len(value), tuple(freeze(item, depth - 1) for item in value[:LONGEST])
    if isinstance(value, dict):
        items = list(value.items())[:LONGEST]
        return "dict", len(value), tuple((freeze(k, 0), freeze(v, depth - 1)) for k, v in items)
    if isinstance(value, (set, frozenset, deque)):
        return type(value), len(value), tuple(freeze(item, depth - 1) for item in itertools.islice(value, LONGEST))
    if isinstance(value, (np.ndarray, np.generic)) and value.nbytes <= LARGEST and not value.dtype.hasobject:
        return "array", value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, functools.partial):
        return "partial", freeze((value.func, value.args, value.keywords), depth)
    if isinstance(value, types.MethodType):
        return "method", freeze(value.__func__, depth), freeze(value.__self__, depth - 1)
    if isinstance(value, types.FunctionType):
        return _function(value, depth)
    return _object(value, depth)


def _object(value: Any, depth: int) -> Hashable:
    if isinstance(value, type) and not _is_library(value):
        plain = [(k, v) for k, v in itertools.islice(vars(value).items(), LONGEST) if isinstance(v, SCALARS)]
        return type, id(value), tuple(plain)
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        return type(value), id(value)
    own = {**_slots(value), **getattr(value, "__dict__", {})}
    items = [(k, freeze(v, depth - 1)) for k, v in list(own.items())[:LONGEST] if not callable(v)]
    return type(value), id(value), tuple(items)


def _slots(value: Any) -> dict[str, Any]:
    """The attributes of an object that keeps them outside of a ``__dict__``."""
    declared = [getattr(kind, "__slots__", ()) for kind in type(value).__mro__]
    names = [name for one in declared for name in ((one,) if isinstance(one, str) else one) if name[:2] != "__"]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _function(function: types.FunctionType, depth: int) -> Hashable:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(freeze(cell.cell_contents, depth - 1))
        except ValueError:
            cells.append("empty")
    named = [function.__globals__.get(name) for name in _names(function.__code__)]
    return (
        "function",
        id(function.__code__),
        freeze(function.__defaults__, depth - 1),
        freeze(function.__kwdefaults__, depth - 1),
        tuple(cells),
        tuple(freeze(value, depth - 1) for value in named if not isinstance(value, types.ModuleType)),
    )


@functools.lru_cache(maxsize=256)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Global names that a function's code, with the functions inside of it, refers to."""
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))


def changes(before: Picture, after: Picture) -> set[Hashable]:
    """The keys under which two pictures differ."""
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
