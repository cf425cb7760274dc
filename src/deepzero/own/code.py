"""A function or class of the user's own by its name: ``file.py``, ``file.py:function`` or ``module:function``."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from deepzero.errors import DeepZeroError, InvalidInputError
from deepzero.own.function_arguments import arguments
from deepzero.text import did_you_mean

T = TypeVar("T")
FORMS = "file.py, file.py:function or module:function"


def is_own(word: str) -> bool:
    """True if a word names something of the user's own, as no recipe does.

    Example:
        >>> [is_own(word) for word in ("digits", "box.py", "box.py:make", "package.box:make")]
        [False, True, True, True]
    """
    return word.endswith(".py") or ":" in word


def parted(word: str) -> tuple[str, str]:
    """The file or module that a word names, and the rest of the word: a colon and a name, or nothing.

    Example:
        >>> parted("box.py:make"), parted("box.py"), parted("package.box:make")
        (('box.py', ':make'), ('box.py', ''), ('package.box', ':make'))
    """
    place, colon, name = word.rpartition(":") if not word.endswith(".py") else (word, "", "")
    return place, colon + name


def absolute(word: str) -> str:
    """The word with the path of its file made absolute, so that it can be found from other folders.

    Example:
        >>> absolute("package.box:make")
        'package.box:make'
    """
    place, rest = parted(word)
    return f"{Path(place).expanduser().absolute()}{rest}" if place.endswith(".py") else word


def imported(word: str, default: str = "recipe") -> Any:
    """The object that a word names: a function, a class, or whatever else stands under that name.

    The file's folder is put in front of ``sys.path``, as ``python file.py`` does, and stays there: the file may import
    its neighbours now and while its functions run, and worker processes find it. With an ``__init__.py`` beside it the
    file is a part of its package, and relative imports work, too.

    Args:
        word: ``file.py``, ``file.py:function`` or ``module:function``.
        default: the name that is taken where the word has none.

    Raises:
        InvalidInputError: there is no such file, module or name, or it cannot be imported; the message says which line
            of it is at fault.
    """
    place, rest = parted(word)
    if not place or rest == ":":
        raise InvalidInputError(f"expected {FORMS}, got {word!r}")
    name = rest[1:] or default
    module = _from_file(Path(place)) if place.endswith(".py") else _from_module(place)
    if not hasattr(module, name):
        there = _public(module)
        what = f"there are: {', '.join(there)}" if there else "it defines nothing"
        raise InvalidInputError(
            f"{place} has no {name!r}{did_you_mean(name, there)}; {what}. Type {place}:NAME for one of them, or "
            f"define {name}"
        )
    return getattr(module, name)


def called(function: Any, settings: Mapping[str, str]) -> Any:
    """The result of a function, called with settings from the command line; other objects are handed on.

    Args:
        function: as :func:`imported` gives it.
        settings: words by parameter; each becomes what the parameter's annotation, else its default, asks for.

    Raises:
        InvalidInputError: a setting is unknown or has a value that does not fit, a parameter without a default is not
            set, or the function raises an error or returns None; the message says in which line.

    Example:
        >>> def recipe(depth: int, rate: float = 0.1): return depth, rate
        >>> called(recipe, {"depth": "3"}), called(recipe, {"depth": "3", "rate": "1e-3"})
        ((3, 0.1), (3, 0.001))
    """
    if not (inspect.isroutine(function) or inspect.isclass(function) or isinstance(function, functools.partial)):
        if settings:
            raise InvalidInputError(
                f"--set is for the parameters of a function, but {_shown(function)} is none; leave out "
                f"--set {next(iter(settings))}=..."
            )
        return function
    name = str(getattr(function, "__name__", type(function).__name__))
    positional, keywords = arguments(function, name, settings)
    try:
        result = function(*positional, **keywords)
    except DeepZeroError:
        raise
    except Exception as error:
        raise InvalidInputError(f"{name} failed: {located(error)}") from error
    if result is None:
        raise InvalidInputError(f"{name} returned nothing; let it end in `return ...`")
    return result


def require_kind(value: Any, kinds: tuple[type, ...], word: str, expected: str) -> None:
    """Raise unless a value is of one of the kinds; ``expected`` says in words what the value should be."""
    if not isinstance(value, kinds):
        raise InvalidInputError(f"{word} must give {expected}; it gives {_shown(value)}")


def located(error: BaseException) -> str:
    """An error in one line, with the last line of the user's own code that it passed through.

    Lines of installed packages, of this one and of Python itself are nobody's to correct, so they are not named.
    """
    message = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        message = error.msg
        where = f"{Path(error.filename).name}, line {error.lineno}" if error.filename and error.lineno else ""
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
        where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    kind = type(error).__name__
    return f"{f'{where}: ' if where else ''}{kind}{f': {message}' if message else ''}"


def _is_users(filename: str) -> bool:
    path = Path(filename)
    foreign = (Path(__file__).parents[1], Path(inspect.__file__).parent)
    return path.is_file() and "site-packages" not in path.parts and not any(f in path.parents for f in foreign)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        folder = path.parent
        names = [p.name for p in folder.glob("*.py")] if folder.is_dir() else []
        what = "is a folder" if path.is_dir() else "does not exist"
        where = "" if path.is_absolute() else f" (looked in {Path.cwd()})"
        raise InvalidInputError(f"{path} {what}{did_you_mean(path.name, names)}{where}; expected {FORMS}")
    path = path.resolve()
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    name = ".".join(parts)
    _require_free(name, path)
    for folder in {root: None, path.parent: None}:  # the file's own comes first
        _put_in_front(folder)
    if name in sys.modules:
        return sys.modules[name]
    if len(parts) > 1:
        return _guarded(lambda: importlib.import_module(name), path.name)
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module, loader = module_from_spec(spec), spec.loader
    sys.modules[name] = module
    try:
        _guarded(lambda: loader.exec_module(module), path.name)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _from_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InvalidInputError(f"{name!r} is no module and no .py file; expected {FORMS}")
    _put_in_front(Path.cwd())
    try:
        return _guarded(lambda: importlib.import_module(name), name)
    except InvalidInputError as error:
        cause = error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise
        file = Path(f"{name.replace('.', '/')}.py")
        hint = f"; type {file}:FUNCTION" if file.is_file() else f"; expected {FORMS}"
        raise InvalidInputError(
            f"there is no module {missing!r} in {Path.cwd()} or among the installed packages{hint}"
        ) from cause


def _guarded(execute: Callable[[], T], what: str) -> T:
    """Import, with every way to fail in words."""
    try:
        return execute()
    except SystemExit as error:
        raise InvalidInputError(
            f'{what} ends the program when it is imported; put what it runs under `if __name__ == "__main__":`'
        ) from error
    except ModuleNotFoundError as error:
        advice = f"; install it, or put {error.name}.py beside the file" if error.name else ""
        raise InvalidInputError(f"{what} cannot be imported: {located(error)}{advice}") from error
    except ImportError as error:
        relative = "relative import" in str(error)
        advice = "; write `import name` for a file beside it, or put an __init__.py there" if relative else ""
        raise InvalidInputError(f"{what} cannot be imported: {located(error)}{advice}") from error
    except Exception as error:
        raise InvalidInputError(f"{what} cannot be imported: {located(error)}") from error


def _require_free(name: str, path: Path) -> None:
    """Raise if another module has the name, loaded or of Python itself: worker processes would take the wrong one."""
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if (name in sys.modules and (loaded is None or Path(loaded).resolve() != path)) or name in sys.stdlib_module_names:
        raise InvalidInputError(f"{path.name} has the name of another module, {name}, that is in use; rename the file")


def _put_in_front(folder: Path) -> None:
    """Let imports look into a folder first."""
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))


def _public(module: ModuleType) -> list[str]:
    """Functions and classes that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    ]


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"
