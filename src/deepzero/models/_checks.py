"""Checks that the constructors of all models share."""

from __future__ import annotations

from deepzero.errors import InvalidInputError


def require_positive(**values: int) -> None:
    """Raise :class:`~deepzero.errors.InvalidInputError` unless every value is an integer of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInputError(f"{name} must be an integer of at least 1, got {value!r}")
