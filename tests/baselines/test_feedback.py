from __future__ import annotations

import json
import math

import pytest
import torch
import wide
from torch import nn

from deepzero import baselines, models
from deepzero.baselines import DirectFeedbackAlignment, FeedbackAlignment
from deepzero.errors import InvalidInputError
from deepzero.losses import centered_squared_error
from deepzero.training.gradient_sources import Autograd

LAYERWISE = ("align-ada", "align-prop", "align-zero", "dfa", "fa")


def build(name: str, model: nn.Module, seed: int = 0) -> baselines.Baseline:
    return baselines.build(name, model, loss=centered_squared_error, seed=seed)


def backpropagated(model: nn.Module) -> wide.Gradients:
    model.zero_grad()
    Autograd(model, loss=centered_squared_error).backward(*wide.digits())
    found = wide.gradient(model)
    model.zero_grad()
    return found


class TestFeedbackAlignment:
    def test_with_the_forward_weights_it_is_backpropagation(self) -> None:
        model = wide.moved(wide.make())
        method = FeedbackAlignment(model, loss=centered_squared_error)
        expected = backpropagated(model)
        method.feedback.load_state_dict(model.state_dict())
        method.backward(*wide.digits())
        wide.assert_same(model, expected)

    def test_errors_go_down_through_the_feedback_weights(self) -> None:
        model, (x, y) = wide.moved(wide.make()), wide.digits()
        method = FeedbackAlignment(model, loss=centered_squared_error, seed=5)
        loss = method.backward(x, y)
        layers, features, logits = wide.forward(model, x)
        error = wide.error_at(logits, y)
        errors = wide.errors_down(layers, method.feedback, error)
        wide.assert_same(model, wide.received(layers, errors) | wide.top(features, error))
        torch.testing.assert_close(loss, centered_squared_error(logits, y))

    def test_feedback_weights_are_standard_normal_functions_of_the_seed(self) -> None:
        model = wide.make(width=16)
        weights = [_weights(FeedbackAlignment(model, loss=centered_squared_error, seed=s).feedback) for s in (0, 0, 1)]
        assert torch.equal(weights[0], weights[1])
        count = weights[0].numel()
        assert abs(weights[0].mean()) < 4 / math.sqrt(count)
        assert abs(weights[0].var() - 1) < 4 * math.sqrt(2 / count)
        for other in (weights[2], _weights(model)):
            assert abs(torch.corrcoef(torch.stack([weights[0], other]))[0, 1]) < 4 / math.sqrt(count)


def _weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if name.endswith("weight")])


class TestDirectFeedbackAlignment:
    def test_the_last_layer_has_its_gradient(self) -> None:
        model = wide.moved(wide.make())
        expected = backpropagated(model)
        build("dfa", model).backward(*wide.digits())
        for name in ("weight", "bias"):
            torch.testing.assert_close(getattr(model.fc, name).grad, expected[f"fc.{name}"])

    def test_hidden_layers_receive_the_error_through_their_matrices(self) -> None:
        model, (x, y) = wide.moved(wide.make()), wide.digits()
        method = DirectFeedbackAlignment(model, loss=centered_squared_error, seed=2)
        method.backward(x, y)
        layers, features, logits = wide.forward(model, x)
        error = wide.error_at(logits, y)
        expected = wide.top(features, error)
        for number, layer in enumerate(layers):
            matrix = method.matrix(number, error, layer.y).view(10, *layer.y.shape[1:])
            expected |= layer.receives(torch.einsum("bk,kchw->bchw", error, matrix) * (layer.y > 0))
        wide.assert_same(model, expected)

    def test_matrices_have_variance_one_over_the_entries_of_the_map(self) -> None:
        method = DirectFeedbackAlignment(wide.make(), loss=centered_squared_error)
        error, maps = torch.zeros(2, 10), torch.zeros(2, 8, 16, 16)
        matrix = method.matrix(0, error, maps)
        assert matrix.shape == (10, 8 * 16 * 16)
        assert abs(matrix.var() * 2048 - 1) < 4 * math.sqrt(2 / matrix.numel())
        other = method.matrix(1, error, maps)
        correlation = torch.corrcoef(torch.stack([matrix.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(matrix.numel())


@pytest.mark.parametrize("name", LAYERWISE)
class TestEveryMethod:
    def test_a_few_steps_lower_the_loss(self, name: str) -> None:
        model, batch = wide.make(), wide.digits(60)
        source, optimizer = build(name, model), torch.optim.SGD(model.parameters(), lr=1.0)
        losses = []
        for _ in range(15):
            optimizer.zero_grad()
            losses.append(float(source.backward(*batch)))
            optimizer.step()
        assert losses[-1] < 0.9 * losses[0]

    def test_a_resumed_run_goes_on_bitwise(self, name: str) -> None:
        model = wide.make()
        source = build(name, model)
        train(model, source, steps=2)
        weights, state = {k: v.clone() for k, v in model.state_dict().items()}, json.dumps(source.state_dict())
        train(model, source, steps=2)

        resumed = wide.make()
        again = build(name, resumed)
        resumed.load_state_dict(weights)
        again.load_state_dict(json.loads(state))
        train(resumed, again, steps=2)
        assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in model.state_dict().items())
        assert source.state_dict() == again.state_dict()
        assert len(json.dumps(state)) < 500

    def test_the_global_generator_is_left_alone(self, name: str) -> None:
        before = torch.get_rng_state()
        build(name, wide.make()).backward(*wide.digits())
        assert torch.equal(torch.get_rng_state(), before)

    def test_another_model_is_refused(self, name: str) -> None:
        with pytest.raises(InvalidInputError, match=r"takes a WideCNN, got SimpleCNN.*\"wide_cnn\", width=32"):
            build(name, models.SimpleCNN())

    def test_frozen_layers_are_refused(self, name: str) -> None:
        model = wide.make()
        model.convs[1].requires_grad_(False)
        with pytest.raises(InvalidInputError, match=r"convs\.1\.weight is frozen"):
            build(name, model)


def train(model: nn.Module, source: baselines.Baseline, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        source.backward(*wide.digits())
        optimizer.step()
