from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import deepzero as dz
from deepzero import models
from deepzero.doctor.operations import check_operations
from deepzero.errors import InvalidInputError
from deepzero.losses import centered_squared_error
from deepzero.models import WideCNN
from deepzero.models.wide_cnn import ScaledConv2d
from deepzero.training.gradient_sources import Autograd


def images(count: int, channels: int, height: int, width: int) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0)).double()


def make(**options: int) -> torch.nn.Module:
    return models.build("wide_cnn", seed=3, **options).double()


@pytest.mark.parametrize(("width", "parameters"), [(8, 3818), (16, 14538), (32, 56714), (64, 224010)])
def test_parameter_counts_are_the_papers(width: int, parameters: int) -> None:
    assert sum(p.numel() for p in WideCNN(width=width).parameters()) == parameters


def test_weights_are_standard_normal_and_biases_zero() -> None:
    model = models.build("wide_cnn", width=32, seed=0)
    weights = torch.cat([p.detach().flatten() for name, p in model.named_parameters() if name.endswith("weight")])
    assert abs(weights.mean()) < 4 / math.sqrt(weights.numel())
    assert abs(weights.var() - 1) < 4 * math.sqrt(2 / weights.numel())
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 6), (5, 5), (1, 2)])
def test_padding_is_tensorflow_s_same(height: int, width: int, stride: int) -> None:
    """Entry (i, j) sees the pixels from ``stride * (i, j) - before`` on, with ``before`` half the padding, rounded down."""
    conv = ScaledConv2d(2, 1, stride=stride).double()
    x = images(1, 2, height, width)
    shape = [math.ceil(size / stride) for size in (height, width)]
    padding = [max((n - 1) * stride + 3 - size, 0) for n, size in zip(shape, (height, width), strict=True)]
    kernel = conv.weight[0] / math.sqrt(9 * 2)
    expected = torch.zeros(shape, dtype=torch.float64)
    for i, j, c, k, m in torch.cartesian_prod(*(torch.arange(n) for n in (*shape, 2, 3, 3))).tolist():
        row, column = i * stride - padding[0] // 2 + k, j * stride - padding[1] // 2 + m
        if 0 <= row < height and 0 <= column < width:
            expected[i, j] += kernel[c, k, m].detach() * x[0, c, row, column]
    torch.testing.assert_close(conv(x)[0, 0], expected)


def test_forward_is_the_definition() -> None:
    """Convolution over sqrt(fan in), moments over the batch at every position, ReLU; then pooling and the last layer."""
    model = make(width=3, in_channels=2, num_classes=4).requires_grad_(False)
    with torch.no_grad():
        for conv in model.convs:
            conv.bias.copy_(torch.arange(3.0))
        model.fc.bias.copy_(torch.arange(4.0))
    images_ = images(5, 2, 8, 8)
    x = images_
    for conv, stride in zip(model.convs, (1, 1, 1, 2, 1, 2, 1), strict=True):
        padded = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        z = F.conv2d(padded, conv.weight, stride=stride) / math.sqrt(9 * x.shape[1]) + conv.bias[:, None, None]
        x = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-6).sqrt()).relu()
    assert x.shape == (5, 3, 2, 2)
    expected = torch.einsum("bchw,kc->bk", x, model.fc.weight) / 4 / math.sqrt(3) + model.fc.bias
    torch.testing.assert_close(model(images_), expected)
    torch.testing.assert_close(model.eval()(images_), expected)


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="2 samples or more"):
        make(width=2).eval()(images(1, 3, 8, 8))


@pytest.mark.parametrize("options", [{"width": 0}, {"in_channels": 1.5}, {"num_classes": True}])
def test_bad_sizes_are_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        WideCNN(**options)


def test_every_operation_has_a_difference_rule() -> None:
    objective = dz.NetworkObjective(make(width=2, in_channels=1), F.cross_entropy)
    found = check_operations(dz.PropagationEvaluator(), objective, (images(4, 1, 8, 8), torch.arange(4)))
    assert (found.fallbacks, found.problem) == ({}, None)


def test_coordinate_estimates_tend_to_the_gradient() -> None:
    """Forward differences are off by (step / 2) x curvature."""
    model, batch = make(width=3, in_channels=1), (images(12, 1, 8, 8), torch.arange(12) % 10)
    dz.CGE(model, loss=centered_squared_error, step_size=1e-8).backward(*batch)
    estimate = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    Autograd(model, loss=centered_squared_error).backward(*batch)
    for name, p in model.named_parameters():
        torch.testing.assert_close(estimate[name], p.grad, rtol=1e-5, atol=1e-7, msg=name)
