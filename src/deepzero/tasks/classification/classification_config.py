"""What an image-classification run consists of: frozen records, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, cast, get_origin, get_type_hints

from deepzero import baselines, data, models, validation
from deepzero.errors import InvalidInputError
from deepzero.losses import LOSSES
from deepzero.own import absolute, is_own
from deepzero.probes import DISTRIBUTIONS
from deepzero.sparsity.schedules import UNITS
from deepzero.stencils import CENTRAL, FORWARD, Stencil
from deepzero.text import did_you_mean
from deepzero.training.training_config import TrainingConfig

Config = TypeVar("Config")

ESTIMATORS = ("cge", "rge")
METHODS = (*ESTIMATORS, "fo", *baselines.names())
SCORES = ("fo-grasp", "magnitude", "random", "zo-grasp")
RATIOS = (*SCORES, "cost-aware", "smart-ratio", "uniform")
PATTERNS = ("alternating", "dynamic", "static")
COST_WEIGHTS = ("equal", "sensitivity", "smart-ratio")
STENCILS: dict[str, Stencil] = {stencil.name: stencil for stencil in (FORWARD, CENTRAL)}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images or table, and how batches are made of them.

    Attributes:
        name: one of :func:`deepzero.data.names`; with a ``path``, the kind of what lies there, as
            :func:`deepzero.data.detect` names it.
        batch_size: images of a training batch.
        validation: part of the training images to select weights by, in [0, 1); with 0 the last weights are taken.
        padding: pixels of padding before a random crop; 0 for no crop.
        flip: whether to flip half of the images left to right.
        drop_last: leave out a last training batch that is not full.
        image_size: average the images down to this size; None for their own.
        limit: use only so many training samples; None for all.
        path: a file or folder of one's own, kept as an absolute path; None for a named set.
        target: the column of a table that holds the labels; None for the usual one.
        test: part of each class to hold out as the test set, where the ``path`` has none; None for the usual part.

    >>> own = DataConfig.of_path("flowers.csv", kind="csv", target="species", batch_size=16)
    >>> own.name, own.target, own.title
    ('csv', 'species', 'flowers.csv')
    """

    name: str
    batch_size: int = 128
    validation: float = 0.1
    padding: int = 0
    flip: bool = False
    drop_last: bool = True
    image_size: int | None = None
    limit: int | None = None
    path: str | None = None
    target: str | None = None
    test: float | None = None

    def __post_init__(self) -> None:
        validation.choice("data", self.name, data.names() if self.path is None else data.KINDS)
        validation.count("batch_size", self.batch_size)
        validation.count("padding", self.padding, minimum=0)
        if self.path is not None:
            object.__setattr__(self, "path", str(Path(self.path).expanduser().absolute()))
        elif (self.target, self.test) != (None, None):
            raise InvalidInputError(
                f"target and test are for data of one's own, which has a path; the set {self.name!r} has its own"
            )

    @classmethod
    def of_path(cls, path: str | Path, *, kind: str | None = None, **options: Any) -> Self:
        """The configuration for a file or folder of one's own.

        Args:
            path: of the file or folder.
            kind: of what lies there; found by :func:`deepzero.data.detect` by default.
            options: other attributes.

        Raises:
            InvalidInputError: there is nothing that can be read.
            DataNotFoundError: there is nothing at all.
        """
        return cls(name=data.detect(path) if kind is None else kind, path=str(path), **options)

    @property
    def title(self) -> str:
        """What a person calls the data: the name of the set, or of the file or folder."""
        return self.name if self.path is None else Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network.

    Attributes:
        name: one of :func:`deepzero.models.names`, or ``file.py:Net`` or ``module:Net`` for one's own; the path of a
            file is kept as an absolute one.
        options: further keywords of the model, such as ``depth``.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        models.require_known(self.name)
        object.__setattr__(self, "name", absolute(self.name))

    @property
    def title(self) -> str:
        """What a person calls the network: its name, or that of its class."""
        return self.name.rpartition("/")[2].removesuffix(".py") if is_own(self.name) else self.name


@dataclass(frozen=True, kw_only=True)
class EstimatorConfig:
    """Where gradients come from.

    Attributes:
        method: ``cge`` and ``rge`` estimate them from function values; ``fo`` is autograd on the same coordinates, and
            the names of :func:`deepzero.baselines.names` are other methods, for comparison.
        step_size: :math:`\\mu` of the finite difference.
        stencil: ``forward`` or ``central``.
        queries: directions a step, for ``rge``.
        distribution: of the directions, for ``rge``.
        options: further keywords of a baseline.
    """

    method: str = "cge"
    step_size: float = 5e-3
    stencil: str = "forward"
    queries: int = 192
    distribution: str = "gaussian"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        validation.choice("estimator", self.method, METHODS)
        validation.positive("step_size", self.step_size, hint="5e-3")
        validation.choice("stencil", self.stencil, STENCILS)
        validation.count("queries", self.queries)
        validation.choice("distribution", self.distribution, DISTRIBUTIONS)
        if self.options and self.method not in baselines.names():
            raise InvalidInputError(f"options belong to baselines ({', '.join(baselines.names())}), not {self.method}")


@dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """Which coordinates are queried, and when they change.

    Attributes:
        sparsity: part of the weights that is not queried at a step, in [0, 1); norms and biases always are.
        ratios: what tells layers apart: a ranking of weights (``zo-grasp``, ``fo-grasp``, ``magnitude``, ``random``) or
            a rule (``smart-ratio``, ``uniform``; ``cost-aware`` spends the work that Smart-Ratio would take at this
            sparsity, see :func:`deepzero.sparsity.cost_aware_ratios`).
        pattern: ``dynamic`` draws coordinates at random under layer-wise ratios, again and again (the paper's);
            ``static`` keeps the best-ranked ones, or one draw of a rule; ``alternating`` ranks the weights anew at
            every step (the paper's M1; its ranking takes further queries, which are not counted).
        prune: the weights outside a static pattern are zero from the start: a sparse network (the paper's M2).
        every: how long a draw lasts.
        unit: of ``every``: ``step`` or ``epoch``.
        queries: directions of ZO-GraSP.
        per_class: images of each class that GraSP looks at.
        exponent: :math:`a` of cost-aware ratios.
        weights: :math:`w_l` of cost-aware ratios: ``equal``, ``smart-ratio``, or ``sensitivity`` (root mean square of a
            layer's partial derivatives at the start).
    """

    sparsity: float = 0.0
    ratios: str = "zo-grasp"
    pattern: str = "dynamic"
    prune: bool = False
    every: int = 1
    unit: str = "step"
    queries: int = 192
    per_class: int = 25
    exponent: float = 0.5
    weights: str = "equal"

    def __post_init__(self) -> None:
        validation.fraction("sparsity", self.sparsity)
        validation.choice("ratios", self.ratios, RATIOS)
        validation.choice("pattern", self.pattern, PATTERNS)
        validation.count("every", self.every)
        validation.choice("unit", self.unit, UNITS)
        validation.count("sparsity queries", self.queries)
        validation.count("per_class", self.per_class)
        validation.choice("weights", self.weights, COST_WEIGHTS)
        if self.prune and self.pattern != "static":
            raise InvalidInputError(
                f"prune takes weights away for good; it needs pattern='static', got {self.pattern!r}"
            )
        if self.pattern == "alternating" and self.ratios not in ("fo-grasp", "zo-grasp"):
            raise InvalidInputError(f"pattern='alternating' ranks by zo-grasp or fo-grasp, got ratios={self.ratios!r}")

    @property
    def ranks(self) -> bool:
        """Whether single weights are ranked, not only layers."""
        return self.ratios in SCORES


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """An image-classification run: all that its result depends on, and nothing else.

    Attributes:
        data: which images.
        model: which network.
        estimator: where gradients come from.
        sparsity: which coordinates are queried.
        loss: one of :data:`deepzero.losses.LOSSES`.
        training: optimizer and schedule.
        seed: of the initial weights, the order of images, augmentation, directions and coordinates.

    Raises:
        InvalidInputError: a value is out of its domain, or two do not go together.
    """

    data: DataConfig
    model: ModelConfig
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    loss: str = "cross-entropy"
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        validation.count("seed", self.seed, minimum=0)
        validation.choice("loss", self.loss, LOSSES)
        if self.estimator.method in baselines.names() and self.sparsity.sparsity > 0:
            raise InvalidInputError(f"{self.estimator.method} takes no sparsity; use sparsity 0, or the estimator cge")
        if self.estimator.method == "rge" and self.sparsity.sparsity > 0:
            raise InvalidInputError(
                f"random directions (rge) move every parameter, so sparsity={self.sparsity.sparsity} cannot apply; "
                "choose sparsity=0, or estimator=cge"
            )


def from_record(record: Mapping[str, Any]) -> ClassificationConfig:
    """The configuration that a run folder keeps as JSON, or that a user has written.

    Raises:
        InvalidInputError: a setting is unknown, missing, or out of its domain.

    Example:
        >>> from dataclasses import asdict
        >>> config = ClassificationConfig(data=DataConfig(name="digits"), model=ModelConfig(name="mlp"))
        >>> from_record(asdict(config)) == config
        True
    """
    return record_of(ClassificationConfig, record)


def record_of(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """A frozen record from settings by name, as JSON or TOML holds them; the records in it are made first.

    Args:
        kind: the record's class.
        values: its fields; lists become tuples where the field is one.
        where: what stands before a name in a message.

    Raises:
        InvalidInputError: a setting is unknown, missing, or out of its domain.
    """
    hints, known = get_type_hints(kind), {field.name: field for field in fields(cast("Any", kind))}
    for name in values:
        if name not in known:
            raise InvalidInputError(
                f"unknown setting {where}{name}{did_you_mean(name, known)}; there are: "
                f"{', '.join(where + k for k in known)}"
            )
    given = {}
    for name, value in values.items():
        if is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise InvalidInputError(f"{where}{name} must hold settings by name, got {value!r}")
            given[name] = record_of(hints[name], value, f"{where}{name}.")
        else:
            given[name] = tuple(value) if get_origin(hints[name]) is tuple and isinstance(value, list) else value
    needed = [name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING]
    missing = [name for name in needed if name not in given]
    if missing:
        raise InvalidInputError(
            f'the setting {where}{missing[0]} is missing; give it, or name a recipe to change: recipe = "digits"'
        )
    try:
        return kind(**given)
    except TypeError as error:
        what = where.rstrip(".") or "the configuration"
        raise InvalidInputError(f"a setting of {what} is of the wrong kind: {error}") from error
