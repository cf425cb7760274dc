"""Schedules: the coordinates of a step, as a pure function of seed, step, epoch and parameters.

None of them keeps a state that a resumed run would need. The paper's M2, a fixed mask, needs no class here: pass the
masks themselves as ``sparsity``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Real
from torch import Tensor, nn

from deepzero import validation
from deepzero.coordinates import Coordinates, StepContext
from deepzero.errors import InvalidInputError
from deepzero.objective import Loss, NetworkObjective, parameters_of, split_batch
from deepzero.randomness import derive_seed
from deepzero.sparsity.scores import zo_grasp
from deepzero.sparsity.selection import RANKS, always_names, check_ratios, counts_from_ratios, draw, masks_from_scores

UNITS = ("step", "epoch")


class Score(Protocol):
    """Ranks weights from a batch: :func:`zo_grasp`, :func:`fo_grasp`, or one's own."""

    def __call__(
        self, model: nn.Module, loss: Loss, x: Any, y: Any, /, *, seed: int
    ) -> dict[str, Real[Tensor, " ..."]]:
        """One score per weight, by parameter name, in the parameters' shapes."""
        ...


@dataclass
class _Memo:
    """The last draw, kept only so that one that lasts several steps is made once."""

    shapes: Mapping[str, torch.Size] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    full: Collection[str] = ()
    index: int | None = None
    drawn: Coordinates = field(default_factory=lambda: Coordinates({}))


@dataclass(frozen=True)
class DynamicRatios:
    """Coordinates redrawn at random under fixed layer-wise ratios: the paper's dynamic sparsity.

    At index :math:`j = \\lfloor \\text{step} / \\text{every} \\rfloor` (or epoch) each layer with a ratio gets
    :math:`\\mathrm{round}(k_l n_l)` coordinates, uniformly at random without replacement, as a pure function of
    :math:`(\\text{seed}, j)`: a resumed run draws the same bits. The code of Chen et al., 2024 redraws every 5 epochs;
    every step costs no more. Epochs are those that the loop announces with ``zo.set_epoch(epoch)``.

    Attributes:
        ratios: keep ratios in (0, 1] by parameter name, for example from :func:`layer_ratios`.
        every: steps or epochs that a draw lasts.
        unit: ``step`` or ``epoch``.
        seed: of all draws.
        always: names of the parameters without a ratio to query in full (default: all of them).

    Raises:
        InvalidInputError: a ratio outside (0, 1], ``every`` below 1, an unknown unit; at the first step, an unknown
            name.

    Example:
        >>> import deepzero as dz, torch.nn.functional as F
        >>> model = nn.Linear(10, 10)
        >>> zo = dz.CGE(model, loss=F.mse_loss, sparsity=DynamicRatios({"weight": 0.25}, every=1))
        >>> _ = zo.backward(torch.randn(4, 10), torch.randn(4, 10))
        >>> zo.queries  # 25 weights, 10 biases and the base
        36
    """

    ratios: Mapping[str, float]
    _: KW_ONLY
    every: int = 5
    unit: str = "step"
    seed: int = 0
    always: Collection[str] | None = None
    _memo: _Memo = field(default_factory=_Memo, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", check_ratios(self.ratios))
        validation.count("every", self.every)
        validation.choice("unit", self.unit, UNITS)

    def coordinates(self, context: StepContext) -> Coordinates:
        """The draw in force at this step."""
        parameters = parameters_of(context.objective)
        shapes = {name: p.shape for name, p in parameters.items()}
        memo = self._memo
        if memo.shapes != shapes:
            memo.counts = counts_from_ratios(self.ratios, parameters)
            memo.full = always_names(parameters, memo.counts, self.always)
            memo.shapes, memo.index = shapes, None
        index = (context.step if self.unit == "step" else context.epoch) // self.every
        if memo.index != index:
            memo.drawn = draw(parameters, memo.counts, memo.full, derive_seed(self.seed, "dynamic", index))
            memo.index = index
        return memo.drawn


@dataclass(frozen=True)
class Alternating:
    """Coordinates ranked again at every step, at the current parameters and on the current batch: the paper's M1.

    The queries of the score (``2 * (queries + 1)`` for ZO-GraSP) come on top of those that ``zo.queries`` counts.

    Attributes:
        sparsity: fraction of the prunable weights to leave out, in [0, 1).
        score: the function that ranks them, called as ``score(model, loss, x, y, seed=...)``; set its options with
            ``functools.partial(zo_grasp, queries=64)``.
        rank: ``absolute`` or ``signed``, see :func:`masks_from_scores`.
        prunable: names to thin; by default every parameter with two or more dimensions.
        always: names of the other parameters to query in full (default: all of them).
        seed: the score of step :math:`t` is seeded by :math:`(\\text{seed}, t)`.

    Raises:
        InvalidInputError: sparsity outside [0, 1), an unknown rank; at the first step, an objective that is not a
            network.
    """

    sparsity: float
    score: Score = zo_grasp
    _: KW_ONLY
    rank: str = "absolute"
    prunable: Collection[str] | None = None
    always: Collection[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        validation.fraction("sparsity", self.sparsity)
        validation.choice("rank", self.rank, RANKS)

    def coordinates(self, context: StepContext) -> Coordinates:
        """The best-ranked coordinates at the current parameters."""
        objective = context.objective
        if not isinstance(objective, NetworkObjective):
            raise InvalidInputError("Alternating scores networks only; for a black box use dz.DynamicRatios(ratios)")
        x, y = split_batch(context.batch)
        seed = derive_seed(self.seed, "alternating", context.step)
        scores = self.score(objective.model, objective.loss, x, y, seed=seed)
        masks = masks_from_scores(scores, self.sparsity, rank=self.rank, prunable=self.prunable, always=self.always)
        return Coordinates.from_masks(masks)
