import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import CheckpointError, NonFiniteLossError
from deepzero.training import Autograd


def network(*, dropout: float = 0.0, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 3)
        ).double()


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 4, generator=generator, dtype=torch.float64), torch.randint(3, (8,), generator=generator)


def test_it_is_the_gradient_of_autograd() -> None:
    model = network()
    x, y = batch()
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    loss = Autograd(model, loss=F.cross_entropy).backward(x, y)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert not loss.requires_grad


def test_it_equals_the_finite_difference_on_the_same_coordinates_and_is_zero_elsewhere() -> None:
    chosen = dz.Coordinates({"0.weight": torch.tensor([1, 5, 23]), "4.bias": torch.tensor([2])})
    first, second = network(), network()
    Autograd(first, loss=F.cross_entropy, sparsity=chosen).backward(*batch())
    zo = dz.CGE(
        second,
        loss=F.cross_entropy,
        sparsity=chosen,
        step_size=1e-6,
        stencil=dz.CENTRAL,
        evaluator=dz.SequentialEvaluator(),
    )
    zo.backward(*batch())
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-8)
        assert int(a.grad.count_nonzero()) <= (chosen[name].numel() if name in chosen else 0)


def test_gradients_accumulate_as_with_loss_backward() -> None:
    model = network().eval()
    source = Autograd(model, loss=F.cross_entropy)
    source.backward(*batch())
    once = model[0].weight.grad.clone()
    source.backward(*batch())
    torch.testing.assert_close(model[0].weight.grad, 2 * once)
    assert source.queries == 2


def test_dropout_depends_on_seed_and_step_only_and_the_global_generator_is_left_alone() -> None:
    def gradient(seed: int) -> Tensor:
        model = network(dropout=0.5)
        Autograd(model, loss=F.cross_entropy, seed=seed).backward(*batch())
        return model[0].weight.grad

    state = torch.get_rng_state()
    first = gradient(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(first, gradient(0))
    assert not torch.equal(first, gradient(1))


def test_a_loss_that_is_not_finite_leaves_no_gradient() -> None:
    model = network()
    x, y = batch()
    with pytest.raises(NonFiniteLossError):
        Autograd(model, loss=F.cross_entropy).backward(x * torch.nan, y)
    assert model[0].weight.grad is None


def test_state_of_another_estimator_is_refused() -> None:
    zo = dz.CGE(network(), loss=F.cross_entropy)
    source = Autograd(network(), loss=F.cross_entropy)
    with pytest.raises(CheckpointError, match="another method"):
        source.load_state_dict(zo.state_dict())
