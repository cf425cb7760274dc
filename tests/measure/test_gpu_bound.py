"""The count of what a chunk launches on a GPU: that of the record, by hand, and beside what Triton's interpreter runs."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import deepzero as dz
from deepzero.graph import kernels as by_device
from deepzero.graph.cuda import cuda_kernels, cuda_row_kernels
from deepzero.graph.precision import Precision, computing_in
from deepzero.graph.propagate import loss_differences
from deepzero.measure import gpu_bound
from deepzero.measure.cases import Case, Problem, Source, problem
from deepzero.measure.gpu_bound import MACHINE, Chunk, Count, bound
from deepzero.models.resnet import cifar_resnet
from deepzero.objective import NetworkObjective

triton = pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
FIRST, LAST = "layers.0.0.conv1.weight", "layers.2.0.conv2.weight"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_bound_record

    return gpu_bound_record


def test_the_record_is_what_is_counted_today(script: types.ModuleType) -> None:
    """Two parameters' chunks; if this fails: python benchmarks/gpu_bound_record.py && python benchmarks/speed_page.py."""
    recorded = json.loads(script.RECORD.read_text())["ways"]
    assert recorded.keys() == script.WAYS.keys()
    count = Count(problem(**script.SETTINGS))
    for name, (storage, narrow) in script.WAYS.items():
        own = {parameter: recorded[name]["chunks"][parameter] for parameter in (FIRST, LAST)}
        found = count.chunks(storage, {parameter: chunk["queries"] for parameter, chunk in own.items()}, narrow=narrow)
        for parameter, chunk in found.items():
            assert len(chunk.launches) == pytest.approx(own[parameter]["launches"], abs=3)  # small ones, of PyTorch
            assert chunk.bytes == pytest.approx(own[parameter]["bytes"], rel=1e-4)
            assert chunk.seconds == pytest.approx(own[parameter]["seconds"], rel=1e-4)


def small(batch: int = 2) -> Problem:
    """A ResNet-8 of 4, 8 and 16 channels on images of 8x8."""
    case = Case("small", "resnet8", lambda _: cifar_resnet(8, width=4).train(), Source.noise(3, 8))
    return problem(case, batch=batch)


def named(chunk: Chunk, name: str) -> list[gpu_bound.Launch]:
    return [launch for launch in chunk.launches if launch.name == name]


def test_bytes_and_seconds_by_hand() -> None:
    """ResNet-8, behind the first weight of a block: a convolution reads and writes each number once, and keeps sums."""
    batch, count = 256, 3
    chunk = Count(small(batch)).chunks(None, {FIRST: count})[FIRST]
    rows, channels = batch * 8 * 8, 4
    out, tiles = 4 * rows * channels, rows // 128
    sums = 4 * tiles * 3 * channels
    (first, *_) = named(chunk, "convolve_dense")  # to 8 channels of 4x4: half as many numbers as in front
    assert first.bytes == count * (out + out // 2 + sums // 2) + 9 * 4 * 8 * 4 + out // 2
    assert first.seconds == first.bytes / MACHINE.memory
    relu = named(chunk, "dense_relu")[0]
    assert relu.bytes == count * (2 * out // 2 + 4 * 3 * 8) + 2 * out // 2
    (once, twice) = named(chunk, "convolve_channel")
    assert twice.bytes - once.bytes > 0.5 * count * out


def test_sums_are_read_again_behind_cudnn_alone() -> None:
    count = Count(small())
    for storage, narrow, again in ((None, 4, 3), (None, 16, 0), (torch.float16, 4, 0)):
        chunk = count.chunks(storage, {FIRST: 2}, narrow=narrow)[FIRST]
        assert len(named(chunk, "dense_sums")) == len(named(chunk, "aten.convolution")) == again
        assert len(named(chunk, "convolve_dense")) == 4 - again


def test_a_record_has_the_means_over_coordinates() -> None:
    task = small()
    chunks = Count(task).chunks(None, dict.fromkeys(task.coordinates.names, 2))
    found = bound(task, chunks)
    seconds = sum(len(task.coordinates[name]) * chunk.seconds / chunk.queries for name, chunk in chunks.items())
    assert found["queries_per_second"] == pytest.approx(task.coordinates.count / seconds)
    launched = sum(kind["launches"] for kind in found["passes"].values())
    each = sum(len(task.coordinates[name]) * len(chunk.launches) for name, chunk in chunks.items())
    assert launched == pytest.approx(each / task.coordinates.count)


class Watched:
    """A program of Triton that is run by its interpreter, and noted."""

    def __init__(self, name: str, program: Any, launched: list[str]) -> None:
        self.name, self.program, self.launched = name, program, launched

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.launched.append(self.name)
        return self.program[grid]

    def __call__(self, *args: Any) -> Any:
        """As a part of another program."""
        return self.program(*args)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that Triton's interpreter runs on this machine's tensors, which have the kernels of a GPU."""
    names: list[str] = []
    for module in gpu_bound._modules():
        for name, program in list(vars(module).items()):
            if gpu_bound._is_program(program):
                monkeypatch.setattr(module, name, Watched(name, program, names))
    monkeypatch.setitem(by_device.BY_DEVICE, "cpu", by_device.SomeKernels(cuda_kernels, cuda_row_kernels))
    return names


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="triton was imported before TRITON_INTERPRET was set")
@pytest.mark.parametrize("storage", [None, torch.float16])
def test_what_is_noted_is_what_the_interpreter_runs(
    monkeypatch: pytest.MonkeyPatch, storage: torch.dtype | None
) -> None:
    """From a weight of the last but one block on, by way of a channel's convolution and those of all channels."""
    task, name = small(), "layers.1.0.conv1.weight"
    chunk = Count(task).chunks(storage, {name: 1})[name]
    evaluator, objective = dz.PropagationEvaluator(verify=False), NetworkObjective(task.model, F.cross_entropy)
    program = evaluator.program(objective, task.batch)
    values = evaluator.base_values(program, objective, task.batch, 0)
    launched = watched(monkeypatch)
    with computing_in(Precision(tf32=True, half=storage is not None).of_step(task.step_size)):
        chosen = task.coordinates[name][:1]
        loss_differences(program.cones[name], values, program.graph.output, chosen, task.step_size)
    assert launched == [launch.name for launch in chunk.launches if not launch.name.startswith("aten.")]
    assert "convolve_channel" in launched
    assert "convolve_dense" in launched


def test_a_count_leaves_the_kernels_as_they_were() -> None:
    before = [dict(vars(module)) for module in gpu_bound._modules()]
    Count(small()).chunks(None, {FIRST: 1}, narrow=64)
    assert [dict(vars(module)) for module in gpu_bound._modules()] == before
    assert gpu_bound.SHAPES.type not in by_device.BY_DEVICE
    assert cuda_kernels.NARROW == 16
