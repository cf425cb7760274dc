"""A forward difference in float32, step 1e-6, train-mode batch norm, against autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal, seeded, some_coordinates
from torch import Tensor, nn

import deepzero as dz
from deepzero.models import MLP, SimpleCNN, cifar_resnet

STEP = 1e-6
LABELS = torch.randint(0, 10, (8,), generator=seeded(7))


def images(size: int) -> Tensor:
    """A seed for which no relu of ResNet-20 sees an input below 1e-6, whose sign float32 and float64 may see differently."""
    return normal(8, 3, size, size, seed=10, dtype=torch.float32)


def relative_errors(
    make: Callable[[], nn.Module], x: Tensor, y: Tensor, most: int, loss: Callable[..., Tensor] = F.cross_entropy
) -> dict[str, float]:
    """Of the float32 estimate on sampled coordinates, per parameter tensor, in the Euclidean norm."""
    found, expected = estimated_and_exact(make, x, y, most, loss)
    return {name: float((found[name] - e).norm() / e.norm()) for name, e in expected.items() if e.norm() > 1e-12}


def estimated_and_exact(
    make: Callable[[], nn.Module], x: Tensor, y: Tensor, most: int, loss: Callable[..., Tensor] = F.cross_entropy
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model, exact_model = initialize(make(), dtype=torch.float32), make().double()
    exact_model.load_state_dict(model.state_dict())
    coordinates = some_coordinates(model, most=most)
    wide = x.double() if x.is_floating_point() else x
    value = loss(exact_model(wide), y)
    exact = dict(zip(coordinates, torch.autograd.grad(value, list(exact_model.parameters())), strict=True))
    zo = dz.CGE(model, loss=loss, step_size=STEP, sparsity=coordinates, evaluator=dz.PropagationEvaluator(verify=False))
    found = zo.estimate(x, y)
    assert float(found.loss) == pytest.approx(value.item(), rel=1e-5)
    picked = {name: found.gradients[name].double().reshape(-1)[index] for name, index in coordinates.items()}
    return picked, {name: exact[name].reshape(-1)[index] for name, index in coordinates.items()}


def assert_accurate(errors: dict[str, float], bound: float) -> None:
    wrong = {name: error for name, error in errors.items() if not error <= bound}
    assert not wrong, f"relative errors above {bound}: {wrong}"


def test_resnet_20() -> None:
    errors = relative_errors(lambda: cifar_resnet(20), images(16), LABELS, most=4)
    assert len(errors) == 59
    assert_accurate(errors, 1e-4)


def test_depth_5_cnn() -> None:
    errors = relative_errors(lambda: SimpleCNN(depth=5), images(32), LABELS, most=12)
    assert len(errors) == 17, "all but the five biases in front of batch norm"
    assert_accurate(errors, 1e-4)


def test_a_bias_in_front_of_batch_norm_does_nothing_at_all() -> None:
    found, _ = estimated_and_exact(lambda: SimpleCNN(depth=3), images(16), LABELS, most=12)
    biases = [name for name in found if name.endswith("0.bias")]
    assert len(biases) == 3
    assert not any(found[name].any() for name in biases)


def test_mlp_with_layer_norm_and_gelu() -> None:
    x = normal(8, 20, seed=3, dtype=torch.float32)
    make = lambda: MLP(20, hidden=(16, 16), layer_norm=True, activation="gelu")  # noqa: E731
    assert_accurate(relative_errors(make, x, LABELS, most=30), 1e-3)


class Attention(nn.Module):
    """A small transformer block, mean-pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(
            12, 3, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(x).mean(1))


def test_transformer_block() -> None:
    assert_accurate(relative_errors(Attention, normal(8, 6, 12, seed=3, dtype=torch.float32), LABELS, most=24), 1e-3)


@pytest.mark.parametrize(
    "layer",
    [nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, lambda: nn.GELU("tanh"), nn.LeakyReLU, nn.Softplus, nn.ELU, lambda: nn.GroupNorm(2, 8),
     lambda: nn.Softmax(1), lambda: nn.LogSoftmax(1), nn.Mish, nn.Hardswish],
    ids=lambda layer: layer().__class__.__name__ + str(len(repr(layer()))),
)  # fmt: skip
def test_no_operation_cancels(layer: Callable[[], nn.Module]) -> None:
    """One layer of each kind between two others, also those that take the fallback."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), layer(), nn.Linear(8, 10))

    assert_accurate(relative_errors(make, normal(8, 6, seed=3, dtype=torch.float32), LABELS, most=20), 1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1),
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        lambda o, t: F.nll_loss(F.log_softmax(o, 1), t),
        lambda o, t: F.mse_loss(o, F.one_hot(t, 10).to(o.dtype)),
        F.multi_margin_loss,
        lambda o, t: F.smooth_l1_loss(o, F.one_hot(t, 10).to(o.dtype)),
        lambda o, t: -torch.softmax(o, 1).gather(1, t[:, None]).log().mean(),
        lambda o, t: torch.logsumexp(o, 1).mean() - o.gather(1, t[:, None]).mean(),
    ],
    ids=["smoothing", "per_sample", "nll", "mse", "margin", "smooth_l1", "by_hand", "logsumexp"],
)
def test_no_loss_cancels(loss: Callable[..., Tensor]) -> None:
    x = normal(8, 6, seed=3, dtype=torch.float32)

    def mean_loss(output: Tensor, target: Tensor) -> Tensor:
        return loss(output, target) if loss(output, target).dim() == 0 else loss(output, target).mean()

    make = lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 10))  # noqa: E731
    assert_accurate(relative_errors(make, x, LABELS, most=20, loss=mean_loss), 1e-4)


def test_a_step_far_below_the_rounding_unit_of_the_weights() -> None:
    """The moved weight ``1000 + 1e-6`` is 1000 in float32; the difference does not care."""

    def gradient(dtype: torch.dtype, step_size: float) -> Tensor:
        model = initialize(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 10)), dtype=dtype)
        with torch.no_grad():
            model[2].weight += 1000
        zo = dz.CGE(
            model, loss=lambda o, t: ((o - o.mean(1, keepdim=True)) * 1e-3).square().mean(), step_size=step_size
        )
        zo.evaluator = dz.PropagationEvaluator(verify=False)
        return zo.estimate(normal(8, 6, seed=3, dtype=dtype), LABELS).gradients["2.weight"].double()

    fine, exact = gradient(torch.float32, 1e-7), gradient(torch.float64, 1e-6)
    assert float((fine - exact).norm() / exact.norm()) < 1e-2
