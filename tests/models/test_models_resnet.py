from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deepzero.errors import InvalidInputError
from deepzero.models import PaddedShortcut, ResNet, cifar_resnet, resnet18


@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_parameter_counts_of_the_cifar_family(depth: int, parameters: int) -> None:
    model = cifar_resnet(depth)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth


def test_resnet20_has_the_papers_prunable_weights() -> None:
    weights = [m.weight for m in cifar_resnet(20).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert (len(weights), sum(w.numel() for w in weights)) == (20, 268_336)


def test_resnet18_has_the_usual_parameter_count() -> None:
    assert sum(p.numel() for p in resnet18().parameters()) == 11_173_962


@pytest.mark.parametrize("size", [8, 16, 32])
def test_resnet20_gives_logits_for_any_image_size(size: int) -> None:
    assert cifar_resnet(20, in_channels=1, num_classes=7)(torch.ones(2, 1, size, size)).shape == (2, 7)


def test_stages_halve_the_image_and_double_the_channels() -> None:
    model = cifar_resnet(20)
    x = model.bn1(model.conv1(torch.ones(1, 3, 32, 32)))
    shapes = []
    for stage in model.layers:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_padded_shortcut_is_a_subsampled_copy_between_zero_channels() -> None:
    x = torch.arange(2 * 4 * 5 * 6, dtype=torch.float32).reshape(2, 4, 5, 6)
    shortcut = PaddedShortcut(4, 9, 2)
    out = shortcut(x)
    expected = torch.zeros(2, 9, 3, 3)
    for row in range(3):
        for column in range(3):
            expected[:, 2:6, row, column] = x[:, :, 2 * row, 2 * column]
    assert torch.equal(out, expected)
    assert not list(shortcut.parameters())


def test_only_blocks_that_change_the_shape_have_a_shortcut() -> None:
    kinds = [[type(block.shortcut) for block in stage] for stage in cifar_resnet(20).layers]
    identity = nn.Identity
    assert kinds == [[identity] * 3, [PaddedShortcut, identity, identity], [PaddedShortcut, identity, identity]]


def test_weights_are_kaiming_normal_by_fan_in() -> None:
    torch.manual_seed(0)
    for module in cifar_resnet(20).modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 2000:
            expected = math.sqrt(2 / module.weight[0].numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)


def test_exports_to_few_kinds_of_operation() -> None:
    program = torch.export.export(cifar_resnet(20), (torch.randn(2, 3, 8, 8),))
    operations = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    expected = {"conv2d", "batch_norm", "relu", "add", "slice", "pad", "avg_pool2d", "flatten", "linear", "add_"}
    assert {name.split(".")[1] for name in operations} <= expected


@pytest.mark.parametrize("depth", [0, 18, 21, 26])
def test_unknown_depth_is_refused(depth: int) -> None:
    with pytest.raises(InvalidInputError, match="8, 14, 20, 32, 44, 56, 110"):
        cifar_resnet(depth)


def test_stages_must_agree() -> None:
    with pytest.raises(InvalidInputError, match="same stages"):
        ResNet(blocks=(1, 1), widths=(4,), shortcut=PaddedShortcut)
    with pytest.raises(InvalidInputError, match=r"blocks\[1\]"):
        ResNet(blocks=(1, 0), widths=(4, 8), shortcut=PaddedShortcut)


def test_width_scales_all_stages() -> None:
    narrow = cifar_resnet(8, width=4)
    assert [stage[0].conv1.out_channels for stage in narrow.layers] == [4, 8, 16]
    assert sum(p.numel() for p in narrow.parameters()) == 5006
