"""Difference propagation: nothing that a perturbation does not change is ever recomputed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero import validation
from deepzero.announce import announced
from deepzero.errors import DeepZeroError, GraphError, InvalidInputError, from_black_box
from deepzero.evaluators.base import (
    Answer,
    DivisibleEvaluator,
    Job,
    Preparation,
    StepQueries,
    require_finite_base,
    require_repeatable,
    timed_answer,
)
from deepzero.evaluators.costs import CostTable, chunk_cost
from deepzero.evaluators.workers import one_thread, parallel_map, without_batching_advice
from deepzero.graph import plan
from deepzero.graph.capture import Node, capture
from deepzero.graph.differences import Dense
from deepzero.graph.forward import HALF, Recomputation, Values, cast, graph_inputs, held_bytes, native, run
from deepzero.graph.library import Entry, Library, rounding_of
from deepzero.graph.program import Program, compile_program, reads
from deepzero.graph.propagate import Meter, loss_differences, propagated
from deepzero.graph.verify import Check, compare_with_program, tolerance_of, verify
from deepzero.objective import (
    Batch,
    Evaluation,
    NetworkObjective,
    as_complex,
    device_of,
    keywords,
    parameters_of,
)
from deepzero.operator import standing_in
from deepzero.probes import CoordinatePerturbations, Perturbations, RandomPerturbations
from deepzero.process_memory import give_back_freed_memory
from deepzero.randomness import Draws
from deepzero.step_sizes import FromDtype
from deepzero.stopwatch import median_seconds

log = logging.getLogger("deepzero")

DEFAULT_BUDGET = 2 << 30
CPU_TARGET = 96 << 20
CUDA_TARGET = 256 << 20
WIDENED = 12
"""Memory of a verification in float64, in multiples of the base forward in float32."""


WAY_OUT = (
    'evaluator="auto", without strict=True, answers such queries by other means; evaluator=dz.SequentialEvaluator() by '
    "full forwards"
)

JOINT = "all parameters"
"""Name of what moves in a random direction, in footprints."""


@dataclass(frozen=True)
class _Step:
    """A step after its base query.

    Attributes:
        entry: the program.
        base: the live base query.
        draws: the random numbers.
        values: the graph's base values.
        batch: arguments of the program.
    """

    entry: Entry
    base: Evaluation
    draws: Draws
    values: Values
    batch: tuple[Any, ...]

    @property
    def wide(self) -> bool:
        """Whether operations can be run again in float64: none draws what depends on its values."""
        return all(draw.state is None for draw in self.draws.entries)


@dataclass(frozen=True)
class _Queries:
    """Queries of one parameter that run operations again.

    Attributes:
        again: the operations.
        base: the loss that they give at the parameter itself.
        own: the parameter by its name, as real numbers, in the dtype of the operations.
        sources: the graph inputs that hold it.
        like: the parameter.
    """

    again: Recomputation
    base: Tensor
    own: dict[str, Tensor]
    sources: tuple[Node, ...]
    like: Tensor

    def differences(self, perturbations: Perturbations, directions: Iterable[int], offset: float) -> Tensor:
        """``[directions]``, float64."""
        losses = []
        for k in directions:
            (moved,) = perturbations.displacement(k).apply(self.own, offset).values()
            losses.append(self.again.loss(dict.fromkeys(self.sources, as_complex(moved, self.like))))
        return torch.stack(losses) - self.base


class PropagationEvaluator(DivisibleEvaluator):
    """Queries of a network by propagation of differences over its exported graph.

    Every step evaluates the live program once; a graph that does not give its loss is captured again. A program is
    checked when it is made (:mod:`deepzero.graph.verify`).

    Args:
        memory_budget: bytes that the tensors of an estimate may take beyond model and batch; never exceeded. Default
            2 GiB. The exported program and the compiled loops themselves take about 0.2 GiB more, once.
        workers: chunks in flight on a CPU, one thread each; default ``torch.get_num_threads()``. The numbers do not
            depend on it.
        chunk_bytes: bytes of differences that a chunk should hold at its peak; the default suits the device.
        verify: check the rules of every program, and the program near the parameters.
        strict: what differences cannot follow is an error; otherwise the operations behind such a parameter are run
            again at each of its queries.

    Raises:
        GraphError: the program cannot be exported, or its graph is not the program.
        VerificationError: a difference rule is wrong.
    """

    exact = True
    """Loss differences carry no rounding of the losses."""

    def __init__(
        self,
        *,
        memory_budget: int = DEFAULT_BUDGET,
        workers: int | None = None,
        chunk_bytes: int | None = None,
        verify: bool = True,
        strict: bool = True,
    ) -> None:
        self.memory_budget = validation.count("memory_budget", memory_budget)
        self.workers = None if workers is None else validation.count("workers", workers)
        self.chunk_bytes = None if chunk_bytes is None else validation.count("chunk_bytes", chunk_bytes)
        self.strict = strict
        self._verify = verify
        self._libraries: WeakKeyDictionary[NetworkObjective, Library] = WeakKeyDictionary()
        self._footprints: dict[str, plan.Footprint] = {}

    def prepare(self, queries: StepQueries) -> Preparation:
        """The live base query and the graph's base forward; every chunk of directions is a job."""
        objective, perturbations, offsets = queries.objective, queries.perturbations, queries.offsets
        if not isinstance(objective, NetworkObjective):
            raise InvalidInputError(
                "PropagationEvaluator evaluates an nn.Module; use evaluator=dz.SequentialEvaluator() here"
            )
        if not isinstance(perturbations, (CoordinatePerturbations, RandomPerturbations)):
            raise InvalidInputError(
                f"PropagationEvaluator knows coordinates and random directions, got {type(perturbations).__name__}; "
                "use evaluator=dz.SequentialEvaluator()"
            )
        sizes = {name: abs(offsets[0]) * perturbations.scale(name) for name in parameters_of(objective)}
        with self._way_out(), without_batching_advice():
            step = self._begin(objective, queries.batch, sizes, queries.seed)
            if isinstance(perturbations, CoordinatePerturbations):
                return self._coordinates(step, objective, perturbations, offsets)
            return self._directions(step, objective, perturbations, offsets)

    @contextmanager
    def _way_out(self) -> Iterator[None]:
        """Tell whoever asked for propagation alone what else there is."""
        try:
            yield
        except GraphError as error:
            if self.strict:
                raise GraphError(f"{error}\n{WAY_OUT}") from error
            raise

    def _begin(
        self, objective: NetworkObjective, batch: tuple[Any, ...], sizes: Mapping[str, float], seed: int
    ) -> _Step:
        """The base query, and a program whose loss is that of the live one."""
        parameters = parameters_of(objective)
        with one_thread():
            base, draws = objective.base(parameters, batch, seed=seed)
            require_finite_base(base.loss)
            if self._verify:
                require_repeatable(objective)
            try:
                entry, values = self._matched(objective, batch, sizes, seed, draws, base)
            except (DeepZeroError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                if from_black_box(error):
                    raise
                raise GraphError(
                    f"the program's graph cannot be evaluated ({type(error).__name__}: {str(error)[:200]})"
                ) from error
        return _Step(entry, base, draws, values, batch)

    def _matched(
        self,
        objective: NetworkObjective,
        batch: tuple[Any, ...],
        sizes: Mapping[str, float],
        seed: int,
        draws: Draws,
        base: Evaluation,
    ) -> tuple[Entry, Values]:
        """A program with the loss of the live one, and its base values."""
        library = self._libraries.setdefault(objective, Library())
        entry, new = library.get(objective, batch, draws, strict=self.strict)
        if new or (self._verify and entry.check is None):
            with announced("checking the program's difference rules"):
                self._check(entry, objective, batch, sizes, seed, draws, base.loss)
        values = self._run(entry.program, objective, batch, draws)
        if entry.agrees(base_loss(entry.program, values), base.loss, rounding_of(objective)):
            library.settled()
        else:
            entry, values = self._captured_again(library, entry, objective, batch, sizes, seed, draws, base.loss)
        library.learn(objective, base.buffers)
        return entry, values

    def _captured_again(
        self,
        library: Library,
        stale: Entry,
        objective: NetworkObjective,
        batch: tuple[Any, ...],
        sizes: Mapping[str, float],
        seed: int,
        draws: Draws,
        live: Tensor,
    ) -> tuple[Entry, Values]:
        """A program in place of one whose loss is not the live one's."""
        entry, new = library.replace(objective, batch, draws, stale, strict=self.strict)
        if new:
            self._check(entry, objective, batch, sizes, seed, draws, live)
        values = self._run(entry.program, objective, batch, draws)
        found = base_loss(entry.program, values)
        if not entry.agrees(found, live, rounding_of(objective)):
            if not entry.may_be_rounding(found, live, tolerance_of(objective)):
                raise GraphError(
                    f"the exported graph is not the program: it has the loss {float(found):.9g}, the program "
                    f"{float(live):.9g}"
                )
            entry.apart = max(entry.apart, abs(float(found) - float(live)))
        return entry, values

    def _check(
        self,
        entry: Entry,
        objective: NetworkObjective,
        batch: tuple[Any, ...],
        sizes: Mapping[str, float],
        seed: int,
        draws: Draws,
        live: Tensor,
    ) -> None:
        """The checks of a new program; on the first samples if all of them would not fit into the budget in float64."""
        entry.scale = abs(float(live))
        apart = compare_with_program(entry.program, objective, batch, seed, draws, live, near=self._verify)
        entry.apart = apart * (2 * entry.scale + 1e-3)
        if not self._verify:
            return
        values = self._run(entry.program, objective, batch, draws)
        share = self.memory_budget / (WIDENED * max(1, held_bytes(values)))
        values.clear()
        give_back_freed_memory()
        program, sample = entry.program, batch
        if share < 1:
            sample = first_samples(batch, share)
            if sample is not batch:
                _, draws = objective.base(parameters_of(objective), sample, seed=seed)
                graph = capture(objective, sample, draws)
                program = compile_program(graph, parameters_of(objective), strict=self.strict)

        def refused(name: str, error: Exception) -> None:
            if self.strict:
                raise error
            reason = f"the rules of its operations stumble ({type(error).__name__}: {str(error)[:200]})"
            entry.program = entry.program.without(name, reason)

        room = self.memory_budget / plan.ALLOCATOR
        check = verify(program, objective, sample, sizes, seed, draws, refused, room=room)
        entry.check = replace(check, program=apart)
        give_back_freed_memory()

    def _coordinates(
        self,
        step: _Step,
        objective: NetworkObjective,
        perturbations: CoordinatePerturbations,
        offsets: Sequence[float],
    ) -> Preparation:
        program, values, parameters = step.entry.program, step.values, parameters_of(objective)
        foot = self._footprint(step.entry, values, offsets[0])
        device = device_of(parameters)
        sizes, workers = self._plan(foot, device)
        chunks = {(chunk.start, chunk.stop): chunk for chunk in plan.cut(perturbations, sizes)}
        again = self._recomputations(step, objective, [n for n in program.recomputed if n in perturbations.coordinates])
        rounded = {name for name in again if not step.wide}
        steps = perturbations.taken(parameters, offsets, rounded) if rounded else None

        def difference(job: Job) -> Tensor:
            chunk, offset = chunks[job.start, job.stop], offsets[job.row]
            if chunk.parameter in again:
                return again[chunk.parameter].differences(perturbations, range(job.start, job.stop), offset)
            cone = program.cones[chunk.parameter]
            size = offset * perturbations.scale(chunk.parameter)
            try:
                return loss_differences(cone, values, program.graph.output, chunk.indices, size)
            except Exception as error:
                if self.strict or from_black_box(error) or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                    raise
                log.warning("queries of %s run operations again: a rule raised %s", chunk.parameter, error)
                rescue = self._recomputations(step, objective, [chunk.parameter])[chunk.parameter]
                return rescue.differences(perturbations, range(job.start, job.stop), offset)

        jobs = [
            Job(row, chunk.start, chunk.stop, chunk.parameter, foot.queries[chunk.parameter])
            for row in range(len(offsets))
            for chunk in chunks.values()
        ]
        return self._preparation(
            step, jobs, difference, workers, device, self._is_tight(foot, device, sizes, workers), steps
        )

    def _recomputations(self, step: _Step, objective: NetworkObjective, names: Sequence[str]) -> dict[str, _Queries]:
        """Queries that run operations again: in float64, unless what the operations draw depends on their values."""
        if not names:
            return {}
        cones = step.entry.program.cones
        graph, values, dtype = step.entry.program.graph, step.values, None
        if step.wide:
            graph, dtype = graph.widened, torch.float64
            wanted = {node for name in names for node in reads(graph, cones[name])}
            inputs = graph_inputs(graph, objective, step.batch, dtype=dtype)
            values = run(graph, inputs, keep=wanted, draws=step.draws, wide=True)
        found = {}
        for name in names:
            cone = cones[name]
            again = Recomputation(graph, cone.sources, values, step.draws, wide=step.wide)
            base = again.loss({node: native(values[node]) for node in cone.sources})
            own = {name: cast(parameters_of(objective)[name], dtype)}
            found[name] = _Queries(again, base, own, cone.sources, objective.places().parameters[name][0])
        return found

    def _directions(
        self, step: _Step, objective: NetworkObjective, perturbations: RandomPerturbations, offsets: Sequence[float]
    ) -> Preparation:
        """Random directions: all parameters differ, in all entries."""
        cone = step.entry.program.joint()
        if cone.reason:
            raise GraphError(cone.reason)
        values, device = step.values, device_of(parameters_of(objective))
        output, places = step.entry.program.graph.output, objective.places()

        def differences(start: int, stop: int, offset: float, meter: Meter | None = None) -> Tensor:
            stacked = perturbations.stack(start, stop)
            sources = {}
            for node in cone.sources:
                name = str(step.entry.program.graph.inputs[node][1])
                moved = as_complex(stacked[name] * (offset * perturbations.scale(name)), places.parameters[name][0])
                sources[node] = Dense(moved.float() if moved.dtype in HALF else moved)
            return propagated(cone, values, output, sources, stop - start, meter)

        foot = self._joint_footprint(step.entry, values, lambda meter: differences(0, 1, offsets[0], meter))
        sizes, workers = self._plan(foot, device)
        chunk = sizes[JOINT]
        jobs = [
            Job(row, k, min(k + chunk, len(perturbations)), "direction", foot.queries[JOINT])
            for row in range(len(offsets))
            for k in range(0, len(perturbations), chunk)
        ]

        def difference(job: Job) -> Tensor:
            return differences(job.start, job.stop, offsets[job.row])

        return self._preparation(
            step, jobs, difference, workers, device, self._is_tight(foot, device, sizes, workers), None
        )

    def _preparation(
        self,
        step: _Step,
        jobs: list[Job],
        difference: Callable[[Job], Tensor],
        workers: int,
        device: torch.device,
        tight: bool,
        steps: Tensor | None,
    ) -> Preparation:
        def answer(some: Sequence[Job]) -> list[Answer]:
            with without_batching_advice():
                return parallel_map(lambda job: timed_answer(difference, job), some, workers, device)

        def release() -> None:
            step.values.clear()
            if tight:
                give_back_freed_memory()

        return Preparation(
            loss=step.base.loss,
            buffers=step.base.buffers,
            jobs=jobs,
            answer=answer,
            release=release,
            steps=steps,
        )

    def entry(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> Entry:
        """The program for this shape of batch and the state that the model is in, with how it was checked."""
        with self._way_out():
            return self._begin(objective, batch, self._sizes(objective), seed=0).entry

    def program(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> Program:
        """The exported and compiled graph for this shape of batch and the state that the model is in."""
        return self.entry(objective, batch).program

    def recomputed(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> dict[str, str]:
        """Parameters whose queries run operations again, and why, in the program used last for such a batch."""
        library = self._libraries.get(objective)
        entry = None if library is None else library.latest(batch)
        return {} if entry is None else entry.program.recomputed

    def check(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> Check | None:
        """How the program for a batch was checked, and how sharp the check was; None with ``verify=False``."""
        return self.entry(objective, batch).check

    def _sizes(self, objective: NetworkObjective) -> dict[str, float]:
        return FromDtype().of(parameters_of(objective))

    def base_values(self, program: Program, objective: NetworkObjective, batch: tuple[Any, ...], seed: int) -> Values:
        """The graph's base forward of a step."""
        with one_thread():
            _, draws = objective.base(parameters_of(objective), batch, seed=seed)
            values = self._run(program, objective, batch, draws)
        require_finite_base(base_loss(program, values))
        return values

    def _run(self, program: Program, objective: NetworkObjective, batch: tuple[Any, ...], draws: Draws) -> Values:
        return run(program.graph, graph_inputs(program.graph, objective, batch), keep=program.kept, draws=draws)

    def costs(self, objective: NetworkObjective, *batch: Any, offset: float = 5e-3, repeats: int = 3) -> CostTable:
        """Measure the cost table on a batch, with all workers busy: a few seconds for a small network.

        Example:
            >>> import torch, torch.nn.functional as F, deepzero as dz
            >>> zo = dz.CGE(torch.nn.Linear(4, 2), loss=F.cross_entropy)
            >>> table = zo.evaluator.costs(zo.objective, torch.randn(8, 4), torch.zeros(8, dtype=torch.int64))
            >>> sorted(table.seconds_per_query())
            ['bias', 'weight']
        """
        step = self._begin(objective, batch, self._sizes(objective), seed=0)
        entry, program, values = step.entry, step.entry.program, step.values
        base = median_seconds(lambda: self.base_values(program, objective, batch, seed=0), repeats)
        parameters = parameters_of(objective)
        foot = self._footprint(entry, values, offset)
        device = device_of(parameters)
        sizes, workers = self._plan(foot, device)

        def chunk_run(name: str) -> Callable[[Tensor], None]:
            def run(indices: Tensor) -> None:
                def once(_: int) -> Tensor:
                    if program.cones[name].reason:
                        return self._recomputations(step, objective, [name])[name].base
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

    def _footprint(self, entry: Entry, values: Values, offset: float) -> plan.Footprint:
        if entry.digest not in self._footprints:
            with one_thread(), standing_in():
                self._footprints[entry.digest] = plan.footprint(entry.program, values, offset)
        return self._footprints[entry.digest]

    def _joint_footprint(self, entry: Entry, values: Values, one: Callable[[Meter], Tensor]) -> plan.Footprint:
        key = f"{entry.digest} {JOINT}"
        if key not in self._footprints:
            with one_thread(), torch.no_grad(), standing_in():
                self._footprints[key] = plan.joint_footprint(values, one, JOINT)
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
    leaves, spec = pytree.tree_flatten((tuple(batch), keywords(batch)))
    sizes = {leaf.shape[0] if leaf.dim() else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    count = max(2, int(share * max(sizes, default=0)))
    if len(sizes) != 1 or count >= min(sizes):
        return batch
    few = [leaf[:count] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    arguments, options = pytree.tree_unflatten(few, spec)
    return Batch(arguments, options)


def base_loss(program: Program, values: Values) -> Tensor:
    """The base loss, 0-dim float64."""
    loss: Tensor = values[program.graph.output].base
    return loss.double().mean()
