"""Sets of coordinates: row-major flat indices, checked when made and when used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deepzero as dz
from deepzero.coordinates import AllCoordinates, Always, CoordinateSchedule, StepContext, as_schedule
from deepzero.errors import InvalidInputError

SHAPES = {"weight": torch.Size((2, 3)), "bias": torch.Size((2,))}


def test_dense_holds_every_coordinate_once() -> None:
    dense = dz.Coordinates.dense(SHAPES)
    assert dense.count == 8
    assert dense.names == ["weight", "bias"]
    assert dense["weight"].tolist() == list(range(6))


def test_masks_round_trip() -> None:
    masks = {"weight": torch.tensor([[True, False, True], [False, False, True]]), "bias": torch.tensor([False, True])}
    chosen = dz.Coordinates.from_masks(masks)
    assert chosen["weight"].tolist() == [0, 2, 5]
    restored = chosen.masks(SHAPES)
    assert all(torch.equal(restored[name], masks[name]) for name in masks)


def test_indices_are_row_major_whatever_the_memory_format() -> None:
    mask = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    mask[1, 2, 0, 1] = True
    for memory_format in (torch.contiguous_format, torch.channels_last):
        assert dz.Coordinates.from_masks({"w": mask.contiguous(memory_format=memory_format)})["w"].tolist() == [21]


def test_indices_are_sorted_and_distinct() -> None:
    assert dz.Coordinates({"w": torch.tensor([5, 1, 5, 0])})["w"].tolist() == [0, 1, 5]


def test_parameters_without_a_coordinate_are_left_out() -> None:
    chosen = dz.Coordinates.from_masks(
        {"weight": torch.zeros(2, 3, dtype=torch.bool), "bias": torch.ones(2, dtype=torch.bool)}
    )
    assert chosen.names == ["bias"]
    assert "weight" not in chosen
    assert len(chosen) == 1
    assert not chosen.masks(SHAPES)["weight"].any()
    assert repr(chosen) == "Coordinates(2 in 1 parameters)"


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([0.0, 1.0]), "int64"),
        (torch.tensor([0, 1], dtype=torch.int32), "int64"),
        (torch.tensor([[0, 1]]), "1-D"),
        (torch.tensor([2, -1]), "negative"),
    ],
)
def test_bad_indices(index: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dz.Coordinates({"weight": index})


def test_a_mask_must_be_boolean() -> None:
    with pytest.raises(InvalidInputError, match=r"weight must be a bool tensor.*mask != 0"):
        dz.Coordinates.from_masks({"weight": torch.ones(2, 3)})


def test_coordinates_must_fit_the_parameters() -> None:
    parameters = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    dz.Coordinates.dense(SHAPES).check_fits(parameters)
    with pytest.raises(InvalidInputError, match=r"'heavy'.*model.named_parameters\(\): weight, bias"):
        dz.Coordinates({"heavy": torch.tensor([0])}).check_fits(parameters)
    with pytest.raises(InvalidInputError, match="reach index 6, but it has 6 entries"):
        dz.Coordinates({"weight": torch.tensor([0, 6])}).check_fits(parameters)


def test_a_mask_must_have_the_shape_of_its_parameter() -> None:
    model = nn.Linear(3, 2)
    masks = {"weight": torch.ones(3, 2, dtype=torch.bool)}
    with pytest.raises(InvalidInputError, match="shape"):
        dz.CGE(model, loss=nn.functional.mse_loss, sparsity=masks).estimate(torch.zeros(1, 3), torch.zeros(1, 2))


def test_what_may_be_passed_as_sparsity() -> None:
    chosen = dz.Coordinates({"weight": torch.tensor([0])})
    assert isinstance(as_schedule(None), AllCoordinates)
    assert as_schedule(chosen) == Always(chosen)
    schedule = Always(chosen)
    assert as_schedule(schedule) is schedule
    assert isinstance(schedule, CoordinateSchedule)
    assert isinstance(as_schedule({"weight": torch.ones(2, 3, dtype=torch.bool)}), CoordinateSchedule)
    with pytest.raises(InvalidInputError, match="sparsity must be None, Coordinates"):
        as_schedule(0.9)  # type: ignore[arg-type]


def test_the_context_of_a_schedule() -> None:
    """A schedule sees the step, the epoch, the objective and the batch."""
    seen: list[StepContext] = []

    class Spy:
        def coordinates(self, context: StepContext) -> dz.Coordinates:
            seen.append(context)
            return dz.Coordinates({"bias": torch.tensor([context.step])})

    zo = dz.CGE(nn.Linear(3, 2), loss=nn.functional.mse_loss, sparsity=Spy(), evaluator=dz.SequentialEvaluator())
    x, y = torch.ones(1, 3), torch.zeros(1, 2)
    zo.backward(x, y)
    zo.set_epoch(7)
    zo.backward(x, y)
    assert [(c.step, c.epoch) for c in seen] == [(0, 0), (1, 7)]
    assert seen[0].objective is zo.objective
    assert seen[0].batch == (x, y)
