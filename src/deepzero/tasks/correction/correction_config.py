"""The configuration of a correction: frozen records, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.tasks.correction.wake import TEST_REYNOLDS, TRAINING_REYNOLDS
from deepzero.tasks.task_config import record_of
from deepzero.training.training_config import SCHEDULES

SRC, NON, FO_SOL, ZO_SOL, ZO_SOL_RGE = "src", "non", "fo-sol", "zo-sol", "zo-sol-rge"
OPAQUE, EMULATOR = "opaque", "opaque-emulator"
METHODS = {
    SRC: "the coarse solver by itself: nothing is trained",
    NON: "one step on pairs that were computed before: the network never meets the solver",
    ZO_SOL_RGE: "random directions in the space of weights (RGE), as many queries as DeepZero",
    ZO_SOL: "DeepZero: coordinate-wise estimates with gradient sparsity, by difference propagation",
    OPAQUE: "ours: the network by autograd, the solver by orthonormal directions in its states",
    EMULATOR: "ours, with an emulator of the step that learns from the answers as control variate",
    FO_SOL: "backpropagation through the solver: what a differentiable one allows, an upper bound",
}
"""Ways to train the network, in one line each."""
QUERYING = (ZO_SOL_RGE, ZO_SOL, OPAQUE, EMULATOR)
"""Methods that can only run the solver."""
WEIGHTS = (ZO_SOL_RGE, ZO_SOL)
"""Methods that move the weights of the network."""
TRAINING = (NON, FO_SOL, *QUERYING)
USED_BY = {
    "unroll": (FO_SOL, *QUERYING),
    "steps": (NON, FO_SOL, *QUERYING),
    "budget": QUERYING,
    "directions": (OPAQUE, EMULATOR),
    "sparsity": WEIGHTS,
    "ratios": (ZO_SOL,),
    "learning_rate": TRAINING,
}
"""Settings that only some methods look at."""
UNIFORM, ZO_GRASP = "uniform", "zo-grasp"
RATIOS = {UNIFORM: "the same part of every layer", ZO_GRASP: "as ZO-GraSP ranks the layers"}
"""Divisions of the coordinates of ``zo-sol`` among the layers."""

GLOROT, ZERO = "glorot", "zero"
STARTS = {GLOROT: "uniform as in Glorot and Bengio, like the others", ZERO: "0: training starts from the solver alone"}
"""Initial weights of the last layer."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The wake flows: on a fine grid as reference, on one of half the resolution as source.

    Attributes:
        resolution: cells across of the source; the reference has twice as many.
        warmup: steps of the reference before its first frame, so that vortices shed.
        frames: of the reference that are kept, one a step.
        training: Reynolds numbers to train on.
        test: Reynolds numbers to test on.
        tolerance: of the pressure solves.
    """

    resolution: int = 32
    warmup: int = 2500
    frames: int = 500
    training: tuple[float, ...] = TRAINING_REYNOLDS
    test: tuple[float, ...] = TEST_REYNOLDS
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        validation.count("resolution", self.resolution, minimum=8)
        validation.count("warmup", self.warmup, minimum=0)
        validation.count("frames", self.frames, minimum=2)
        validation.positive("tolerance", self.tolerance, hint="1e-5")
        for name in ("training", "test"):
            numbers = getattr(self, name)
            if not numbers:
                raise InvalidInputError(f"{name} needs at least one Reynolds number, for example ({TEST_REYNOLDS[0]},)")
            for number in numbers:
                validation.positive(f"a Reynolds number of {name}", number, hint="390.6")


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """A correction: all that its result depends on, and nothing else.

    Attributes:
        flow: the simulations.
        method: one of :data:`METHODS`.
        widths: hidden channels of the network.
        unroll: n, steps of the solver in the objective; ``non`` has one.
        batch_size: simulations of a batch.
        start: of the last layer's weights, one of :data:`STARTS`.
        steps: of Adam, for methods that do not count solver calls.
        budget: solver calls (steps of single simulations) of the methods that can only run it; None: no bound but
            ``steps``.
        learning_rate: of Adam, at its peak.
        schedule: of the learning rate.
        sparsity: share of the weights that a step of ``zo-sol`` leaves out.
        ratios: division of its coordinates among the layers, one of :data:`RATIOS`.
        directions: of a state and step, for ``opaque`` and ``opaque-emulator``.
        step_size: of the finite differences in weights.
        seed: of everything that is drawn.

    Raises:
        InvalidInputError: a value is out of its domain.
    """

    flow: FlowConfig = field(default_factory=FlowConfig)
    method: str = OPAQUE
    widths: tuple[int, ...] = (32, 64)
    unroll: int = 16
    batch_size: int = 3
    start: str = GLOROT
    steps: int = 9680
    budget: int | None = None
    learning_rate: float = 1e-4
    schedule: str = "constant"
    sparsity: float = 0.95
    ratios: str = UNIFORM
    directions: int = 16
    step_size: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        validation.choice("method", self.method, METHODS)
        validation.choice("ratios", self.ratios, RATIOS)
        validation.choice("start", self.start, STARTS)
        validation.choice("schedule", self.schedule, SCHEDULES)
        validation.count("unroll", self.unroll)
        if self.unroll >= self.flow.frames:
            raise InvalidInputError(
                f"unroll={self.unroll} steps need as many frames after the first; there are {self.flow.frames} frames"
            )
        for name in ("batch_size", "steps", "directions"):
            validation.count(name, getattr(self, name))
        validation.count("seed", self.seed, minimum=0)
        for name, hint in (("learning_rate", "1e-4"), ("step_size", "1e-3")):
            validation.positive(name, getattr(self, name), hint=hint)
        validation.fraction("sparsity", self.sparsity)
        if self.budget is not None:
            validation.count("budget", self.budget)
        for width in self.widths:
            validation.count("a width of widths", width)


def from_record(record: Mapping[str, Any]) -> CorrectionConfig:
    """The configuration that a run folder keeps as JSON.

    Example:
        >>> from dataclasses import asdict
        >>> config = CorrectionConfig(widths=(8, 8), unroll=4)
        >>> from_record(asdict(config)) == config
        True
    """
    return record_of(CorrectionConfig, record)
