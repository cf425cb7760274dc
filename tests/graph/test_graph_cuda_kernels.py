"""The programs for GPUs do what the plain rules do; where there is no GPU, Triton interprets them on tensors of the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, initialize, normal, some_coordinates
from torch import Tensor, nn

import deepzero as dz
from deepzero.graph import kernels as by_device
from deepzero.graph.calls import Value
from deepzero.graph.cuda import cuda_kernels as kernels
from deepzero.graph.differences import Channel, Dense, HalfDense
from deepzero.graph.precision import Precision, computing_in
from deepzero.graph.tails import Tail
from deepzero.graph.windows import ConvolutionGeometry, Window
from deepzero.models.resnet import BasicBlock, projection_shortcut

triton = pytest.importorskip("triton")
EXACT, TF32 = Precision(tf32=False), Precision(tf32=True)
LABELS = torch.tensor([0, 4, 2, 3, 3])
SHAPES = [(3, 5, 4, 7, 6), (1, 2, 1, 3, 9), (17, 2, 20, 3, 2), (2, 3, 70, 2, 3)]
"""p, b, c, h, w."""


pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or triton.knobs.runtime.interpret),
    reason="triton was imported before TRITON_INTERPRET was set",
)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).norm() <= tolerance * expected.double().norm()


def float32(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed, dtype=torch.float32).to(DEVICE)


def channel_of(delta: Tensor, channels: Tensor, shape: tuple[int, ...]) -> Channel:
    """With channels that lie apart in memory, as those of one-hot differences do."""
    return Channel(1, torch.stack([channels, channels], 1)[:, 0], delta, torch.Size(shape))


def packed(dense: Tensor, scale: float) -> HalfDense:
    return HalfDense((dense * scale).half(), scale)


def normalized_relu(z: Tensor, gamma: Tensor, y: Tensor, d: Tensor, extra: Tensor | float) -> Tensor:
    """``relu(y + gamma (change of the normalized z) + extra) - relu(y)`` of one perturbation, in float64."""
    z, d, y = z.double(), d.double(), y.double()
    dims = (0, *range(2, z.dim()))
    g = gamma.double().reshape(-1, *(1 for _ in range(z.dim() - 2)))

    def normal_form(v: Tensor) -> Tensor:
        return (v - v.mean(dims, keepdim=True)) / (v.var(dims, unbiased=False, keepdim=True) + 1e-5).sqrt()

    v = g * (normal_form(z + d) - normal_form(z)) + extra
    return (y + v).relu() - y.relu()


def base_of(z: Tensor) -> tuple[Value, Tensor]:
    dims = (0, *range(2, z.dim()))
    centred = z - z.mean(dims, keepdim=True)
    return Value(centred), (centred.square().mean(dims) + 1e-5).sqrt()


@pytest.mark.parametrize("shape", [*SHAPES, (3, 40, 6)])
@pytest.mark.parametrize("residual", ["none", "dense", "channel", "packed"])
@pytest.mark.parametrize("scale", [None, 64.0])
def test_batch_norm_residual_and_relu(shape: tuple[int, ...], residual: str, scale: float | None) -> None:
    count, *own = shape
    z, y, d = float32(*own), float32(*own, seed=1), 0.1 * float32(*shape, seed=2)
    gamma, more = float32(own[1], seed=3), 0.1 * float32(*shape, seed=4)
    centred, s = base_of(z)
    channels = torch.arange(count, device=DEVICE) % own[1]
    added: Any = {
        "none": None,
        "dense": Dense(more),
        "channel": channel_of(more[:, :, 0], channels, tuple(own)),
        "packed": packed(more, 64.0),
    }[residual]
    extra = [0.0] * count if added is None else added.dense().double()
    given = Dense(d) if scale is None else packed(d, scale)
    with computing_in(Precision(tf32=False, scale=scale)):
        found = kernels.normalize_relu_dense(given, centred, s, gamma, Value(y), added, overwrite=False)
    expected = torch.stack([normalized_relu(z, gamma, y, given.dense()[p], extra[p]) for p in range(count)])
    assert found is not None
    assert isinstance(found, HalfDense) == (scale is not None)
    close(found.dense(), expected, 2e-6 if scale is None else 1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_gamma", [True, False])
def test_batch_norm_and_relu_of_one_channel(shape: tuple[int, ...], with_gamma: bool) -> None:
    count, *own = shape
    z, y = float32(*own), float32(*own, seed=1)
    channels = (3 * torch.arange(count, device=DEVICE)) % own[1]
    gamma = float32(own[1], seed=3) if with_gamma else torch.ones(own[1], device=DEVICE)
    difference = channel_of(0.1 * float32(count, own[0], *own[2:], seed=2), channels, tuple(own))
    centred, s = base_of(z)
    found = kernels.normalize_relu_channel(difference, centred, s, gamma if with_gamma else None, Value(y))
    assert found is not None
    dense = difference.dense()
    expected = torch.stack([normalized_relu(z, gamma, y, dense[p], 0.0)[:, c] for p, c in enumerate(channels)])
    close(found, expected)


GEOMETRIES: list[tuple[tuple[int, int], dict[str, Any]]] = [
    ((3, 3), {"stride": 1, "padding": 1, "dilation": 1}),
    ((3, 3), {"stride": 2, "padding": 1, "dilation": 1}),
    ((1, 1), {"stride": 1, "padding": 0, "dilation": 1}),
    ((2, 3), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}),
    ((4, 2), {"stride": 1, "padding": "same", "dilation": 1}),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("kernel", "options"), GEOMETRIES)
@pytest.mark.parametrize("sizes", [(3, 5), (20, 33), (70, 66)])
def test_convolutions(kernel: tuple[int, int], options: dict[str, Any], sizes: tuple[int, int]) -> None:
    inputs, outputs = sizes
    count, batch, size = 3, 2, (7, 9)
    weight, d = float32(outputs, inputs, *kernel), float32(count, batch, inputs, *size, seed=1)
    geometry = ConvolutionGeometry(weight, options["stride"], options["padding"], options["dilation"], 1)
    expected = torch.stack([F.conv2d(one.double(), weight.double(), **options) for one in d])
    shape = expected.shape[1:]

    with computing_in(Precision(scale=8.0)):
        half = kernels.convolve_dense(packed(d, 8.0), Value(weight), geometry, shape)
    assert isinstance(half, HalfDense)
    close(half.dense(), expected, 1.5e-3)
    with computing_in(Precision(tf32=True)):
        single = kernels.convolve_dense(Dense(d), Value(weight), geometry, shape)
    assert (single is None) == (inputs > kernels.NARROW)
    if single is not None:
        close(single.dense(), expected, 1e-3)
    with computing_in(EXACT):
        assert kernels.convolve_dense(Dense(d), Value(weight), geometry, shape) is None

    channels = torch.tensor([inputs - 1, 0, 1], device=DEVICE)
    own = torch.stack([d[p, :, c] for p, c in enumerate(channels)])
    expected = torch.stack(
        [F.conv2d(own[p, :, None].double(), weight[:, c : c + 1].double(), **options) for p, c in enumerate(channels)]
    )
    for scale, tolerance in ((None, 2e-6), (8.0, 1e-3)):
        with computing_in(Precision(scale=scale)):
            found = kernels.convolve_channel(
                channel_of(own, channels, (batch, inputs, *size)), Value(weight), geometry, shape
            )
        assert found is not None
        close(found.dense(), expected, tolerance)


Case = tuple[tuple[int, int, int], tuple[int, int], tuple[int, int], dict[str, Any]]
CASES: list[Case] = [
    ((2, 3, 7), (5, 4), (3, 3), {"stride": 1, "padding": 1, "dilation": 1}),  # 147 rows: a tile and a part of one
    (
        (17, 2, 5),
        (3, 20),
        (3, 3),
        {"stride": 2, "padding": 1, "dilation": 1},
    ),  # more perturbations than a program makes
    ((2, 1, 4), (16, 70), (1, 1), {"stride": 1, "padding": 0, "dilation": 1}),  # two blocks of channels
]
"""Perturbations, samples and side; input and output channels; kernel; options."""


def to_tail(
    case: Case, kind: str, residual: str, precision: Precision, window: Window | None = None
) -> tuple[Dense | None, Tensor]:
    """A convolution, batch norm, a residual and relu by the kernels, and the change of them in float64."""
    (count, batch, side), (inputs, outputs), kernel, options = case
    groups = options.get("groups", 1)
    weight, gamma = float32(outputs, inputs // groups, *kernel), float32(outputs, seed=1)
    x, d = float32(batch, inputs, side, side, seed=2), 0.1 * float32(count, batch, inputs, side, side, seed=3)
    channels = torch.arange(count, device=DEVICE) % inputs
    one = channel_of(torch.stack([d[p, :, c] for p, c in enumerate(channels)]), channels, tuple(x.shape))
    given: Any = {"channel": one, "dense": Dense(d), "packed": packed(d, 8.0)}[kind]
    z = F.conv2d(x, weight, **options)
    y, more = float32(*z.shape, seed=4), 0.1 * float32(count, *z.shape, seed=5)
    own = torch.arange(count, device=DEVICE) % outputs
    extra: Any = {"none": None, "dense": Dense(more), "channel": channel_of(more[:, :, 0], own, tuple(z.shape))}[
        residual
    ]
    centred, s = base_of(z)
    geometry = ConvolutionGeometry(weight, options["stride"], options["padding"], options["dilation"], groups)
    with computing_in(precision):
        tail = Tail(centred, s, gamma, Value(y), window=window)
        found = kernels.convolve_to_tail(given, Value(weight), geometry, z.shape, tail, extra)
    moved, added = given.dense().double(), [0.0] * count if extra is None else extra.dense().double()
    changes = [F.conv2d(one, weight.double(), **options) for one in moved]
    return found, torch.stack([normalized_relu(z, gamma, y, changes[p], added[p]) for p in range(count)])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("kind", "residual", "precision", "tolerance"),
    [
        ("channel", "none", EXACT, 3e-6),
        ("channel", "none", Precision(scale=8.0), 1e-3),
        ("dense", "dense", TF32, 2e-3),
        ("packed", "channel", Precision(scale=8.0), 2e-3),
    ],
)
def test_a_convolution_to_its_tail(
    monkeypatch: pytest.MonkeyPatch, case: Case, kind: str, residual: str, precision: Precision, tolerance: float
) -> None:
    monkeypatch.setattr(kernels, "GROUP", 2)
    found, expected = to_tail(case, kind, residual, precision)
    assert found is not None
    assert isinstance(found, HalfDense) == (precision.scale is not None)
    close(found.dense(), expected, tolerance)


@pytest.mark.parametrize(("kind", "precision"), [("channel", EXACT), ("packed", Precision(scale=8.0))])
def test_sums_over_tiles_have_the_same_bits_twice(kind: str, precision: Precision) -> None:
    found, again = (to_tail(CASES[0], kind, "none", precision)[0] for _ in range(2))
    assert found is not None
    assert again is not None
    assert torch.equal(found.stored, again.stored)


def test_the_sums_of_a_convolution_are_those_of_what_it_writes() -> None:
    """In float32 or float16, up to the rounding of a sum: whoever reads the convolution again would find the same."""
    weight, centred = float32(20, 5, 3, 3), float32(3, 20, 7, 7, seed=1)
    geometry, d = ConvolutionGeometry(weight, 1, 1, 1, 1), float32(2, 3, 5, 7, 7, seed=2)
    for given, unit in ((Dense(d), 1.0), (packed(d, 8.0), 1 / 8)):
        out, partial = kernels._convolved(given, Value(weight), geometry, centred.shape, Value(centred))
        v, c = out.double().mul(unit), centred.movedim(1, -1).double()
        expected = torch.stack([v.sum((1, 2, 3)), (c * v).sum((1, 2, 3)), v.square().sum((1, 2, 3))], 1)
        assert partial.shape == (2, 2, 3, 20)
        close(partial.double().sum(1), expected, 1e-6)


def test_what_a_convolution_to_its_tail_leaves_to_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel beside a residual, several groups, maxima, and what cuDNN multiplies."""
    assert to_tail(CASES[0], "dense", "none", TF32)[0] is not None
    assert to_tail(CASES[0], "channel", "dense", TF32)[0] is None
    assert to_tail(CASES[0], "dense", "none", TF32, window=Window.of(2, (), 0, 1))[0] is None
    assert to_tail(CASES[0], "dense", "none", EXACT)[0] is None
    grouped: Case = ((2, 1, 4), (2, 4), (1, 1), {"stride": 1, "padding": 0, "dilation": 1, "groups": 2})
    assert to_tail(grouped, "packed", "none", Precision(scale=8.0))[0] is None
    monkeypatch.setattr(kernels, "NARROW", 4)
    assert to_tail(CASES[0], "dense", "none", TF32)[0] is None


def test_what_float16_cannot_hold_is_no_number() -> None:
    """An overflow is never cut off by a relu that follows it."""
    weight, d = torch.ones(16, 16, 1, 1, device=DEVICE), torch.zeros(2, 1, 16, 2, 2, device=DEVICE)
    d[0, 0, 3, 1, 1] = -5000.0
    geometry = ConvolutionGeometry(weight, 1, 0, 1, 1)
    with computing_in(Precision(scale=8.0)):
        found = kernels.convolve_dense(packed(d, 8.0), Value(2 * weight), geometry, torch.Size((1, 16, 2, 2)))
        assert found is not None
        assert found.dense()[0, 0, :, 1, 1].isnan().all()
        assert found.dense().isnan().sum() == 16
        y = Value(float32(1, 16, 2, 2))
        centred, s = base_of(float32(1, 16, 2, 2, seed=1))
        after = kernels.normalize_relu_dense(found, centred, s, None, y, None, overwrite=True)
        tail = Tail(centred, s, None, y)
        at_once = kernels.convolve_to_tail(packed(d, 8.0), Value(2 * weight), geometry, y.base.shape, tail, None)
    for one in (after, at_once):
        assert one is not None
        assert one.dense()[0].isnan().all()
        assert one.dense()[1].isfinite().all()


def test_shifted_slices() -> None:
    weight, padded = float32(4, 3, 3, 2), float32(3, 5, 11, 12)
    geometry = ConvolutionGeometry(weight, (2, 1), 0, (1, 3), 1)
    features, *taps = torch.tensor([[2, 0, 1], [0, 2, 0], [1, 1, 1], [2, 1, 0]], device=DEVICE).unbind(1)
    values, size = float32(4, seed=1), (5, 9)
    found = kernels.shifted_slices(padded, geometry, size, features, taps, values)
    expected = geometry.windows(padded, size)[(features, *taps)] * values.reshape(-1, 1, 1, 1)
    assert found is not None
    close(found, expected, 1e-7)


@pytest.mark.parametrize(
    "window", [Window.of(2, (), 0, 1), Window.of(3, 2, 1, 1), Window.of((2, 3), (1, 2), (1, 0), 2)]
)
def test_maxima(window: Window) -> None:
    z, d = float32(4, 5, 9, 8), 0.3 * float32(3, 4, 5, 9, 8, seed=1)
    d[1, 0, 2, 3:5, 3:5] = torch.nan

    def pooled(t: Tensor) -> Tensor:
        return F.max_pool2d(t, window.kernel, window.stride, window.padding, window.dilation)

    maximum = pooled(z)
    expected = torch.stack([pooled(z + one) - maximum for one in d])
    found = kernels.max_pool(Dense(d), Value(z), Value(maximum), window)
    assert found is not None
    assert torch.equal(found.isnan(), expected.isnan())
    assert expected.isnan().any()
    close(found.nan_to_num(9.0), expected.nan_to_num(9.0), 1e-6)
    channels = torch.tensor([4, 0, 2], device=DEVICE)
    own = torch.stack([d[p, :, c] for p, c in enumerate(channels)])
    found = kernels.max_pool(channel_of(own, channels, (4, 5, 9, 8)), Value(z), Value(maximum), window)
    assert found is not None
    close(found, torch.stack([expected[p, :, c] for p, c in enumerate(channels)]), 1e-6)


def network() -> nn.Module:
    """Every kernel: convolutions of one channel and of all, batch norm with residuals of either kind, maxima."""
    blocks = [
        BasicBlock(4, 4, stride=1, shortcut=projection_shortcut),
        BasicBlock(4, 6, stride=2, shortcut=projection_shortcut),
    ]
    stem = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*stem, *blocks, nn.Flatten(), nn.Linear(6 * 4, 5))


def by_propagation(
    device: Any, state: dict[str, Any] | None = None, **options: Any
) -> tuple[dz.Estimate, dict[str, Any]]:
    """Two coordinates of every parameter with the kernels of a device, by the chunk plan of a state; and the state."""
    model = initialize(network(), dtype=torch.float32).to(DEVICE)
    x, labels, chosen = float32(5, 2, 8, 8), LABELS.to(DEVICE), some_coordinates(model, most=2)
    evaluator = dz.PropagationEvaluator(verify=False, **options)
    if state is not None:
        evaluator.load_state_dict(state)
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-4, evaluator=evaluator, sparsity=chosen)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(by_device.BY_DEVICE, DEVICE.type, device)
        found = zo.estimate(x, labels)
    return found, evaluator.state_dict()


@pytest.fixture(scope="module")
def by_plain_rules() -> tuple[dz.Estimate, dict[str, Any]]:
    return by_propagation(by_device.NONE, tf32=False)


@pytest.mark.parametrize(
    ("options", "tolerance"), [({"tf32": False}, 1e-5), ({"tf32": True}, 3e-3), ({"storage": torch.float16}, 3e-3)]
)
def test_a_network(
    by_plain_rules: tuple[dz.Estimate, dict[str, Any]], options: dict[str, Any], tolerance: float
) -> None:
    """With the chunk plan of the plain rules: to find one out, the interpreter would walk through the network thrice."""
    expected, state = by_plain_rules
    found, _ = by_propagation(by_device.SomeKernels(kernels), state, **options)
    assert_close(found.gradients, expected.gradients, tolerance)


def test_other_dtypes_and_devices_without_triton_take_the_plain_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.applies(float32(2))
    assert not kernels.applies(float32(2), float32(2).double())
    assert not kernels.applies(torch.zeros(1, dtype=torch.bfloat16))
    monkeypatch.setattr(kernels, "triton", lambda: None)
    assert not kernels.applies(float32(2))


def test_the_programs_compile_for_a_gpu() -> None:
    """The interpreter takes more than the compiler does."""
    program = Path(__file__).with_name("for_an_h100.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    spilled = json.loads(done.stdout)
    assert len(spilled) == 30
    assert all(size <= 64 for _, size in spilled), spilled
