"""Checks of arguments, made before any work starts.

Each function returns the accepted value or raises :class:`~deepzero.errors.InvalidInputError` with a message that says
what was expected, what came, and what to type instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import torch
from torch import Tensor

from deepzero.errors import InvalidInputError
from deepzero.text import did_you_mean


def positive(name: str, value: float, *, hint: str) -> float:
    """Accept a finite real number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise InvalidInputError(f"{name} must be a finite number above 0, got {value!r}; try {name}={hint}")
    return float(value)


def count(name: str, value: int, *, minimum: int = 1) -> int:
    """Accept an integer of at least ``minimum`` that 64 bits hold, as PyTorch asks of seeds and sizes."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InvalidInputError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    if value >= 1 << 63:
        raise InvalidInputError(f"{name} must be below 2^63, got {value!r:.40}")
    return value


def counts(**values: int) -> None:
    """Accept integers of at least 1, by the names of their arguments."""
    for name, value in values.items():
        count(name, value)


def integer(name: str, value: int) -> int:
    """Accept any integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInputError(f"{name} must be an integer, got {value!r}")
    return value


def fraction(name: str, value: float) -> float:
    """Accept a sparsity: a real number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise InvalidInputError(
            f"{name} must lie in [0, 1), got {value!r}; 0 queries every coordinate, 0.9 queries one in ten"
        )
    return float(value)


def probability(name: str, value: float, *, hint: str) -> float:
    """Accept a real number between 0 and 1, neither included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise InvalidInputError(f"{name} must be a number above 0 and below 1, got {value!r}; try {name}={hint}")
    return float(value)


def choice(name: str, value: str, options: Iterable[str]) -> str:
    """Accept one of a few words."""
    accepted = sorted(options)
    if value not in accepted:
        raise InvalidInputError(
            f"{name} must be one of {', '.join(accepted)}; got {value!r}{did_you_mean(str(value), accepted)}"
        )
    return value


def floating(name: str, dtype: torch.dtype) -> torch.dtype:
    """Accept a real floating-point dtype."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidInputError(f"{name} must be a floating-point torch.dtype such as torch.float64, got {dtype!r}")
    return dtype


def device(name: str) -> torch.device:
    """Accept ``cpu``, ``cuda`` or ``cuda:<number>`` if it is there."""
    try:
        accepted = torch.device(name)
    except RuntimeError as error:
        raise InvalidInputError(f"device must be cpu, cuda or cuda:<number>, got {name!r}") from error
    if accepted.type not in {"cpu", "cuda"}:
        raise InvalidInputError(f"device must be cpu, cuda or cuda:<number>, got {name!r}")
    if accepted.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(
            f"device {name} was asked for, but torch finds no CUDA device here; type device=cpu, or install PyTorch "
            "with CUDA"
        )
    return accepted


def tensors(name: str, values: Mapping[str, Tensor], *, hint: str) -> None:
    """Accept tensors by name."""
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise InvalidInputError(f"{name} must be tensors by parameter name, got {values!r:.80}; type {hint}")


def known_names(what: str, names: Iterable[str], parameters: Mapping[str, Tensor]) -> None:
    """Accept names only if each is a trainable parameter."""
    unknown = sorted(set(names) - set(parameters))
    if unknown:
        some = ", ".join(list(parameters)[:5])
        raise InvalidInputError(
            f"{what} names {', '.join(unknown[:5])}, not among the trainable parameters; expected names as in "
            f"model.named_parameters(): {some}, ..."
        )


def fits(value: Any, hint: Any) -> bool:  # noqa: PLR0911 - one kind a line
    """True unless a value that came from JSON or TOML is of another kind than an annotation says.

    Known are None, numbers, texts, unions, tuples, sequences and mappings; other kinds are left to others.

    >>> fits([1, 2.5], Sequence[float]), fits("12", Sequence[float]), fits(True, int), fits((1,), tuple[int, int])
    (True, False, False, False)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if hint in (None, NoneType):
        return value is None
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if origin is tuple and inner[1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin is tuple or origin is Sequence:
        kind = tuple if origin is tuple else (list, tuple)
        return isinstance(value, kind) and all(fits(item, inner[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(fits(key, inner[0]) and fits(value[key], inner[1]) for key in value)
    return isinstance(value, hint) if hint in (str, bool) else True
