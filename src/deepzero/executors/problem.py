"""Identity of a black box's problem: its function, the values that it refers to, and the parameters' shapes."""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepzero.arrays import OnBareArray
from deepzero.executors.queries import tensor_bytes
from deepzero.objective import SendableObjective, parameters_of

DIGEST_BYTES = 8
ASSIGNING = frozenset({"STORE_GLOBAL", "STORE_DEREF", "DELETE_GLOBAL", "DELETE_DEREF"})
SETTING = frozenset({"STORE_ATTR", "DELETE_ATTR"})
LOOKING_UP = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
SIMPLE = (
    *(type(None), bool, int, float, complex, str, bytes, type(Ellipsis)),
    *(np.generic, np.dtype, torch.dtype, torch.device, torch.Size, enum.Enum),
)
INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))

_known: dict[int, tuple[weakref.ref[Any], bytes]] = {}


def problem_of(box: SendableObjective) -> str:
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
        >>> from deepzero import BlackBox
        >>> box = BlackBox(lambda p: float(p["w"].sum()), {"w": np.zeros(2)})
        >>> problem_of(box) == problem_of(BlackBox(box.fn, {"w": np.ones(2)}))
        True
        >>> problem_of(box) == problem_of(BlackBox(box.fn, {"w": np.ones(3)}))
        False
    """
    function = box.worker_function()
    fn = function.fn.fn if isinstance(function.fn, OnBareArray) else function.fn
    digest = hashlib.blake2b(_digest(fn), digest_size=DIGEST_BYTES)
    digest.update(f"{'array' if fn is not function.fn else 'dict'};".encode())
    values: Mapping[str, Any] = getattr(box, "values", None) or parameters_of(box)
    for name, value in values.items():
        kind = "array" if name in function.arrays else "tensor"
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


def read_callable(fn: Callable[..., Any]) -> bytes:
    """Digest of all that decides what a function computes, as far as the program itself holds it.

    That is, from the function on, through whatever it refers to by name (globals, closure variables, defaults; of
    an object its attributes; of a module of yours what is taken from it):

    - the bytecode of functions and methods of your own, nested ones included. Installed packages and the standard
      library count by name;
    - numbers, strings, arrays, tensors, and tuples, lists, dicts and sets of these.

    A variable or attribute that the code itself assigns is state, a counter for example, and does not count; nor do the
    weights of an ``nn.Module``, files, services and environment variables.

    Example:
        >>> scale = 2.0
        >>> def make(scale):
        ...     return lambda x: scale * x
        >>> read_callable(make(2.0)) == read_callable(make(2.0)), read_callable(make(2.0)) == read_callable(make(3.0))
        (True, False)
    """
    return _Reader(_package(fn)).read(fn)


class _Reader:
    """Feeds a hash; each object that could refer to itself is read once.

    Args:
        package: top-level package whose code counts even where it is installed.
    """

    def __init__(self, package: str) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self._package = package
        self._places: dict[int, int] = {}
        self._read: list[object] = []  # keeps what was read alive, so that ids stay its own

    def read(self, value: Any) -> bytes:
        self._feed(value)
        return self._hash.digest()

    def _say(self, text: str) -> None:
        self._hash.update(f"{text};".encode())

    def _feed(self, *values: Any) -> None:
        for value in values:
            if isinstance(value, SIMPLE):
                self._say(f"{type(value).__name__} {value!r}")
            elif isinstance(value, tuple):
                self._say(f"tuple {len(value)}")
                self._feed(*value)
            elif id(value) in self._places:
                self._say(f"again {self._places[id(value)]}")
            else:
                self._places[id(value)] = len(self._places)
                self._read.append(value)
                self._feed_new(value)

    def _feed_new(self, value: Any) -> None:
        if isinstance(value, (Tensor, np.ndarray)):
            self._feed_array(value)
        elif isinstance(value, Mapping):
            self._say(f"mapping {len(value)}")
            self._feed(*value.items())
        elif isinstance(value, list):
            self._say(f"list {len(value)}")
            self._feed(*value)
        elif isinstance(value, (set, frozenset)):
            self._say(f"set {len(value)}")
            self._feed(*sorted((item for item in value if isinstance(item, SIMPLE)), key=repr))
        elif isinstance(value, types.ModuleType):
            self._say(f"module {value.__name__}")
        elif isinstance(value, types.CodeType):
            self._feed_code(value)
        else:
            self._feed_object(value)

    def _feed_array(self, value: Tensor | np.ndarray[Any, Any]) -> None:
        self._say(f"{type(value).__name__} {value.dtype} {tuple(value.shape)}")
        if isinstance(value, np.ndarray):
            self._hash.update(b"" if value.dtype.hasobject else value.tobytes())
        elif value.layout is torch.strided and not value.is_meta:
            self._hash.update(tensor_bytes(value))

    def _feed_object(self, value: Any) -> None:
        if isinstance(value, functools.partial):
            self._feed("partial", value.func, value.args, value.keywords)
        elif isinstance(value, types.MethodType):
            self._feed("method", value.__func__, value.__self__)
        elif isinstance(value, types.FunctionType):
            self._feed_function(value)
        elif isinstance(value, type):
            self._feed_class(value)
        elif hasattr(value, "__wrapped__"):
            self._feed("wrapped", value.__wrapped__)
        elif hasattr(value, "__qualname__"):
            self._say(f"{value.__module__}.{value.__qualname__}")
        else:
            self._feed_instance(value)

    def _is_own(self, value: Any) -> bool:
        """True if the code of a function or class is the user's."""
        return self._is_own_module(str(value.__module__))

    def _is_own_module(self, name: str) -> bool:
        package = name.partition(".")[0]
        if package in {self._package, "__main__"}:
            return True
        file = getattr(sys.modules.get(name), "__file__", None)
        return package != "deepzero" and file is not None and not any(map(Path(file).is_relative_to, INSTALLED))

    def _feed_function(self, fn: types.FunctionType) -> None:
        self._say(f"function {fn.__module__}.{fn.__qualname__}")
        if not self._is_own(fn):
            return
        self._feed(fn.__code__, fn.__defaults__, fn.__kwdefaults__)
        codes = list(_codes(fn.__code__))
        assigned = {name for code in codes for name in _names(code, ASSIGNING)}
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            if name not in assigned:
                self._feed(name, _content(cell))
        attributes = {name for code in codes for name in code.co_names}
        for name in sorted({name for code in codes for name in _names(code, LOOKING_UP)} - assigned):
            value = fn.__globals__.get(name)
            self._feed(name, value)
            if isinstance(value, types.ModuleType) and self._is_own_module(value.__name__):
                self._feed(*((a, vars(value)[a]) for a in sorted(attributes & vars(value).keys())))

    def _feed_code(self, code: types.CodeType) -> None:
        """Bytecode, constants and names; not the lines that it stands on."""
        self._say(f"code {code.co_name} {code.co_argcount} {code.co_kwonlyargcount} {code.co_flags}")
        self._hash.update(code.co_code)
        self._feed(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_consts)

    def _feed_class(self, value: type) -> None:
        self._say(f"class {value.__module__}.{value.__qualname__}")
        for base in value.__mro__:
            if self._is_own(base):
                self._feed(base.__qualname__, *sorted(_members(base).items()))

    def _feed_instance(self, value: Any) -> None:
        """The class, and the attributes that no method but ``__init__`` assigns."""
        self._feed(type(value))
        if not self._is_own(type(value)):
            return
        functions = [m for c in type(value).__mro__ if self._is_own(c) for m in _methods(c)]
        changed = {
            a for m in functions if m.__name__ != "__init__" for c in _codes(m.__code__) for a in _names(c, SETTING)
        }
        for name, attribute in sorted(getattr(value, "__dict__", {}).items()):
            if name not in changed and not (isinstance(value, nn.Module) and name.startswith("_")):
                self._feed(name, attribute)


def _package(value: Any) -> str:
    while isinstance(value, functools.partial):
        value = value.func
    module = getattr(value, "__module__", None) or type(value).__module__
    return str(module).partition(".")[0]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of the functions inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _names(code: types.CodeType, operations: frozenset[str]) -> Iterator[str]:
    """The names that some operations of a code take, its own variables left out."""
    for step in dis.get_instructions(code):
        if step.opname in operations and step.argval not in code.co_cellvars:
            yield str(step.argval)


def _members(value: type) -> dict[str, Any]:
    """Attributes that a class statement set: functions, and values that are not Python's own business."""
    found = dict(vars(value))
    found = {name: getattr(m, "__func__", None) or getattr(m, "fget", None) or m for name, m in found.items()}
    return {
        name: m
        for name, m in found.items()
        if isinstance(m, (types.FunctionType, *SIMPLE, tuple, list, dict, Tensor, np.ndarray))
        and not (name.startswith("__") and not isinstance(m, types.FunctionType))
    }


def _methods(value: type) -> list[types.FunctionType]:
    return [m for m in _members(value).values() if isinstance(m, types.FunctionType)]


def _content(cell: types.CellType) -> Any:
    """The value of a closure variable; None if it has none yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
