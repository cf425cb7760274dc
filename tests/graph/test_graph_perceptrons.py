"""Multilayer perceptrons: differences that stay multiples of a few directions, against full forwards and autograd."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, estimate, initialize, normal
from torch import Tensor, nn

import deepzero as dz
from deepzero.graph import differences
from deepzero.graph.differences import RankOne, TooLargeError

ACTIVATIONS = {"relu": nn.ReLU, "leaky relu": nn.LeakyReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}


def perceptron(*sizes: int, activation: str = "relu", dtype: torch.dtype = torch.float64) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    model = nn.Sequential(*layers[:-1])
    initialize(model, dtype=dtype)
    return model


def data(batch: int, features: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = normal(batch, features, seed=3).to(dtype)
    x[:, ::4] = 0  # as many pixels are
    return x, torch.arange(batch) % classes


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(6, 9, 8, 4), (5, 7, 6, 8, 6, 3)], ids=["3 layers", "5 layers"])
@pytest.mark.parametrize("step_size", [1e-3, 1.0])
def test_as_full_forwards(activation: str, sizes: tuple[int, ...], step_size: float) -> None:
    model, (x, y) = perceptron(*sizes, activation=activation), data(7, sizes[0], sizes[-1])
    found = estimate(model, F.cross_entropy, x, y, dz.PropagationEvaluator(), step_size=step_size)
    expected = estimate(model, F.cross_entropy, x, y, dz.SequentialEvaluator(), step_size=step_size)
    assert_close(found.gradients, expected.gradients, 1e-9)


@pytest.mark.parametrize("batch", [1, 20])
def test_a_regression(batch: int) -> None:
    model, (x, _) = perceptron(6, 9, 8, 1), data(batch, 6, 1)
    y = normal(batch, 1, seed=8)
    found = estimate(model, F.mse_loss, x, y, dz.PropagationEvaluator(), step_size=0.1)
    expected = estimate(model, F.mse_loss, x, y, dz.SequentialEvaluator(), step_size=0.1)
    assert_close(found.gradients, expected.gradients, 1e-9)


def test_dropout_between_layers() -> None:
    hidden = [nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 4)]
    model, (x, y) = nn.Sequential(*hidden), data(7, 6, 4)
    initialize(model)
    model.train()
    found = estimate(model, F.cross_entropy, x, y, dz.PropagationEvaluator(), step_size=0.1)
    expected = estimate(model, F.cross_entropy, x, y, dz.SequentialEvaluator(), step_size=0.1)
    assert_close(found.gradients, expected.gradients, 1e-9)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_single_precision_against_autograd(activation: str) -> None:
    exact, (x, y) = perceptron(8, 30, 20, 5, activation=activation), data(16, 8, 5)
    F.cross_entropy(exact(x), y).backward()
    single = perceptron(8, 30, 20, 5, activation=activation, dtype=torch.float32)
    found = estimate(single, F.cross_entropy, x.float(), y, dz.PropagationEvaluator(), step_size=1e-7)
    gradients = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    for name, gradient in found.gradients.items():
        error = (gradient.double() - gradients[name]).norm() / gradients[name].norm()
        assert error < 3e-6, f"{name}: {error:.1e}"


def test_a_chunk_without_room_is_cut_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = perceptron(6, 9, 8, 4), data(7, 6, 4)
    whole = estimate(model, F.cross_entropy, x, y, dz.PropagationEvaluator(), step_size=1.0)
    cuts = []
    require = RankOne.require_room

    def counted(self: RankOne, rows: int, size: int) -> None:
        try:
            require(self, rows, size)
        except TooLargeError:
            cuts.append(self.count)
            raise

    monkeypatch.setattr(differences, "ROOM", 2000)
    monkeypatch.setattr(RankOne, "require_room", counted)
    found = estimate(model, F.cross_entropy, x, y, dz.PropagationEvaluator(), step_size=1.0)
    assert cuts
    assert_close(found.gradients, whole.gradients, 1e-12)


def test_bits_do_not_depend_on_workers() -> None:
    model, (x, y) = perceptron(12, 30, 20, 5, dtype=torch.float32), data(16, 12, 5, torch.float32)
    options = {"step_size": 0.1}
    one, two = (
        estimate(model, F.cross_entropy, x, y, dz.PropagationEvaluator(workers=w, chunk_bytes=1 << 18), **options)
        for w in (1, 2)
    )
    for name, gradient in one.gradients.items():
        assert torch.equal(gradient, two.gradients[name])
