"""The compiled loops do what the plain rules do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from numba import njit
from numba.core import event
from oracle import assert_close, before_and_after, estimate, initialize, normal, some_coordinates
from torch import nn

import deepzero as dz
from deepzero.graph import kernels as by_device
from deepzero.graph.cpu import compilation
from deepzero.graph.cpu import compiled_loops as loops
from deepzero.graph.cpu import cpu_kernels as kernels
from deepzero.models import SimpleCNN
from deepzero.models.resnet import BasicBlock, projection_shortcut

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: SimpleCNN(depth=2, width=6),
    "geometry": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(5, 4, (2, 3), dilation=(1, 2), padding=(1, 2)), nn.MaxPool2d(2, 1, ceil_mode=True), nn.Flatten(), nn.Linear(48, 10),
    ),
    "residual": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1), BasicBlock(4, 4, stride=1, shortcut=projection_shortcut),
        BasicBlock(4, 6, stride=2, shortcut=projection_shortcut), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10),
    ),
    "one_dimensional": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(768, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 10),
    ),
    "wide": lambda: nn.Sequential(
        nn.Conv2d(3, 33, 3), nn.BatchNorm2d(33), nn.ReLU(), nn.Conv2d(33, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Flatten(), nn.Linear(1008, 10),
    ),
}  # fmt: skip
LABELS = torch.tensor([0, 4, 9, 3, 3])


def both(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, step_size: float
) -> tuple[dz.Estimate, dz.Estimate, list[bool]]:
    model = initialize(NETWORKS[name](), dtype=dtype)
    x, chosen = normal(5, 3, 16, 16, dtype=dtype), some_coordinates(model, most=20)
    asked: list[bool] = []

    def refuse(*tensors: torch.Tensor) -> bool:
        asked.append(True)
        return False

    plain = lambda: monkeypatch.setattr(kernels, "applies", refuse)  # noqa: E731
    results = before_and_after(plain, model, F.cross_entropy, x, LABELS, step_size=step_size, sparsity=chosen)
    return results[0], results[1], asked


@pytest.mark.parametrize("name", NETWORKS)
def test_float64(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fast, plain, asked = both(monkeypatch, name, torch.float64, 1e-2)
    assert asked
    assert_close(fast.gradients, plain.gradients, 1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_float32(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fast, plain, _ = both(monkeypatch, name, torch.float32, 1e-6)
    assert_close(fast.gradients, plain.gradients, 1e-5)


def test_a_dtype_without_loops_takes_the_plain_rules() -> None:
    """bfloat16 on a CPU: rough, but the same gradient."""
    model = initialize(SimpleCNN(depth=1, width=6))
    x, chosen = normal(5, 3, 8, 8), some_coordinates(model, most=10)
    exact = estimate(model, F.cross_entropy, x, LABELS, dz.PropagationEvaluator(), sparsity=chosen, step_size=1e-3)
    rough = estimate(
        model.bfloat16(),
        F.cross_entropy,
        x.bfloat16(),
        LABELS,
        dz.PropagationEvaluator(),
        sparsity=chosen,
        step_size=1e-3,
    )
    assert rough.gradients["fc.weight"].dtype == torch.bfloat16
    assert_close({n: g.double() for n, g in rough.gradients.items()}, exact.gradients, 0.1)


def test_a_loss_that_is_not_a_number_stays_one() -> None:
    """Comparisons in the loops keep NaN: a poisoned parameter is noticed, not zeroed by a relu."""
    model = initialize(SimpleCNN(depth=2, width=6), dtype=torch.float32)
    with torch.no_grad():
        model.blocks[1][0].weight[0, 0, 0, 0] = torch.nan
    zo = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator(verify=False))
    with pytest.raises(dz.errors.NonFiniteLossError, match="nan"):
        zo.estimate(normal(5, 3, 16, 16, dtype=torch.float32), LABELS)


@pytest.mark.parametrize("window", [(2, 2), (3, 3), (1, 4), (4, 1), (2, 6)])
def test_maxima_over_tiles_are_those_of_torch(window: tuple[int, int]) -> None:
    """Of all channels and of one channel each; a NaN anywhere in a window is its maximum."""
    delta, gap = normal(3, 4, 5, 12, 12), normal(4, 5, 12, 12, seed=1)
    delta[1, 0, 2, 7, 3], delta[2, 3, 4, 0, 0], gap[2, 1, 11, 11] = torch.nan, torch.nan, torch.nan
    size = (12 // window[0], 12 // window[1])
    expected = torch.stack([F.max_pool2d(gap + d, window) for d in delta])
    assert expected.isnan().any()

    out = torch.empty(3, 4, *size, 5, dtype=delta.dtype)
    dense, base = delta.movedim(2, -1).contiguous(), gap.movedim(1, -1).contiguous()
    loops.disjoint_maxima(dense.numpy(), base.numpy(), window, torch.empty(60).double().numpy(), out.numpy())
    assert torch.equal(out.movedim(-1, 2).nan_to_num(99.0), expected.nan_to_num(99.0))

    channels, own = torch.tensor([4, 0, 2]), gap.movedim(1, 0).contiguous()
    each = torch.stack([delta[p, :, c] for p, c in enumerate(channels)])
    out = torch.empty(3, 4, *size, dtype=delta.dtype)
    line = torch.empty(12).double().numpy()
    loops.disjoint_channel_maxima(each.numpy(), own.numpy(), channels.numpy(), window, line, out.numpy())
    picked = torch.stack([expected[p, :, c] for p, c in enumerate(channels)])
    assert torch.equal(out.nan_to_num(99.0), picked.nan_to_num(99.0))


def test_compilation_is_announced_once_and_only_of_our_own_loops(caplog: pytest.LogCaptureFixture) -> None:
    def started(function: Any) -> Any:
        return event.Event("numba:compile", event.EventStatus.START, data={"dispatcher": function})

    compilation._announce.cache_clear()  # another test may have compiled loops
    listener = compilation._Compiling()
    with caplog.at_level("INFO", logger="deepzero"):
        listener.notify(started(njit(lambda x: x)))
        assert caplog.messages == []
        listener.notify(started(loops.channel_sums))
        listener.notify(started(loops.column_sums))
    assert caplog.messages == ["compiling loops for this machine, once: some seconds"]


class _Recording(by_device.NoKernels):
    """A device that is asked for every kernel, and has none."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __getattribute__(self, name: str) -> object:
        if not name.startswith("_") and name != "asked":
            self.asked.add(name)
        return super().__getattribute__(name)


def test_kernels_are_those_of_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_device.on(torch.zeros(1)) is kernels
    assert by_device.on(torch.zeros(1, device="meta")) is by_device.NONE
    device = _Recording()
    monkeypatch.setitem(by_device.BY_DEVICE, "cpu", device)
    blocks = [
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 1),
    ]
    model = initialize(nn.Sequential(*blocks, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 10)), dtype=torch.float64)
    x, chosen = normal(5, 2, 8, 8, dtype=torch.float64), some_coordinates(model, most=5)
    plain = estimate(model, F.cross_entropy, x, LABELS, dz.PropagationEvaluator(), step_size=1e-2, sparsity=chosen)
    monkeypatch.undo()
    fused = estimate(model, F.cross_entropy, x, LABELS, dz.PropagationEvaluator(), step_size=1e-2, sparsity=chosen)
    assert device.asked >= {
        "normalize_relu_channel", "normalize_relu_dense", "convolve_channel", "convolve_dense",
        "convolve_to_tail", "slices_to_tail", "shifted_slices", "max_pool",
        "label_losses",
    }  # fmt: skip
    assert_close(fused.gradients, plain.gradients, 1e-12)


def test_a_device_without_kernels_answers_every_one_by_none() -> None:
    names = [name for name in vars(by_device.Kernels) if not name.startswith("_")]
    assert "max_pool" in names
    for name in names:
        parameters = inspect.signature(getattr(by_device.NONE, name)).parameters.values()
        options = {p.name: False for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        assert getattr(by_device.NONE, name)(*[None] * 5, **options) is None
