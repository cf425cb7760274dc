"""An objective of one's own, with ``worker_function()``, on an executor: as a black box."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import deepzero as dz
from deepzero.errors import JournalError
from deepzero.objective import BlackBoxFunction, Evaluation


def cubes(params: dict[str, np.ndarray[Any, Any]], scale: float = 1.0) -> float:
    return float(scale * (params["w"] ** 3).sum())


class Own:
    """Not a ``dz.BlackBox``, but its function can be sent."""

    def __init__(self) -> None:
        self.w = nn.Parameter(torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "w", self.w

    def evaluate(self, parameters: dict[str, torch.Tensor], batch: tuple[Any, ...], *, seed: int) -> Evaluation:
        return Evaluation(torch.tensor(cubes({"w": parameters["w"].numpy()}, *batch), dtype=torch.float64))

    def commit(self, buffers: dict[str, torch.Tensor]) -> None:
        """No buffers."""

    def worker_function(self) -> BlackBoxFunction:
        return BlackBoxFunction(cubes, frozenset({"w"}))


class Unsendable(Own):
    worker_function = None  # type: ignore[assignment]


def test_it_is_estimated_on_workers_with_the_bits_of_a_loop(tmp_path: Path) -> None:
    here = dz.CGE(Own(), step_size=0.5).estimate(2.0)
    with ThreadPoolExecutor(2) as pool, dz.QueryJournal(tmp_path / "queries.sqlite") as journal:
        zo = dz.CGE(Own(), step_size=0.5, executor=pool, journal=journal)
        there, again = zo.estimate(2.0), zo.estimate(2.0)
        assert zo.evaluator.replayed == 4
        with pytest.raises(JournalError, match="answers the problem"):
            dz.CGE(dz.BlackBox(np.sum, np.ones(3)), executor=pool, journal=journal).estimate()
    assert torch.equal(here.gradients["w"], there.gradients["w"])
    assert torch.equal(again.gradients["w"], there.gradients["w"])


def test_without_a_function_no_worker_can_answer() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(dz.errors.InvalidInputError, match="is for black boxes"):
        dz.CGE(Unsendable(), executor=pool)
    assert dz.CGE(Unsendable(), step_size=0.5).estimate().queries == 4
