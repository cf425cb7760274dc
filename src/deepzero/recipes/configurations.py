"""Configurations of ``deepzero train``: a recipe with changed settings, a file, or data and a network of one's own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from deepzero import data
from deepzero.errors import InvalidInputError
from deepzero.files import JSON_BYTES, parsed, read_at_most
from deepzero.recipes.classification_recipes import find
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
    from_record,
)
from deepzero.tasks.task_data import DataReader
from deepzero.text import did_you_mean
from deepzero.training import TrainingConfig, command_of

RUN = "deepzero run"
ENDINGS = (".json", ".toml")
BATCH = 32
"""Samples of a batch, for data of one's own: small sets fill one, too."""
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
    "storage": ("estimator", "storage"),
    "sparsity": ("sparsity", "sparsity"),
    "ratios": ("sparsity", "ratios"),
    "depth": ("model", "options", "depth"),
}
"""Setting -> its place in :class:`~deepzero.tasks.classification.ClassificationConfig`."""


def customize(config: ClassificationConfig, **settings: Any) -> ClassificationConfig:
    """``config`` with other settings; those that are None stay as they are.

    With ``estimator="rge"`` the sparsity becomes 0 unless it is set too, because random directions have none.

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


def own_config(
    images: DataConfig, model: ModelConfig | None = None, *, reader: DataReader | None = None
) -> ClassificationConfig:
    """Settings that suit most small sets: 20 epochs of coordinate-wise estimates, sparse for images.

    Nine of ten weights of a network for images are left out at every step, in layers by Smart-Ratio (Chen et al., 2024
    compare such ratios); tables have small networks, which are queried whole.

    Args:
        images: the data.
        model: the network; by default a convolutional one for images (``simple_cnn``, as deep as their size allows, 3
            blocks at most) and a perceptron for tables (``mlp``).
        reader: reads the data if a network is to be found for them, and keeps them for the training.
    """
    if model is None:
        model = suggested_model((reader or DataReader()).read(images).train)
    sparsity = 0.0 if model.name == "mlp" else 0.9
    return ClassificationConfig(
        data=replace(images, batch_size=BATCH),
        model=model,
        estimator=EstimatorConfig(method="cge", step_size=5e-3),
        sparsity=SparsityConfig(sparsity=sparsity, ratios="smart-ratio", every=1, unit="step"),
        training=TrainingConfig(epochs=20, learning_rate=0.1, warmup_epochs=1.0),
    )


def suggested_model(train: data.Dataset) -> ModelConfig:
    """The network that :func:`own_config` takes by default."""
    if len(train.input_shape) == 1:
        return ModelConfig(name="mlp")
    depth = min(3, min(train.input_shape[1:]).bit_length() - 1)
    return ModelConfig(name="simple_cnn", options={"depth": depth}) if depth else ModelConfig(name="mlp")


def with_data(config: ClassificationConfig, images: DataConfig) -> ClassificationConfig:
    """A configuration for other data: its batches and augmentation stay."""
    kept = {name: getattr(config.data, name) for name in ("batch_size", "validation", "padding", "flip", "drop_last")}
    return replace(config, data=replace(images, **kept))


def data_config(
    word: str,
    *,
    target: str | None = None,
    image_size: int | None = None,
    test: float | None = None,
    limit: int | None = None,
) -> DataConfig:
    """The data that a word of the command line means: a named set, or a file or folder.

    The other arguments are attributes of :class:`~deepzero.tasks.classification.DataConfig`.

    Raises:
        InvalidInputError: nothing that can be read is there.
        DataNotFoundError: nothing is there.
    """
    if word in data.names() and not Path(word).exists():
        return DataConfig(name=word, target=target, image_size=image_size, test=test, limit=limit)
    return DataConfig.of_path(word, target=target, image_size=image_size, test=test, limit=limit)


def config_file(path: Path) -> tuple[str, ClassificationConfig]:
    """A configuration from a file, and its name.

    Args:
        path: a run's ``run.json``, or JSON or TOML in the form of :class:`ClassificationConfig`: tables ``data``,
            ``model``, ``estimator``, ``sparsity`` and ``training``. With ``recipe = "digits"`` at the top it changes
            that recipe, and may leave out what stays.

    Raises:
        InvalidInputError: there is no such file, or it holds something else; the message names the setting.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "quick.toml")
        ...     _ = file.write_text('recipe = "digits"\\n[training]\\nepochs = 2\\n')
        ...     config_file(file)[1].training.epochs
        2
    """
    values = _read(path)
    if str(values.get("format", "")).startswith(RUN):
        if not isinstance(values.get("config"), dict) or "data" not in values["config"]:
            raise InvalidInputError(f"{path} holds no settings of deepzero train; {_made_by(values)}")
        return str(values.get("recipe") or "run"), from_record(values["config"])
    try:
        if "recipe" not in values:
            return path.stem, from_record(values)
        changes = {key: value for key, value in values.items() if key != "recipe"}
        return path.stem, from_record(_merged(asdict(find(str(values["recipe"])).config()), changes))
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from error


def _made_by(record: Mapping[str, Any]) -> str:
    """Advice to start a run again that has no such settings."""
    own = record.get("own")
    if isinstance(own, Mapping) and "recipe" in own:
        return f"its run was started from {own['recipe']}; type deepzero train {own['recipe']}"
    made_by = command_of(record) if isinstance(record.get("config"), Mapping) else "train"
    return f"its run was made by deepzero {made_by}; type deepzero {made_by} RECIPE"


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir() and (path / "run.json").is_file():
        raise InvalidInputError(f"{path} is the folder of a run; type --config {path / 'run.json'}")
    if path.suffix in ENDINGS and not path.exists():
        guess = did_you_mean(path.name, [p.name for p in path.parent.glob("*") if p.suffix in ENDINGS])
        raise InvalidInputError(
            f"there is no file {path}{guess}; --config takes a run's run.json, or a file of your own"
        )
    if path.suffix not in ENDINGS:
        raise InvalidInputError(f"--config takes a file that ends in {' or '.join(ENDINGS)}, got {path}")
    try:
        content = read_at_most(path, JSON_BYTES)
        text = content.decode()
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    try:
        values = parsed(content) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} is no {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(values, dict):
        raise InvalidInputError(f"{path} must hold settings by name, got {type(values).__name__}")
    return values


def _merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with some of them changed."""
    for key, value in changes.items():
        inner = isinstance(value, dict) and isinstance(values.get(key), dict) and key != "options"
        values[key] = _merged(values[key], value) if inner else value
    return values
