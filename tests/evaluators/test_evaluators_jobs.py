"""The queries of a step as a record, and how they are cut into jobs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal
from torch import nn

import deepzero as dz
from deepzero.evaluators import StepQueries
from deepzero.evaluators.base import JOINT, Job, cut, directions_by_kind
from deepzero.probes import CoordinatePerturbations, Perturbations, RandomPerturbations

PARAMETERS = {"a": torch.zeros(7), "b": torch.zeros(4)}


def box() -> dz.BlackBox:
    return dz.BlackBox(lambda p: float(p["a"].sum() + p["b"].sum()), {"a": np.zeros(7), "b": np.zeros(4)})


def queries(perturbations: Perturbations, offsets: list[float]) -> StepQueries:
    return StepQueries(box(), (), perturbations, offsets, seed=0)


def along_coordinates() -> CoordinatePerturbations:
    chosen = dz.Coordinates({"a": torch.tensor([0, 2, 3, 5, 6]), "b": torch.tensor([1, 3])})
    return CoordinatePerturbations(chosen, PARAMETERS)


def along_random_directions(count: int) -> RandomPerturbations:
    return RandomPerturbations(count, "gaussian", 0, PARAMETERS)


def test_cutting_covers_every_direction_once() -> None:
    jobs = cut(queries(along_coordinates(), [1.0]), {"a": 2, "b": 5}, {"a": 3.0, "b": 4.0})
    assert jobs == [
        Job(0, 0, 2, "a", 3.0, first=0, full=5), Job(0, 2, 4, "a", 3.0, first=0, full=5),
        Job(0, 4, 5, "a", 3.0, first=0, full=5), Job(0, 5, 7, "b", 4.0, first=5, full=2),
    ]  # fmt: skip


def test_every_offset_is_cut_alike() -> None:
    jobs = cut(queries(along_random_directions(5), [0.5, -0.5]), 3)
    assert [(job.row, job.start, job.stop, job.kind) for job in jobs] == [
        (0, 0, 3, JOINT), (0, 3, 5, JOINT), (1, 0, 3, JOINT), (1, 3, 5, JOINT),
    ]  # fmt: skip
    assert [list(job.directions) for job in jobs[:2]] == [[0, 1, 2], [3, 4]]


def test_coordinates_of_a_parameter_are_of_one_kind() -> None:
    directions = along_coordinates()
    kinds = directions_by_kind(directions)
    assert kinds == {"a": range(5), "b": range(5, 7)}
    for name, numbers in kinds.items():
        assert {directions.locate(k)[0] for k in numbers} == {name}


def test_a_record_of_queries_knows_their_points_and_steps() -> None:
    asked = queries(along_coordinates(), [0.5, -0.25])
    assert asked.shape == (2, 7)
    moved = asked.moved(asked.parameters(), 1, 6)
    assert moved["b"].tolist() == [0, 0, 0, -0.25]
    assert moved["a"] is asked.parameters()["a"] or torch.equal(moved["a"], torch.zeros(7, dtype=torch.float64))
    assert asked.nominal_steps().tolist() == [[0.5] * 7, [-0.25] * 7]
    assert asked.describe(1, 6) == "b[3] moved by -0.25"
    with pytest.raises(dataclasses.FrozenInstanceError):
        asked.seed = 1  # type: ignore[misc]


def test_weights_of_propagated_jobs_are_the_work_of_their_queries() -> None:
    """Bytes that a query writes, not what it holds: the seconds of a query follow them."""
    model = initialize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    zo = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator())
    batch = (normal(8, 4), torch.arange(8) % 3)
    prepared = zo.evaluator.prepare(zo.step_queries(zo.directions(*batch), [1e-3], batch))
    prepared.release()
    assert {job.kind: job.weight for job in prepared.jobs} == zo.evaluator.work(zo.objective, *batch)
