from __future__ import annotations

import copy

import pytest
import torch
import wide
from torch import nn

from deepzero import baselines
from deepzero.baselines import AlignAda, AlignProp, AlignZero
from deepzero.errors import CheckpointError
from deepzero.losses import centered_squared_error
from deepzero.training.gradient_sources import Autograd

METHODS = (AlignAda, AlignProp, AlignZero)


def after_training(method: type[baselines.Baseline]) -> tuple[nn.Module, nn.Module]:
    """The model with the update of ``method`` in its gradients, away from its initial weights, and the initial model."""
    model = wide.make()
    initial = copy.deepcopy(model)
    source = method(model, loss=centered_squared_error)
    wide.moved(model)
    source.backward(*wide.digits())
    return model, initial


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_at_the_initial_weights_it_is_backpropagation(method: type[baselines.Baseline]) -> None:
    model = wide.make()
    Autograd(model, loss=centered_squared_error).backward(*wide.digits())
    expected = wide.gradient(model)
    model.zero_grad()
    method(model, loss=centered_squared_error).backward(*wide.digits())
    wide.assert_same(model, expected)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_later_it_is_not(method: type[baselines.Baseline]) -> None:
    model, _ = after_training(method)
    found = wide.gradient(model)
    model.zero_grad()
    Autograd(model, loss=centered_squared_error).backward(*wide.digits())
    for name, p in model.named_parameters():
        if name.endswith("weight") and (name != "fc.weight" or method is AlignZero):
            assert torch.linalg.norm(found[name] - p.grad) > 0.1 * torch.linalg.norm(p.grad), name


def test_align_ada_sends_the_error_through_the_initial_network_to_the_current_layers() -> None:
    model, initial = after_training(AlignAda)
    x, y = wide.digits()
    layers, features, logits = wide.forward(model, x)
    error = wide.error_at(logits, y)
    errors = wide.errors_down(wide.forward(initial, x)[0], initial, error)
    wide.assert_same(model, wide.received(layers, errors) | wide.top(features, error))


def test_align_zero_has_all_but_the_error_from_the_initial_network() -> None:
    model, initial = after_training(AlignZero)
    x, y = wide.digits()
    layers, features, _ = wide.forward(initial, x)
    error = wide.error_at(wide.forward(model, x)[2], y)
    errors = wide.errors_down(layers, initial, error)
    wide.assert_same(model, wide.received(layers, errors) | wide.top(features, error))


def test_align_prop_has_only_the_weights_on_the_way_down_from_the_initial_network() -> None:
    model, initial = after_training(AlignProp)
    x, y = wide.digits()
    layers, features, logits = wide.forward(model, x)
    error = wide.error_at(logits, y)
    errors = wide.errors_down(layers, initial, error)
    wide.assert_same(model, wide.received(layers, errors) | wide.top(features, error))


def test_the_loss_is_the_current_network_s() -> None:
    for method in METHODS:
        model = wide.make()
        source = method(model, loss=centered_squared_error)
        wide.moved(model)
        x, y = wide.digits()
        torch.testing.assert_close(source.backward(x, y), centered_squared_error(model(x), y).detach())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_built_at_trained_weights_does_not_resume(method: type[baselines.Baseline]) -> None:
    state = method(wide.make(), loss=centered_squared_error).state_dict()
    late = method(wide.moved(wide.make()), loss=centered_squared_error)
    with pytest.raises(CheckpointError, match=f"{method.name} was built on a model at other weights"):
        late.load_state_dict(state)


def test_another_method_s_state_is_refused() -> None:
    state = AlignZero(wide.make(), loss=centered_squared_error).state_dict()
    with pytest.raises(CheckpointError, match="another method"):
        AlignAda(wide.make(), loss=centered_squared_error).load_state_dict(state)
