"""Difference propagation: nothing that a perturbation does not change is ever recomputed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.evaluators.base import DivisibleEvaluator, Job, Preparation, require_finite_base, timed_answer
from deepzero.evaluators.costs import CostTable, chunk_cost, timed
from deepzero.evaluators.heap import give_back_freed_memory
from deepzero.evaluators.workers import one_thread, parallel_map
from deepzero.graph import plan
from deepzero.graph.capture import capture
from deepzero.graph.forward import Values, graph_inputs, held_bytes, run
from deepzero.graph.program import Program, compile_program
from deepzero.graph.propagate import loss_differences
from deepzero.graph.verify import verify
from deepzero.objective import NetworkObjective, Objective, device_of, split_batch
from deepzero.probes import CoordinatePerturbations, Perturbations

DEFAULT_BUDGET = 2 << 30
CPU_TARGET = 96 << 20
CUDA_TARGET = 256 << 20
WIDENED = 8
"""Memory of a verification in float64, in multiples of the base forward in float32."""


class PropagationEvaluator(DivisibleEvaluator):
    """Coordinate differences on a network by propagation over its exported graph.

    Args:
        memory_budget: bytes that the tensors of an estimate may take beyond model and batch; never exceeded. Default
            2 GiB. The exported program and the compiled loops themselves take about 0.2 GiB more, once.
        workers: chunks in flight on a CPU, one thread each; default ``torch.get_num_threads()``. The numbers do not
            depend on it.
        chunk_bytes: bytes of differences that a chunk should hold at its peak; the default suits the device.
        verify: compare a few coordinates with the sequential oracle before the first step.

    The graph is exported once for each shape of batch and mode of the model.
    """

    def __init__(
        self,
        *,
        memory_budget: int = DEFAULT_BUDGET,
        workers: int | None = None,
        chunk_bytes: int | None = None,
        verify: bool = True,
    ) -> None:
        self.memory_budget = validation.count("memory_budget", memory_budget)
        self.workers = None if workers is None else validation.count("workers", workers)
        self.chunk_bytes = None if chunk_bytes is None else validation.count("chunk_bytes", chunk_bytes)
        self._verify = verify
        self._programs: WeakKeyDictionary[NetworkObjective, dict[str, Program]] = WeakKeyDictionary()
        self._footprints: dict[str, plan.Footprint] = {}

    def prepare(
        self,
        objective: Objective,
        batch: tuple[Any, ...],
        perturbations: Perturbations,
        offsets: Sequence[float],
        seed: int,
    ) -> Preparation:
        """The base forward; every chunk of coordinates is a job."""
        if not isinstance(objective, NetworkObjective) or not isinstance(perturbations, CoordinatePerturbations):
            raise InvalidInputError(
                "PropagationEvaluator evaluates coordinates (CGE) on an nn.Module; "
                "use evaluator=dz.SequentialEvaluator() here"
            )
        program = self.program(objective, batch)
        values = self.base_values(program, objective, batch, seed)
        if self._verify and len(perturbations):
            held = held_bytes(values)
            values.clear()
            self._compare_with_oracle(objective, batch, perturbations, offsets[0], seed, held)
            self._verify = False
            values = self.base_values(program, objective, batch, seed)
        foot = self._footprint(program, objective, batch, values, offsets[0])
        device = device_of(objective.parameters())
        sizes, workers = self._plan(foot, device)
        tight = self._is_tight(foot, device, sizes, workers)
        chunks = {(chunk.start, chunk.stop): chunk for chunk in plan.cut(perturbations, sizes)}

        def difference(job: Job) -> Tensor:
            chunk = chunks[job.start, job.stop]
            cone = program.cones[chunk.parameter]
            return loss_differences(cone, values, program.graph.output, chunk.indices, offsets[job.row])

        def release() -> None:
            values.clear()
            if tight:
                give_back_freed_memory()

        jobs = [
            Job(row, chunk.start, chunk.stop, chunk.parameter, foot.queries[chunk.parameter])
            for row in range(len(offsets))
            for chunk in chunks.values()
        ]
        return Preparation(
            loss=base_loss(program, values),
            buffers={name: values[node].base for name, node in program.graph.buffer_updates.items()},
            jobs=jobs,
            answer=lambda some: parallel_map(lambda job: timed_answer(difference, job), some, workers, device),
            release=release,
        )

    def _compare_with_oracle(
        self,
        objective: NetworkObjective,
        batch: tuple[Any, ...],
        perturbations: CoordinatePerturbations,
        offset: float,
        seed: int,
        held: int,
    ) -> None:
        """The second guard, on the first samples of the batch if all of it would not fit into the budget in float64."""
        share = self.memory_budget / (WIDENED * held)
        sample = batch if share >= 1 else first_samples(batch, share)
        widen = share >= 1 or sample is not batch
        verify(self.program(objective, sample), objective, sample, perturbations, offset, seed, widen=widen)
        give_back_freed_memory()

    def program(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> Program:
        """The exported and compiled graph for this shape of batch and mode of the model."""
        programs = self._programs.setdefault(objective, {})
        key = _signature(objective, batch)
        if key not in programs:
            x, y = split_batch(batch)
            programs[key] = compile_program(capture(objective, x, y), objective.parameters())
        return programs[key]

    def base_values(self, program: Program, objective: NetworkObjective, batch: tuple[Any, ...], seed: int) -> Values:
        """The base forward of a step."""
        inputs = graph_inputs(program.graph, objective, batch)
        with one_thread():
            values = run(program.graph, inputs, keep=program.kept, seed=seed, device=device_of(objective.parameters()))
        require_finite_base(base_loss(program, values))
        return values

    def costs(self, objective: NetworkObjective, *batch: Any, offset: float = 5e-3, repeats: int = 3) -> CostTable:
        """Measure the cost table on a batch, with all workers busy: a few seconds for a small network.

        Example:
            >>> import torch, torch.nn.functional as F, deepzero as dz
            >>> zo = dz.CGE(torch.nn.Linear(4, 2), loss=F.cross_entropy)
            >>> table = zo.evaluator.costs(zo.objective, torch.randn(8, 4), torch.zeros(8, dtype=torch.int64))
            >>> sorted(table.seconds_per_query())
            ['bias', 'weight']
        """
        program = self.program(objective, batch)
        base = timed(lambda: self.base_values(program, objective, batch, seed=0), repeats)
        values = self.base_values(program, objective, batch, seed=0)
        parameters = objective.parameters()
        foot = self._footprint(program, objective, batch, values, offset)
        device = device_of(parameters)
        sizes, workers = self._plan(foot, device)

        def chunk_run(name: str) -> Callable[[Tensor], None]:
            def run(indices: Tensor) -> None:
                def once(_: int) -> Tensor:
                    return loss_differences(program.cones[name], values, program.graph.output, indices, offset)

                parallel_map(once, range(workers), workers, device)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)

            return run

        table = {
            name: chunk_cost(chunk_run(name), torch.arange(p.numel()), sizes[name], foot.queries[name], repeats)
            for name, p in parameters.items()
        }
        return CostTable(base, workers, table, foot.held)

    def work(self, objective: NetworkObjective, *batch: Any) -> dict[str, int]:
        """Bytes of differences that one query writes on its way to the loss, by parameter.

        It depends on shapes alone, so it is the same in every run and on every machine; on a CPU the seconds of a query
        follow it closely.

        Example:
            >>> import torch, torch.nn.functional as F, deepzero as dz
            >>> zo = dz.CGE(torch.nn.Linear(4, 2), loss=F.cross_entropy)
            >>> work = zo.evaluator.work(zo.objective, torch.randn(8, 4), torch.zeros(8, dtype=torch.int64))
            >>> sorted(work)
            ['bias', 'weight']
        """
        program = self.program(objective, batch)
        with one_thread():
            return plan.work(program, self.base_values(program, objective, batch, seed=0), offset=1e-3)

    def _plan(self, foot: plan.Footprint, device: torch.device) -> tuple[dict[str, int], int]:
        """Perturbations per chunk by parameter, and the workers that fit."""
        on_cpu = device.type == "cpu"
        target = self.chunk_bytes or (CPU_TARGET if on_cpu else CUDA_TARGET)
        wanted = (self.workers or torch.get_num_threads()) if on_cpu else 1
        budget, overhead = self.memory_budget, plan.ALLOCATOR if on_cpu else 1.0
        sizes = plan.chunk_sizes(foot, target=target, budget=budget, overhead=overhead)
        return sizes, plan.workers_that_fit(foot, sizes, budget=budget, wanted=wanted, overhead=overhead)

    def _is_tight(self, foot: plan.Footprint, device: torch.device, sizes: dict[str, int], workers: int) -> bool:
        """Whether what an estimate leaves in the allocator's arenas could take the next one over the budget."""
        return device.type == "cpu" and plan.in_flight(foot, sizes, workers) * 2 * plan.ALLOCATOR > self.memory_budget

    def _footprint(
        self, program: Program, objective: NetworkObjective, batch: tuple[Any, ...], values: Values, offset: float
    ) -> plan.Footprint:
        key = _signature(objective, batch)
        if key not in self._footprints:
            with one_thread():
                self._footprints[key] = plan.footprint(program, values, offset)
        return self._footprints[key]

    def state_dict(self) -> dict[str, Any]:
        """The footprints and the targets, on which the chunk plan and so the last bits depend."""
        return {
            "memory_budget": self.memory_budget,
            "chunk_bytes": self.chunk_bytes,
            "footprints": {key: {"held": f.held, "queries": dict(f.queries)} for key, f in self._footprints.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the chunk plan of the run that made the checkpoint."""
        self.memory_budget, self.chunk_bytes = state["memory_budget"], state["chunk_bytes"]
        self._footprints = {key: plan.Footprint(**foot) for key, foot in state["footprints"].items()}


def first_samples(batch: tuple[Any, ...], share: float) -> tuple[Any, ...]:
    """A share of the samples of a batch, at least two; the batch itself if its tensors do not agree on their number."""
    leaves, spec = pytree.tree_flatten(batch)
    sizes = {leaf.shape[0] if leaf.dim() else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    count = max(2, int(share * max(sizes, default=0)))
    if len(sizes) != 1 or count >= min(sizes):
        return batch
    few = [leaf[:count] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return tuple(pytree.tree_unflatten(few, spec))


def base_loss(program: Program, values: Values) -> Tensor:
    """The base loss, 0-dim float64."""
    loss: Tensor = values[program.graph.output].base
    return loss.double().mean()


def _signature(objective: NetworkObjective, batch: tuple[Any, ...]) -> str:
    shapes = [(tuple(t.shape), str(t.dtype)) if isinstance(t, Tensor) else repr(t) for t in pytree.tree_leaves(batch)]
    modes = "".join("t" if m.training else "e" for m in objective.model.modules())
    grads = "".join("1" if p.requires_grad else "0" for p in objective.model.parameters())
    described = repr((shapes, modes, grads, str(device_of(objective.parameters())), repr(objective.model)))
    return hashlib.blake2b(described.encode(), digest_size=12).hexdigest()
