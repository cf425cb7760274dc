from typing import Any

import torch
from patients import LOSS, batch, cube, healthy, seeded
from torch import Tensor, nn

import deepzero as dz
from deepzero.doctor.exact_gradients import Exact, exact_gradients
from deepzero.objective import parameters_of
from deepzero.randomness import seeded_scope


def exact(model: Any, seed: int = 0) -> Exact | None:
    objective = dz.NetworkObjective(model, LOSS)
    loss = float(objective.evaluate(parameters_of(objective), batch(), seed=seed).loss)
    return exact_gradients(objective, batch(), seed=seed, loss=loss)


def test_gradients_are_those_of_the_model_in_float64() -> None:
    model = healthy()
    found = exact(model)
    assert found.kind == "float64 autograd"
    x, y = batch()
    wide = healthy().double()
    LOSS(wide(x.double()), y).backward()
    for name, parameter in wide.named_parameters():
        torch.testing.assert_close(found.gradients[name], parameter.grad, rtol=1e-10, atol=1e-14)
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    assert int(model[1].num_batches_tracked) == 0


def test_a_model_that_runs_in_float32_only_is_differentiated_there() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor | None:
            return self.linear(x) @ torch.eye(3, dtype=torch.float32)

    assert exact(seeded(Narrow())).kind == "autograd"


def test_dropout_has_the_masks_of_the_queries() -> None:
    model = seeded(nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)))
    found = exact(model, seed=7)
    x, y = batch()
    with seeded_scope(7, torch.device("cpu")):
        LOSS(model(x), y).backward()
    torch.testing.assert_close(found.gradients["1.weight"].float(), model[1].weight.grad)


def test_frozen_parameters_have_no_gradient() -> None:
    model = healthy()
    model[0].requires_grad_(False)
    assert list(exact(model).gradients) == ["1.weight", "1.bias", "3.weight", "3.bias"]


def test_there_is_none_for_a_black_box_or_behind_no_grad() -> None:
    assert exact_gradients(cube(), (), seed=0, loss=9.0) is None

    class Detached(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    assert exact(seeded(Detached(6, 3))) is None
