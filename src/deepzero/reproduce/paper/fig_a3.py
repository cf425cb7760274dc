"""Fig. A3: accuracy of the paper's sparsity patterns where first-order SGD trains the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from deepzero.reproduce.cells import Cell
from deepzero.reproduce.experiment import Experiment
from deepzero.reproduce.paper import tables_a2_a3
from deepzero.reproduce.paper.tables_a2_a3 import PERCENT, PruningScale
from deepzero.tasks.classification import SparsityConfig

PATTERNS = {
    "M1": SparsityConfig(ratios="zo-grasp", pattern="alternating"),
    "M2": SparsityConfig(ratios="zo-grasp", pattern="static", prune=True),
    "Smart-Ratio": SparsityConfig(ratios="smart-ratio", every=1, unit="epoch"),
    "ZO-GraSP ratios": SparsityConfig(ratios="zo-grasp", every=1, unit="epoch"),
}
"""Sec. 4 of the paper: M1 ranks at every step, M2 prunes at the start, the others draw under layer-wise ratios."""


@dataclass(frozen=True, kw_only=True)
class FigA3Scale(PruningScale):
    """The scale of Fig. A3.

    Attributes:
        m1_queries: directions of ZO-GraSP at every step of M1.
    """

    m1_queries: int

    @classmethod
    def of(cls, scale: PruningScale, **own: Any) -> FigA3Scale:
        """The scale of a table of pruned networks, with fields of its own."""
        return cls(**{**vars(scale), **own})


def cells(scale: FigA3Scale) -> Iterator[Cell]:
    """Every pattern at every sparsity."""
    for seed in range(scale.seeds):
        for percent in scale.percent:
            for method, pattern in PATTERNS.items():
                queries = scale.m1_queries if method == "M1" else scale.queries
                sparsity = replace(pattern, sparsity=percent / 100, queries=queries, per_class=scale.per_class)
                yield Cell.trained({PERCENT: percent, "method": method}, tables_a2_a3.config(scale, sparsity, seed))


_SMALL = tables_a2_a3.RESNET20_SMALL

EXPERIMENT = Experiment(
    name="figA3",
    title="Fig. A3: sparsity patterns in the first-order regime",
    scales={
        "smoke": FigA3Scale.of(tables_a2_a3.SMOKE, m1_queries=2),
        "small": FigA3Scale.of(
            _SMALL,
            caption=f"{_SMALL.caption} M1 with 8 directions a step, on the training batch.",
            percent=(90, 95),
            m1_queries=8,
        ),
        "paper": FigA3Scale.of(tables_a2_a3.full("resnet20"), m1_queries=192),
    },
    cells=cells,
    present=partial(tables_a2_a3.present, curves={}),
)
