"""The programs for pointwise functions and rows on a GPU do what the plain rules do; see test_graph_cuda_kernels.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, estimate, exported_once, initialize, some_coordinates
from test_graph_cuda_kernels import DEVICE, LABELS, channel_of, close, float32, pytestmark
from torch import Tensor, nn

import deepzero as dz
from deepzero.graph import kernels as by_device
from deepzero.graph.calls import Value
from deepzero.graph.cuda import cuda_row_kernels as kernels
from deepzero.graph.differences import Channel, Dense

__all__ = ["pytestmark"]

Function = Callable[[Tensor], Tensor]
FUNCTIONS: dict[str, Function] = {
    "relu": F.relu,
    "leaky_relu": lambda t: F.leaky_relu(t, 0.1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
}
SIZES = [1e-6, 1e-3, 0.04, 1.0, 30.0]
"""Of differences: the small ones take series, the large ones would overflow in closed forms."""
large = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")


def change(function: Function, z: Tensor, d: Tensor) -> Tensor:
    """In float64, where the plain difference has digits enough for float32."""
    return function(z.double() + d.double()) - function(z.double())


@large
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_pointwise_functions(name: str, size: float) -> None:
    z, d = 3 * float32(4, 5, 7), size * float32(3, 4, 5, 7, seed=1)
    for stacked in (d, d.transpose(2, 3).contiguous().transpose(2, 3)):
        found = kernels.activation(name, Value(z), Dense(stacked), 0.1, overwrite=False)
        assert found is not None
        close(found, change(FUNCTIONS[name], z, d), 3e-6)
    channels = torch.tensor([4, 0, 2], device=DEVICE)
    one = channel_of(d[:, :, 0], channels, (4, 5, 7))
    expected = torch.stack([change(FUNCTIONS[name], z[:, c], d[p, :, 0]) for p, c in enumerate(channels)])
    kept = one.delta.clone()
    found = kernels.activation(name, Value(z), one, 0.1, overwrite=False)
    assert found is not None
    assert torch.equal(one.delta, kept)
    close(found, expected, 3e-6)
    found = kernels.activation(name, Value(z), one, 0.1, overwrite=True)
    assert found is not None
    close(found, expected, 3e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_no_number_stays_none(name: str) -> None:
    z, d = float32(2, 3), float32(1, 2, 3, seed=1)
    d[0, 1, 1] = torch.nan
    found = kernels.activation(name, Value(z), Dense(d), 0.1, overwrite=False)
    assert found is not None
    assert torch.equal(found.isnan(), d.isnan())


@large
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("shape", [(6, 7), (3, 2, 33), (2, 70)])
@pytest.mark.parametrize("size", SIZES[:4])
def test_normalized_rows(mean: bool, shape: tuple[int, ...], size: float) -> None:
    z, d, weight = float32(*shape), size * float32(3, *shape, seed=1), float32(shape[-1], seed=2)

    def function(t: Tensor) -> Tensor:
        centred = t - t.mean(-1, keepdim=True) if mean else t
        return weight.double() * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    c = z - z.mean(-1, keepdim=True) if mean else z
    scale = (c.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    found = kernels.normalize(Dense(d), Value(c), scale, 1e-5, weight, 1, mean=mean, overwrite=False)
    assert isinstance(found, Dense)
    close(found.delta, change(function, z, d), 1e-5)
    rows = torch.tensor([1, 0, 1], device=DEVICE)
    one = Channel(0, rows, d[:, 0], torch.Size(shape))
    found = kernels.normalize(one, Value(c), scale, 1e-5, None, 1, mean=mean, overwrite=True)
    assert isinstance(found, Channel)
    expected = torch.stack([change(function, z[r], d[p, 0]) for p, r in enumerate(rows)]) / weight
    close(found.delta, expected, 1e-5)


@large
@pytest.mark.parametrize("mean", [True, False])
def test_rows_of_whose_variance_next_to_nothing_is_left(mean: bool) -> None:
    """``s^2 + dv`` would have no digit left; differences round by 10^-7 of 3,000 times what they come to."""
    z = 3e3 * float32(6, 33)
    d = float32(2, 6, 33, seed=1) - z

    def function(t: Tensor) -> Tensor:
        return F.layer_norm(t, t.shape[-1:]) if mean else F.rms_norm(t, t.shape[-1:], eps=1e-5)

    c = z - z.mean(-1, keepdim=True) if mean else z
    scale = (c.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    found = kernels.normalize(Dense(d), Value(c), scale, 1e-5, None, 1, mean=mean, overwrite=False)
    assert isinstance(found, Dense)
    close(found.delta, change(function, z, d), 1e-2)


@large
@pytest.mark.parametrize("shape", [(6, 5), (3, 2, 65)])
@pytest.mark.parametrize("size", SIZES)
def test_softmax_its_logarithm_and_the_loss_of_labels(shape: tuple[int, ...], size: float) -> None:
    z, d = 3 * float32(*shape), size * float32(3, *shape, seed=1)
    chances, logs = Value(z.softmax(-1)), Value(z.log_softmax(-1))
    last = len(shape) - 1
    rows = torch.tensor([1, 0, 1], device=DEVICE)
    one = Channel(0, rows, d[:, 0], torch.Size(shape))
    for log in (False, True):

        def function(t: Tensor, log: bool = log) -> Tensor:
            return torch.log_softmax(t, -1) if log else torch.softmax(t, -1)

        found = kernels.softmax(Dense(d), chances, logs, last, log=log, overwrite=False)
        assert isinstance(found, Dense)
        close(found.delta, change(function, z, d), 1e-5)
        own = kernels.softmax(one, chances, logs, last, log=log, overwrite=False)
        assert isinstance(own, Channel)
        close(own.delta, torch.stack([change(function, z[r], d[p, 0]) for p, r in enumerate(rows)]), 1e-5)
    labels = torch.arange(z[..., 0].numel(), device=DEVICE).reshape(shape[:-1]) % shape[-1]
    losses = kernels.label_losses(Dense(d), chances, logs, labels, last)
    assert losses is not None
    every = change(lambda t: -torch.log_softmax(t, -1), z, d)
    close(losses, every.gather(-1, labels.expand(3, *labels.shape).unsqueeze(-1)).squeeze(-1), 1e-5)


def test_rows_that_are_too_long_or_differ_in_one_entry_take_the_plain_rules() -> None:
    z = float32(2, 6)
    chances, logs = Value(z.softmax(-1)), Value(z.log_softmax(-1))
    one = Channel(1, torch.tensor([1], device=DEVICE), float32(1, 2), z.shape)
    assert kernels.softmax(one, chances, logs, 1, log=True, overwrite=False) is None
    assert kernels.softmax(Dense(float32(1, 2, 6)), chances, logs, 0, log=True, overwrite=False) is None
    wide = Value(float32(1, 9000))
    long = Dense(float32(1, 1, 9000))
    assert kernels.normalize(long, wide, float32(1, 1), 1e-5, None, 1, mean=True, overwrite=False) is None


def test_a_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    model = initialize(nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 5)), dtype=torch.float32).to(DEVICE)
    x, labels, chosen = float32(5, 4, 8), LABELS.to(DEVICE), some_coordinates(model, most=2)
    results, graphs = [], []
    for device in (by_device.SomeKernels(kernels), by_device.NONE):
        monkeypatch.setitem(by_device.BY_DEVICE, DEVICE.type, device)
        evaluator = dz.PropagationEvaluator(verify=False, tf32=False)
        with exported_once(graphs):
            results.append(estimate(model, F.cross_entropy, x, labels, evaluator, step_size=1e-4, sparsity=chosen))
    assert_close(results[0].gradients, results[1].gradients, 1e-5)
