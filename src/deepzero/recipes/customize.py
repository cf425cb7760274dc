"""A recipe with some of its settings changed."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from deepzero.errors import InvalidInputError
from deepzero.tasks.classification import ClassificationConfig
from deepzero.text import did_you_mean

SETTINGS: dict[str, tuple[str, ...]] = {
    "seed": ("seed",),
    "epochs": ("training", "epochs"),
    "learning_rate": ("training", "learning_rate"),
    "momentum": ("training", "momentum"),
    "weight_decay": ("training", "weight_decay"),
    "checkpoint_steps": ("training", "checkpoint_steps"),
    "checkpoint_minutes": ("training", "checkpoint_minutes"),
    "batch_size": ("data", "batch_size"),
    "limit": ("data", "limit"),
    "estimator": ("estimator", "method"),
    "step_size": ("estimator", "step_size"),
    "stencil": ("estimator", "stencil"),
    "queries": ("estimator", "queries"),
    "sparsity": ("sparsity", "sparsity"),
    "ratios": ("sparsity", "ratios"),
    "depth": ("model", "options", "depth"),
}
"""Setting -> where it is in :class:`~deepzero.tasks.classification.ClassificationConfig`."""


def customize(config: ClassificationConfig, **settings: Any) -> ClassificationConfig:
    """``config`` with the given settings; those that are None stay as they are.

    With ``estimator="rge"`` the sparsity becomes 0 unless it is given too, because random directions have none.

    Raises:
        InvalidInputError: a setting is unknown or out of its domain.

    Example:
        >>> from deepzero.recipes import find
        >>> customize(find("digits").config(), epochs=2, sparsity=0.5).training.epochs
        2
    """
    changes = {name: value for name, value in settings.items() if value is not None}
    if changes.get("estimator") == "rge":
        changes.setdefault("sparsity", 0.0)
    tree: dict[str, Any] = {}
    for name, value in changes.items():
        _plant(tree, _path(name), value)
    changed: ClassificationConfig = _changed(config, tree)
    return changed


def _path(name: str) -> tuple[str, ...]:
    if name not in SETTINGS:
        raise InvalidInputError(
            f"unknown setting {name!r}{did_you_mean(name, SETTINGS)}; there are: {', '.join(SETTINGS)}"
        )
    return SETTINGS[name]


def _plant(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _changed(node: Any, tree: dict[str, Any]) -> Any:
    """``node``, a frozen record or a mapping, with the leaves of ``tree`` in place."""
    known = {f.name for f in fields(node)} if is_dataclass(node) else set(node)
    for key in tree.keys() - known:
        raise InvalidInputError(f"this recipe's model has no {key}; leave out --{key}")
    current = {key: getattr(node, key) if is_dataclass(node) else node[key] for key in tree}
    values = {key: _changed(current[key], new) if isinstance(new, dict) else new for key, new in tree.items()}
    return replace(node, **values) if is_dataclass(node) and not isinstance(node, type) else {**node, **values}
