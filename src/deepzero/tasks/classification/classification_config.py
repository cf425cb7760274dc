"""The configuration of a classification run: frozen records, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from deepzero import baselines, models, validation
from deepzero.errors import InvalidInputError
from deepzero.losses import LOSSES
from deepzero.own import absolute, is_own
from deepzero.probes import DISTRIBUTIONS
from deepzero.sparsity.schedules import UNITS
from deepzero.stencils import CENTRAL, FORWARD, Stencil
from deepzero.tasks.task_config import DataConfig, record_of
from deepzero.training.training_config import TrainingConfig

ESTIMATORS = ("cge", "rge")
METHODS = (*ESTIMATORS, "fo", *baselines.names())
SCORES = ("fo-grasp", "magnitude", "random", "zo-grasp")
RATIOS = (*SCORES, "cost-aware", "smart-ratio", "uniform")
PATTERNS = ("alternating", "dynamic", "static")
COST_WEIGHTS = ("equal", "sensitivity", "smart-ratio")
STORAGES = {"float32": torch.float32, "float16": torch.float16}
STENCILS: dict[str, Stencil] = {stencil.name: stencil for stencil in (FORWARD, CENTRAL)}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

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
        """Short name of the network, or of its class."""
        return self.name.rpartition("/")[2].removesuffix(".py") if is_own(self.name) else self.name


@dataclass(frozen=True, kw_only=True)
class EstimatorConfig:
    """The source of gradients.

    Attributes:
        method: ``cge`` and ``rge`` estimate them from function values; ``fo`` is autograd on the same coordinates, and
            the names of :func:`deepzero.baselines.names` are other methods, for comparison.
        step_size: :math:`\\mu` of the finite difference.
        stencil: ``forward`` or ``central``.
        queries: directions a step, for ``rge``.
        distribution: of the directions, for ``rge``.
        storage: ``float16``: a GPU keeps the differences of ``cge`` in half the memory, see
            :class:`deepzero.PropagationEvaluator`; ``float32`` or None otherwise.
        options: further keywords of a baseline.
    """

    method: str = "cge"
    step_size: float = 5e-3
    stencil: str = "forward"
    queries: int = 192
    distribution: str = "gaussian"
    storage: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        validation.choice("estimator", self.method, METHODS)
        validation.positive("step_size", self.step_size, hint="5e-3")
        validation.choice("stencil", self.stencil, STENCILS)
        validation.count("queries", self.queries)
        validation.choice("distribution", self.distribution, DISTRIBUTIONS)
        if self.storage is not None:
            validation.choice("storage", self.storage, STORAGES)
        if self.storage == "float16" and self.method != "cge":
            raise InvalidInputError(
                f"storage must be float32 with the estimator {self.method}, got float16, which is of the differences "
                "that cge propagates; leave it out, or choose estimator=cge"
            )
        if self.options and self.method not in baselines.names():
            raise InvalidInputError(f"options belong to baselines ({', '.join(baselines.names())}), not {self.method}")


@dataclass(frozen=True, kw_only=True)
class SparsityConfig:
    """The coordinates that are queried, and when they change.

    Attributes:
        sparsity: part of the weights that is not queried at a step, in [0, 1); norms and biases always are.
        ratios: source of the shares of the layers: a ranking of weights (``zo-grasp``, ``fo-grasp``, ``magnitude``,
            ``random``) or a rule (``smart-ratio``, ``uniform``; ``cost-aware`` spends the work that Smart-Ratio would
            take at this sparsity, see :func:`deepzero.sparsity.cost_aware_ratios`).
        pattern: ``dynamic`` draws coordinates at random under layer-wise ratios, again and again (the paper's);
            ``static`` keeps the best-ranked ones, or one draw of a rule; ``alternating`` ranks the weights again at
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
        """True if single weights are ranked, not only layers."""
        return self.ratios in SCORES


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """A classification run: all that its result depends on, and nothing else.

    Attributes:
        data: images or a table.
        model: the network.
        estimator: source of gradients.
        sparsity: the coordinates that are queried.
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
