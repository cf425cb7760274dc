"""Convolutions, linear layers and normalizations, with their own parameters queried too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from every_kind import check_each, groups
from torch import Tensor, nn

# Even kernels with padding="same" pad on one side; PyTorch says once that this costs a copy.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

MODULES: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 3, 3),
    "conv_pointwise": lambda: nn.Conv2d(4, 3, 1),
    "conv_without_bias": lambda: nn.Conv2d(4, 3, 3, bias=False),
    "conv_stride": lambda: nn.Conv2d(4, 3, 3, stride=2, padding=1),
    "conv_stride_pointwise": lambda: nn.Conv2d(4, 3, 1, stride=2),
    "conv_rectangular": lambda: nn.Conv2d(4, 3, (3, 2), stride=(2, 1), padding=(1, 0)),
    "conv_same": lambda: nn.Conv2d(4, 3, 3, padding="same"),
    "conv_same_even": lambda: nn.Conv2d(4, 3, (2, 4), padding="same"),
    "conv_same_dilated": lambda: nn.Conv2d(4, 3, 2, padding="same", dilation=3),
    "conv_valid": lambda: nn.Conv2d(4, 3, 2, padding="valid"),
    "conv_dilated": lambda: nn.Conv2d(4, 3, 2, dilation=(3, 2), padding=1),
    "conv_groups": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "conv_depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "conv_depthwise_stride": lambda: nn.Conv2d(4, 4, 3, stride=2, groups=4),
    "conv_depthwise_same": lambda: nn.Conv2d(4, 4, 2, padding="same", groups=4),
    "conv_depthwise_multiplier": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "conv_reflect": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
    "conv_circular": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"),
    "conv_transposed": lambda: nn.ConvTranspose2d(4, 3, 2, stride=2),
    "conv_1d": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 3, stride=2, padding=1)),
    "conv_1d_same": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 4, padding="same")),
    "conv_1d_groups": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3, dilation=2, groups=2)),
    "conv_1d_depthwise": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3, groups=4)),
    "conv_3d": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1))),
    "conv_bn_relu": lambda: nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()),
    "conv_bn_relu_conv": lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 2)),
    "linear": lambda: nn.Linear(5, 3),
    "linear_without_bias": lambda: nn.Linear(5, 3, bias=False),
    "linear_flat": lambda: nn.Sequential(nn.Flatten(), nn.Linear(120, 3)),
    "linear_relu_linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(120, 3), nn.ReLU(), nn.Linear(3, 4)),
    "linear_one_sample": lambda: nn.Sequential(nn.Flatten(0), nn.Linear(240, 3)),
    "bilinear": lambda: Twice(nn.Bilinear(5, 5, 3)),
    "bn_train": lambda: nn.BatchNorm2d(4),
    "bn_relu_train": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
    "bn_eval": lambda: nn.BatchNorm2d(4).eval(),
    "bn_relu_eval": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).eval(),
    "bn_without_affine": lambda: nn.BatchNorm2d(4, affine=False),
    "bn_relu_without_affine": lambda: nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.ReLU()),
    "bn_without_affine_eval": lambda: nn.BatchNorm2d(4, affine=False).eval(),
    "bn_without_statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "bn_without_statistics_eval": lambda: nn.BatchNorm2d(4, track_running_stats=False).eval(),
    "bn_1d": lambda: nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(4), nn.ReLU()),
    "bn_1d_flat": lambda: nn.Sequential(nn.Flatten(0, 1), nn.Flatten(), nn.Linear(30, 3), nn.BatchNorm1d(3), nn.ReLU()),
    "bn_3d": lambda: nn.Sequential(nn.Unflatten(1, (4, 1)), nn.BatchNorm3d(4)),
    "layer_norm": lambda: nn.LayerNorm(5),
    "layer_norm_two": lambda: nn.LayerNorm((6, 5)),
    "layer_norm_all": lambda: nn.LayerNorm((4, 6, 5)),
    "layer_norm_without_affine": lambda: nn.LayerNorm(5, elementwise_affine=False),
    "layer_norm_without_bias": lambda: nn.LayerNorm(5, bias=False),
    "group_norm": lambda: nn.GroupNorm(2, 4),
    "group_norm_layer": lambda: nn.GroupNorm(1, 4),
    "group_norm_instance": lambda: nn.GroupNorm(4, 4),
    "group_norm_without_affine": lambda: nn.GroupNorm(2, 4, affine=False),
    "instance_norm": lambda: nn.InstanceNorm2d(4),
    "instance_norm_affine": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance_norm_statistics": lambda: nn.InstanceNorm2d(4, track_running_stats=True).eval(),
    "rms_norm": lambda: nn.RMSNorm(5),
    "local_response_norm": lambda: nn.LocalResponseNorm(2),
    "prelu": nn.PReLU,
    "prelu_channels": lambda: nn.PReLU(4),
}


class Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> Tensor:
        return self.inner(z, z.tanh())


@pytest.mark.parametrize("makers", groups(MODULES))
def test_module(makers: dict[str, Callable[[], nn.Module]]) -> None:
    check_each({name: make() for name, make in makers.items()})
