"""The bound of a query on an NVIDIA H100: bytes and operations of all that a chunk launches, counted without one.

A chunk is propagated on tensors that have shapes and no numbers. Every program of ``graph/cuda`` and every operation of
PyTorch is noted in place of being run, with the bytes that it reads and writes, each once, and with the operations of
its products. At the ceilings of the data sheet, a launch of ``B`` bytes and ``F`` operations takes at least

    max(B / bytes per second, F / operations per second),

and a query the sum over the launches of its chunk, divided by the perturbations in it. That is a bound of these passes
over memory: no order of launches, and no better program for one of them, can beat it; fusing two of them lowers it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deepzero.evaluators.propagation import CUDA_TARGET
from deepzero.graph import kernels
from deepzero.graph.capture import capture
from deepzero.graph.cuda import cuda_attention_kernels, cuda_kernels, cuda_row_kernels
from deepzero.graph.footprint import footprint
from deepzero.graph.forward import graph_inputs, run
from deepzero.graph.plan import chunk_sizes
from deepzero.graph.precision import Precision, computing_in
from deepzero.graph.program import compile_program
from deepzero.graph.propagate import loss_differences
from deepzero.measure.cases import Problem
from deepzero.objective import NetworkObjective, parameters_of
from deepzero.randomness import Draws

aten = torch.ops.aten
SHAPES = torch.device("meta")
"""The device whose tensors have no numbers."""
BUDGET = 62 << 30
"""Bytes for an estimate: 80 % of what is free on an H100 with 80 GB."""
LAUNCH = 4e-6
"""Seconds in which a host launches a kernel, about."""


class H100(NamedTuple):
    """Ceilings of an H100 SXM by its data sheet, without sparsity.

    Attributes:
        memory: bytes per second.
        float32: operations per second of float32 numbers, without matrix units.
        tf32: of products in TF32.
        float16: of products of float16.
    """

    memory: float = 3.35e12
    float32: float = 66.9e12
    tf32: float = 494.7e12
    float16: float = 989.4e12


MACHINE = H100()

PASSES = {
    "convolve_dense": "convolution of all channels, with the sums for batch norm",
    "aten.convolution": "convolution of all channels by cuDNN",
    "convolve_channel": "convolution of one channel to the relu behind it, by way of its sums",
    "dense_sums": "sums for batch norm, read again",
    "dense_relu": "batch norm, residual and relu",
    "coefficients": "batch norm's coefficients from the sums",
}
"""Program or operation -> the kind of pass that it is, in words; all others are of one kind."""
REST = "all else: one channel's way to its first convolution, shortcuts, the head"


@dataclass(frozen=True)
class Launch:
    """One program or operation on the device.

    Attributes:
        name: of the program, or ``aten.`` and the operation.
        bytes: read and written.
        seconds: at the ceilings.
    """

    name: str
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Chunk:
    """A full chunk of one parameter's coordinates.

    Attributes:
        queries: perturbations in it.
        launches: in order.
    """

    queries: int
    launches: tuple[Launch, ...]

    @property
    def bytes(self) -> float:
        """Read and written by all launches."""
        return sum(launch.bytes for launch in self.launches)

    @property
    def seconds(self) -> float:
        """At the ceilings, all of it."""
        return sum(launch.seconds for launch in self.launches)


class Count:
    """A problem on shapes, chunks of which can be counted.

    Args:
        task: the network, the batch and the coordinates.
    """

    def __init__(self, task: Problem) -> None:
        self.task = task
        objective = NetworkObjective(task.model, F.cross_entropy)
        graph = capture(objective, task.batch)
        self._program = compile_program(graph, parameters_of(objective))
        inputs = graph_inputs(graph, objective, task.batch)
        shapes = pytree.tree_map_only(Tensor, lambda t: t.to(SHAPES), inputs)
        self._values = run(graph, shapes, keep=self._program.kept, draws=Draws(task.seed))

    def sizes(self) -> dict[str, int]:
        """Perturbations of the chunks of each parameter that is queried, as on an H100."""
        with _noting(None):
            foot = footprint(self._program, self._values, self.task.step_size)
        every = chunk_sizes(foot, target=CUDA_TARGET, budget=BUDGET)
        return {name: every[name] for name in self.task.coordinates.names}

    def chunks(
        self, storage: torch.dtype | None, sizes: Mapping[str, int], *, narrow: int | None = None
    ) -> dict[str, Chunk]:
        """Propagate a chunk of some parameters, in TF32 or, with ``storage=torch.float16``, in float16.

        Args:
            storage: of dense differences.
            sizes: parameters, and perturbations of their chunks.
            narrow: input channels up to which a product in TF32 is Triton's and not cuDNN's; None for the kernels' own.
        """
        precision = Precision(tf32=True, half=storage is torch.float16).of_step(self.task.step_size)
        found, (program, step) = {}, (self._program, self.task.step_size)
        with _noting(narrow) as launches, computing_in(precision):
            for name, size in sizes.items():
                chosen = self.task.coordinates[name][:size]
                for _ in range(2):  # what rules remember for a step is made by the first
                    launches.clear()
                    loss_differences(program.cones[name], self._values, program.graph.output, chosen, step)
                found[name] = Chunk(len(chosen), tuple(launches))
        return found


def bound(task: Problem, chunks: Mapping[str, Chunk]) -> dict[str, Any]:
    """The record of a count: kinds of passes, means over all coordinates, and the chunks."""
    share = {name: len(task.coordinates[name]) / task.coordinates.count for name in chunks}
    passes = {kind: dict.fromkeys(("launches", "bytes", "seconds"), 0.0) for kind in (*PASSES.values(), REST)}
    for name, chunk in chunks.items():
        for launch in chunk.launches:
            kind = passes[PASSES.get(launch.name, REST)]
            kind["launches"] += share[name]
            kind["bytes"] += share[name] * launch.bytes / chunk.queries
            kind["seconds"] += share[name] * launch.seconds / chunk.queries
    return {
        "passes": passes,
        "queries_per_second": 1 / sum(kind["seconds"] for kind in passes.values()),
        "seconds_of_launches": LAUNCH * sum(share[name] * len(c.launches) / c.queries for name, c in chunks.items()),
        "chunks": {
            name: {"queries": c.queries, "launches": len(c.launches), "bytes": c.bytes, "seconds": c.seconds}
            for name, c in chunks.items()
        },
    }


# What is launched -----------------------------------------------------------------------------------------------------


@contextmanager
def _noting(narrow: int | None) -> Iterator[list[Launch]]:
    """A block in which the device without numbers has the kernels of a GPU, whose launches are noted."""
    launches: list[Launch] = []
    knobs, usual = cuda_kernels.triton().knobs.runtime, cuda_kernels.NARROW
    with knobs.scope():
        knobs.interpret = True  # programs take tensors of any device
        cuda_kernels.NARROW = usual if narrow is None else narrow
        programs = [(module, name, p) for module in _modules() for name, p in vars(module).items() if _is_program(p)]
        kernels.BY_DEVICE[SHAPES.type] = kernels.SomeKernels(cuda_kernels, cuda_row_kernels, cuda_attention_kernels)
        for module, name, each in programs:
            setattr(module, name, _Noted(name, each, launches))
        try:
            with _Operations(launches):
                yield launches
        finally:
            for module, name, each in programs:
                setattr(module, name, each)
            del kernels.BY_DEVICE[SHAPES.type]
            cuda_kernels.NARROW = usual


def _modules() -> list[Any]:
    from deepzero.graph.cuda import (  # noqa: PLC0415 - imports Triton
        triton_attention,
        triton_convolution,
        triton_normalization,
        triton_rows,
        triton_windows,
    )

    return [triton_attention, triton_convolution, triton_normalization, triton_rows, triton_windows]


def _is_program(found: Any) -> bool:
    return isinstance(found, cuda_kernels.triton().runtime.KernelInterface)


@dataclass(frozen=True)
class _Noted:
    """Stands for a program of Triton: notes what it would be launched with."""

    name: str
    program: Any
    launches: list[Launch]

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **constants: Any) -> None:
            given = inspect.signature(self.program.fn).bind(*args, **constants).arguments
            self.launches.append(_of_program(self.name, given))

        return launch


WRITTEN = {"out", "partial"}
SHARED = {"centred", "before"}
"""Arguments of programs: what they write, and base values, which all perturbations share."""


def _of_program(name: str, given: Mapping[str, Any]) -> Launch:
    """Everything that is read and everything that is written, once; base values once for each group of perturbations.

    A program of one channel each reads that channel of the base values. An argument that a program does not use is one
    that it reads anyway.
    """
    tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
    writes = {"out"} if name == "coefficients" else WRITTEN
    own = [t for key, t in tensors.items() if key not in writes | SHARED]
    moved = sum(_bytes(tensors[key]) for key in writes & tensors.keys()) + sum(map(_bytes, _each_once(own)))
    shared = _each_once(t for key, t in tensors.items() if key in SHARED and all(t is not other for other in own))
    if "GROUP" in given:
        times = -(-given["count"] // given["GROUP"])
        moved += times * sum(map(_bytes, shared))
    else:
        moved += len(shared) * _bytes(given.get("d"))
    operations, speed = _products(name, given)
    return Launch(name, moved, max(moved / MACHINE.memory, operations / speed))


def _products(name: str, given: Mapping[str, Any]) -> tuple[float, float]:
    """Multiplications and additions of a convolution, and how many the machine makes in a second."""
    if name not in ("convolve_dense", "convolve_channel"):
        return 0.0, 1.0
    made = 2.0 * given["KH"] * given["KW"] * given["O"] * given["rows"] * len(given["x"])
    if name == "convolve_channel":
        return made, MACHINE.float32
    return made * given["C"], MACHINE.float16 if given["x"].dtype is torch.float16 else MACHINE.tf32


def _bytes(tensor: Tensor | None) -> int:
    """Bytes of the entries of a tensor; one that is the same along a dimension has them once."""
    if tensor is None:
        return 0
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _each_once(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


MAKES_NOTHING = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}
"""Operations that leave memory as it is."""


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations of PyTorch on the device that write anything."""

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, on shapes."""
        result = func(*args, **(kwargs or {}))
        if func is aten.convolution.default and args[0].is_contiguous(memory_format=torch.channels_last):
            result = result.contiguous(memory_format=torch.channels_last)  # as cuDNN leaves it
        read, made = (
            [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)] for tree in ((args, kwargs), result)
        )
        places = {t.untyped_storage()._cdata for t in read}
        fresh = func._schema.is_mutable or any(t.untyped_storage()._cdata not in places for t in made)
        if fresh and func not in MAKES_NOTHING and any(t.device == SHAPES for t in made):
            moved = sum(map(_bytes, _each_once(read))) + sum(map(_bytes, made))
            operations = 2.0 * made[0].numel() * read[1][0].numel() if func is aten.convolution.default else 0.0
            seconds = max(moved / MACHINE.memory, operations / MACHINE.tf32)
            self._launches.append(Launch(str(func._schema.name).replace("::", "."), moved, seconds))
        return result
