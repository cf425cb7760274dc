"""Live objects as the contents of a checkpoint, and back."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deepzero as dz
from deepzero.errors import InvalidInputError
from deepzero.team import Alone
from deepzero.training import Best, Checkpoint, EarlyStopping
from deepzero.training.batch_reader import reader
from deepzero.training.checkpoint_contents import LiveObjects, Position, decoded, encoded, prefixed


def live(*, trained: bool) -> LiveObjects:
    """The objects of a training, after two steps or before the first one."""
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    source = dz.RGE(model, loss=F.cross_entropy, queries=4, seed=1)
    stopping = EarlyStopping()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    batches = reader([(torch.ones(2, 3), torch.tensor([0, 1]))], torch.device("cpu"), Alone())
    if trained:
        for x, y in [*batches.read(0, 0), *batches.read(1, 0)]:
            optimizer.zero_grad()
            source.backward(x, y)
            optimizer.step()
            scheduler.step()
        stopping.best = 0.25
    return LiveObjects(
        model=model, optimizer=optimizer, scheduler=scheduler, source=source, reader=batches, callbacks=[stopping]
    )


def flat(objects: LiveObjects) -> dict[str, Any]:
    values = {name: value.tolist() for name, value in objects.tensors().items() if not name.startswith("reader/now")}
    return values | objects.values()


def test_the_state_of_all_objects_comes_back() -> None:
    before, after = live(trained=True), live(trained=False)
    assert flat(before) != flat(after)
    checkpoint = Checkpoint(2, before.values(), before.tensors())
    after.restore(Checkpoint.from_bytes(checkpoint.to_bytes()))
    expected, found = flat(before), flat(after)
    assert found.pop("reader") == {"last": None}  # the batch is read again, and compared
    assert expected.pop("reader") != {"last": None}
    assert found == expected


def test_a_callback_more_than_was_saved_is_refused() -> None:
    checkpoint = Checkpoint(0, live(trained=False).values() | {"callbacks": []}, live(trained=False).tensors())
    with pytest.raises(ValueError, match="shorter"):
        live(trained=False).restore(checkpoint)


def test_the_best_weights_are_found_in_a_checkpoint() -> None:
    best = Best({"loss": 0.5}, 3, {"weight": torch.arange(3.0)})
    values = {"best": {"scores": best.scores, "epoch": best.epoch}}
    found = Best.of(Checkpoint(7, values, prefixed("best", best.tensors)))
    assert found is not None
    assert (found.scores, found.epoch, found.tensors["weight"].tolist()) == ({"loss": 0.5}, 3, [0.0, 1.0, 2.0])
    assert Best.of(Checkpoint(7, {"best": None}, {})) is None


def test_a_position_counts_steps_and_epochs() -> None:
    position = Position()
    position.end_step(batches=2, loss=0.5)
    position.end_step(batches=1, loss=0.25)
    assert (position.step, position.index, position.losses) == (2, 3, [0.5, 0.25])
    position.end_epoch(complete=False)
    assert (position.epoch, position.index, position.losses) == (0, 3, [])
    position.end_epoch(complete=True)
    assert (position.epoch, position.index, position.step) == (1, 0, 2)


@pytest.mark.parametrize(
    "value",
    [None, 1.5, math.inf, (1, [2, (3,)]), {1: "a", (2, 3): {"x": -math.inf}}, Counter({4: 2}), {"kind of value": 1}],
)
def test_what_json_does_not_have_comes_back(value: Any) -> None:
    found = decoded(encoded(value))
    assert (found, type(found)) == (value, type(value))


def test_what_cannot_be_saved_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="a function cannot be saved in a checkpoint"):
        encoded({"lr": flat})
