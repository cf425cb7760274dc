"""Difference propagation: nothing that a perturbation does not change is ever recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero import validation
from deepzero.announce import announced
from deepzero.errors import DeepZeroError, GraphError, InvalidInputError, from_black_box
from deepzero.evaluators.base import (
    JOINT,
    Answer,
    DivisibleEvaluator,
    Job,
    Preparation,
    StepQueries,
    cut,
    require_finite_base,
    require_repeatable,
    timed_answer,
)
from deepzero.evaluators.costs import CostTable, chunk_cost
from deepzero.evaluators.propagated_step import (
    CoordinateJobs,
    DirectionJobs,
    ForwardAhead,
    LiveQuery,
    PropagatedStep,
    answered_by_rules,
    base_loss,
)
from deepzero.evaluators.workers import as_a_worker, one_thread, parallel_map, without_batching_advice
from deepzero.graph import plan
from deepzero.graph.capture import capture
from deepzero.graph.footprint import Footprint, footprint, joint_footprint
from deepzero.graph.forward import Values, held_bytes
from deepzero.graph.library import MANY, Library, PreparedProgram, rounding_of
from deepzero.graph.precision import Precision
from deepzero.graph.program import Program, compile_program
from deepzero.graph.verify import Check, compare_with_program, hides_factors, losses_near, tolerance_of, verify
from deepzero.objective import Batch, NetworkObjective, asks_black_boxes, device_of, keywords, parameters_of
from deepzero.operator import standing_in
from deepzero.probes import CoordinateDirections, JointDirections, are_coordinates, are_joint
from deepzero.process_memory import freed_memory_kept, give_back_freed_memory
from deepzero.step_sizes import FromDtype
from deepzero.stopwatch import median_seconds

DEFAULT_BUDGET = 2 << 30
CPU_TARGET = 48 << 20
"""Bytes of a chunk: small tensors stay in the cache from rule to rule, and the work between rules is shared by many."""
FEW = 4
"""Perturbations of a chunk whose tensors no cache holds."""
CUDA_TARGET = 32 << 30
CUDA_SHARE = 0.8
WIDENED = 12
"""Memory of a verification in float64, in multiples of the base forward in float32."""
CHECKED = 512 << 20
"""Bytes that a verification takes at most: rules treat samples alike, and some of them show a fault as all do. A batch
that asks black boxes is not asked for a part of itself."""


WAY_OUT = (
    'evaluator="auto", without strict=True, answers such queries by other means; evaluator=dz.SequentialEvaluator() by '
    "full forwards"
)


class PropagationEvaluator(DivisibleEvaluator):
    """Queries of a network by propagation of differences over its exported graph.

    Every step evaluates the live program once; a graph that does not give its loss is captured again. Where a parameter
    is all zeros, what it is multiplied by does not show in the loss: there, both are evaluated at a second point, too.
    A program is checked when it is made (:mod:`deepzero.graph.verify`).

    Args:
        memory_budget: bytes that the tensors of an estimate may take beyond model and batch. Default 2 GiB, on a GPU
            80 % of the memory that is free there at the first estimate. Behind wide linear layers, differences of rank
            one that an activation has to write out can take more: at most what four perturbations take in full, for
            each worker. The exported program and the compiled loops themselves take about 0.2 GiB more, once.
        workers: chunks in flight on a CPU, one thread each; default ``torch.get_num_threads()``. The numbers do not
            depend on it.
        chunk_bytes: bytes of differences that a chunk should hold at its peak; the default suits the device.
        storage: ``torch.float16``: a GPU keeps dense differences of float32 networks in float16, scaled by a power of
            two near the inverse of the step, which takes half the memory traffic; sums stay in float32 or float64, and
            what float16 cannot hold is propagated again in float32. Default: float32. On a CPU it changes nothing.
        tf32: whether a GPU may multiply differences in TF32, which rounds both factors to 10 bits after the point, for
            a relative error of a gradient near 3e-3. Default: as PyTorch is set, which by its own default means
            convolutions and no matrix products. Base forwards, and PyTorch's own switches, are left as they are.
        verify: check the rules of every program, and the program near the parameters.
        keep_memory: while a step's queries run, glibc's allocator keeps what is freed for the next query, in place of
            giving it back to the system at the price of page faults, unless the budget is tight
            (:func:`deepzero.process_memory.freed_memory_kept`). Other threads of the process share the allocator, and
            so the setting; False leaves it alone.
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
        memory_budget: int | None = None,
        workers: int | None = None,
        chunk_bytes: int | None = None,
        storage: torch.dtype | None = None,
        tf32: bool | None = None,
        verify: bool = True,
        strict: bool = True,
        keep_memory: bool = True,
    ) -> None:
        self._by_device = memory_budget is None
        self.memory_budget = (
            DEFAULT_BUDGET if memory_budget is None else validation.count("memory_budget", memory_budget)
        )
        self._precision = Precision(tf32, half=_is_half(storage))
        self.workers = None if workers is None else validation.count("workers", workers)
        self.chunk_bytes = None if chunk_bytes is None else validation.count("chunk_bytes", chunk_bytes)
        self.strict = strict
        self.keep_memory = keep_memory
        self._verify = verify
        self._libraries: WeakKeyDictionary[NetworkObjective, Library] = WeakKeyDictionary()
        self._resumed: dict[str, Footprint] = {}

    def prepare(self, queries: StepQueries) -> Preparation:
        """The live base query and the graph's base forward; every chunk of directions is a job."""
        objective, directions = queries.objective, queries.perturbations
        if not isinstance(objective, NetworkObjective):
            raise InvalidInputError(
                "PropagationEvaluator evaluates an nn.Module; use evaluator=dz.SequentialEvaluator() here"
            )
        if not (are_coordinates(directions) or are_joint(directions)):
            raise InvalidInputError(
                f"PropagationEvaluator knows coordinates and random directions, got {type(directions).__name__}; "
                "use evaluator=dz.SequentialEvaluator()"
            )
        sizes = {name: abs(queries.offsets[0]) * directions.scale(name) for name in queries.parameters()}
        with self._way_out(), without_batching_advice():
            step = self._begin(objective, queries.batch, sizes, queries.seed)
            if are_coordinates(directions):
                return self._along_coordinates(step, queries, directions)
            assert are_joint(directions)
            return self._along_joint_directions(step, queries, directions)

    def _settle_budget(self, device: torch.device) -> None:
        """The budget of a GPU, once, in whole GiB: a share of what is free there, or kept by PyTorch for reuse."""
        if self._by_device and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            self.memory_budget = max(1, int(CUDA_SHARE * (free + kept)) >> 30) << 30
        self._by_device = False

    @contextmanager
    def _way_out(self) -> Iterator[None]:
        """Add to an error what else there is, for those who chose propagation alone."""
        try:
            yield
        except GraphError as error:
            if self.strict:
                raise GraphError(f"{error}\n{WAY_OUT}") from error
            raise

    def _begin(
        self, objective: NetworkObjective, batch: tuple[Any, ...], sizes: Mapping[str, float], seed: int
    ) -> PropagatedStep:
        """The base query, and a program whose loss is that of the live one."""
        parameters = parameters_of(objective)
        self._settle_budget(device_of(parameters))
        with self._forward_ahead(objective, batch) as ahead, one_thread():
            base, draws = objective.base(parameters, batch, seed=seed)
            require_finite_base(base.loss, (parameters, batch))
            if self._verify:
                require_repeatable(objective)
            live = LiveQuery(objective, batch, seed, sizes, base, draws)
            try:
                return self._matched(live, ahead)
            except (DeepZeroError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                if from_black_box(error):
                    raise
                raise GraphError(
                    f"the program's graph cannot be evaluated ({type(error).__name__}: {str(error)[:200]})"
                ) from error

    @contextmanager
    def _forward_ahead(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> Iterator[ForwardAhead | None]:
        """The base forward of the program used last, beside the live query, where a worker would be idle otherwise."""
        ahead = self._begun_ahead(objective, batch)
        try:
            yield ahead
        finally:
            if ahead is not None:
                ahead.values()  # nothing of a step goes on behind it

    def _begun_ahead(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> ForwardAhead | None:
        library, device = self._libraries.get(objective), device_of(parameters_of(objective))
        prepared = None if library is None else library.latest(batch)
        if prepared is None or prepared.footprint is None or device.type != "cpu" or not as_a_worker():
            return None
        if prepared.program.graph.drawing or asks_black_boxes(objective):
            return None
        sizes, workers = self._plan(prepared.footprint, device)
        if workers == 1 or self._is_tight(prepared.footprint, device, sizes, workers):
            return None
        return ForwardAhead.of(prepared.program, objective, batch, workers)

    def _matched(self, live: LiveQuery, ahead: ForwardAhead | None) -> PropagatedStep:
        """The step by a program with the loss of the live one."""
        objective, library = live.objective, self._libraries.setdefault(live.objective, Library())
        holds = partial(self._holds, live)
        prepared, new = library.get(objective, live.batch, live.draws, strict=self.strict, holds=holds)
        if new or (self._verify and prepared.check is None):
            with announced("checking the program's difference rules"):
                self._check(prepared, live)
        values = ahead.values() if ahead is not None and ahead.program is prepared.program else None
        step = PropagatedStep(live, prepared, live.forward(prepared.program) if values is None else values)
        alike = prepared.agrees(step.base_loss(), live.base.loss, rounding_of(objective))
        if alike and (new or self._agrees_near(prepared, live)):
            library.settled()
        else:
            step = self._captured_again(library, prepared, live)
        library.learn(objective, live.base.buffers)
        return step

    def _captured_again(self, library: Library, stale: PreparedProgram, live: LiveQuery) -> PropagatedStep:
        """The step by a program in place of one whose loss is not the live one's."""
        prepared, new = library.replace(live.objective, live.batch, live.draws, stale, strict=self.strict)
        if new:
            self._check(prepared, live)
        step = PropagatedStep(live, prepared, live.forward(prepared.program))
        found, expected = step.base_loss(), live.base.loss
        if not prepared.agrees(found, expected, rounding_of(live.objective)):
            if not prepared.may_be_rounding(found, expected, tolerance_of(live.objective)):
                raise GraphError(
                    f"the exported graph is not the program: it has the loss {float(found):.9g}, the program "
                    f"{float(expected):.9g}"
                )
            prepared.apart = max(prepared.apart, abs(float(found) - float(expected)))
        if not new and not self._agrees_near(prepared, live):
            known = prepared.apart
            self._compare(prepared, live, near=True)
            prepared.apart = max(known, prepared.apart)
        return step

    def _agrees_near(self, prepared: PreparedProgram, live: LiveQuery) -> bool:
        """True if a graph is the live program at a point near the parameters, too.

        Asked for where a tensor of zeros hides in the loss what it is multiplied by; not of a black box, at its price.
        """
        objective = live.objective
        if not self._verify or asks_black_boxes(objective) or not hides_factors(parameters_of(objective)):
            return True
        found, expected = losses_near(prepared.program, objective, live.batch, live.seed, live.draws)
        return prepared.agrees(found, expected, rounding_of(objective))

    def _holds(self, live: LiveQuery, concluded: PreparedProgram) -> bool:
        """True if a program that was not exported has the losses of the live one, to their last bits, at three points.

        A black box inside would be asked for them, at its price.
        """
        if asks_black_boxes(live.objective):
            return False
        known = concluded.apart
        try:
            self._compare(concluded, live, near=True)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:
            return False  # whatever a graph of wrong sizes stumbles over: the program is exported
        return concluded.apart <= max(4 * known, 16 * rounding_of(live.objective) * concluded.scale)

    def _compare(self, prepared: PreparedProgram, live: LiveQuery, *, near: bool) -> float:
        """The largest relative difference of a new program's loss and the live one, which it remembers."""
        prepared.scale = abs(float(live.base.loss))
        apart = compare_with_program(
            prepared.program, live.objective, live.batch, live.seed, live.draws, live.base.loss, near=near
        )
        prepared.apart = apart * (2 * prepared.scale + 1e-3)
        return apart

    def _check(self, prepared: PreparedProgram, live: LiveQuery) -> None:
        """The checks of a new program; its rules on the first samples, if all of them take too much in float64."""
        objective, batch, draws = live.objective, live.batch, live.draws
        apart = self._compare(prepared, live, near=self._verify)
        if prepared.check is not None:
            prepared.check = replace(prepared.check, program=apart)
        if not self._verify or prepared.check is not None:
            return
        values = live.forward(prepared.program)
        most = self.memory_budget if asks_black_boxes(objective) else min(self.memory_budget, CHECKED)
        shares = [room / (WIDENED * max(1, held_bytes(values))) for room in (most, self.memory_budget)]
        values.clear()
        give_back_freed_memory()
        program, sample = prepared.program, batch
        if shares[0] < 1:
            sample = first_samples(batch, *shares)
            if sample is not batch:
                _, draws = objective.base(parameters_of(objective), sample, seed=live.seed)
                graph = capture(objective, sample, draws)
                program = compile_program(graph, parameters_of(objective), strict=self.strict)

        def refused(name: str, error: Exception) -> None:
            if self.strict:
                raise error
            reason = f"the rules of its operations stumble ({type(error).__name__}: {str(error)[:200]})"
            prepared.program = prepared.program.without(name, reason)

        room = self.memory_budget / plan.ALLOCATOR
        check = verify(program, objective, sample, live.sizes, live.seed, draws, refused, room=room)
        prepared.check = replace(check, program=apart)
        give_back_freed_memory()

    def _along_coordinates(
        self, step: PropagatedStep, queries: StepQueries, directions: CoordinateDirections
    ) -> Preparation:
        foot = self._footprint(step, queries.offsets[0])
        again = step.recomputed([name for name in step.program.recomputed if name in directions.coordinates])
        rounded = set(again) if step.live.draws_depend_on_values else set()
        steps = directions.taken(queries.parameters(), queries.offsets, rounded) if rounded else None
        return self._preparation(
            step, queries, foot, CoordinateJobs(step, queries, directions, again, self.strict, self._precision), steps
        )

    def _along_joint_directions(
        self, step: PropagatedStep, queries: StepQueries, directions: JointDirections
    ) -> Preparation:
        answers = DirectionJobs(step, queries, directions, step.program.joint(), self._precision)
        return self._preparation(step, queries, self._joint_footprint(step, answers.first), answers)

    def _preparation(
        self,
        step: PropagatedStep,
        queries: StepQueries,
        foot: Footprint,
        difference: Callable[[Job], Tensor],
        steps: Tensor | None = None,
    ) -> Preparation:
        device = device_of(queries.parameters())
        sizes, workers = self._plan(foot, device)
        tight = self._is_tight(foot, device, sizes, workers)

        def answer(jobs: Sequence[Job]) -> list[Answer]:
            with without_batching_advice(), freed_memory_kept(wanted=self.keep_memory and not tight):
                answers = parallel_map(partial(timed_answer, difference), jobs, workers, device)
                if isinstance(difference, CoordinateJobs):
                    answers = difference.repaired(jobs, answers)
                if asks_black_boxes(queries.objective):  # they answer NaN themselves, and are not asked twice
                    return answers
                return answered_by_rules(difference, jobs, answers, workers, device)

        def release() -> None:
            step.values.clear()
            if tight:
                give_back_freed_memory()

        base = step.live.base
        jobs = cut(queries, sizes, foot.weights())
        return Preparation(base.loss, base.buffers, jobs, answer, release, steps)

    def prepared(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> PreparedProgram:
        """The program for this shape of batch and the state that the model is in, with how it was checked."""
        with self._way_out():
            return self._begin(objective, batch, self._sizes(objective), seed=0).prepared

    def program(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> Program:
        """The exported and compiled graph for this shape of batch and the state that the model is in."""
        return self.prepared(objective, batch).program

    def recomputed(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> dict[str, str]:
        """Parameters whose queries run operations again -> the reason, in the program used last for such a batch."""
        library = self._libraries.get(objective)
        prepared = None if library is None else library.latest(batch)
        return {} if prepared is None else prepared.program.recomputed

    def check(self, objective: NetworkObjective, batch: tuple[Any, ...]) -> Check | None:
        """The check of the program for a batch, and its sharpness; None with ``verify=False``."""
        return self.prepared(objective, batch).check

    def _sizes(self, objective: NetworkObjective) -> dict[str, float]:
        return FromDtype().of(parameters_of(objective))

    def base_values(self, program: Program, objective: NetworkObjective, batch: tuple[Any, ...], seed: int) -> Values:
        """The graph's base forward of a step."""
        with one_thread():
            base, draws = objective.base(parameters_of(objective), batch, seed=seed)
            values = LiveQuery(objective, batch, seed, {}, base, draws).forward(program)
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
        own_sizes = self._sizes(objective)
        step = self._begin(objective, batch, own_sizes, seed=0)
        program, foot = step.program, self._footprint(step, offset)
        base = median_seconds(lambda: self._begin(objective, batch, own_sizes, seed=0), repeats)
        parameters = parameters_of(objective)
        device = device_of(parameters)
        sizes, workers = self._plan(foot, device)

        def chunk_run(name: str) -> Callable[[Tensor], None]:
            def run(indices: Tensor) -> None:
                def once(_: int) -> Tensor:
                    if program.cones[name].reason:
                        return step.recomputed([name])[name].base
                    return step.coordinate_differences(name, indices, offset)

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
            return footprint(program, self.base_values(program, objective, batch, seed=0), 1e-3).written

    def _plan(self, foot: Footprint, device: torch.device) -> tuple[dict[str, int], int]:
        """Perturbations per chunk by parameter, and the workers that fit."""
        on_cpu = device.type == "cpu"
        target = self.chunk_bytes or (CPU_TARGET if on_cpu else CUDA_TARGET)
        most = (self.workers or torch.get_num_threads()) if on_cpu else 1
        budget, overhead = self.memory_budget, plan.ALLOCATOR if on_cpu else 1.0
        few = FEW if on_cpu and self.chunk_bytes is None else 1
        sizes = plan.chunk_sizes(foot, target=target, budget=budget, overhead=overhead, few=few)
        return sizes, plan.workers_that_fit(foot, sizes, budget=budget, most=most, overhead=overhead)

    def _is_tight(self, foot: Footprint, device: torch.device, sizes: dict[str, int], workers: int) -> bool:
        """True if what an estimate leaves in the allocator's arenas could take the next one over the budget."""
        return device.type == "cpu" and plan.in_flight(foot, sizes, workers) * 2 * plan.ALLOCATOR > self.memory_budget

    def _footprint(self, step: PropagatedStep, offset: float) -> Footprint:
        prepared = step.prepared
        if prepared.footprint is None:
            prepared.footprint = self._resumed.get(prepared.digest)
        if prepared.footprint is None:
            with one_thread(), standing_in():
                prepared.footprint = footprint(prepared.program, step.values, offset)
        return prepared.footprint

    def _joint_footprint(self, step: PropagatedStep, one: Callable[[], object]) -> Footprint:
        prepared = step.prepared
        if prepared.joint_footprint is None:
            prepared.joint_footprint = self._resumed.get(f"{prepared.digest} {JOINT}")
        if prepared.joint_footprint is None:
            with one_thread(), torch.no_grad(), standing_in():
                prepared.joint_footprint = joint_footprint(step.values, one, JOINT)
        return prepared.joint_footprint

    def state_dict(self) -> dict[str, Any]:
        """The footprints and the targets, on which the chunk plan and so the last bits depend."""
        feet = dict(self._resumed)
        for prepared in self._prepared():
            if prepared.footprint is not None:
                feet[prepared.digest] = prepared.footprint
            if prepared.joint_footprint is not None:
                feet[f"{prepared.digest} {JOINT}"] = prepared.joint_footprint
        return {
            "memory_budget": self.memory_budget,
            "chunk_bytes": self.chunk_bytes,
            "footprints": {key: foot.state_dict() for key, foot in feet.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the chunk plan of the run that made the checkpoint."""
        self.memory_budget, self.chunk_bytes = state["memory_budget"], state["chunk_bytes"]
        self._by_device = False
        self._resumed = {key: Footprint(**foot) for key, foot in state["footprints"].items()}
        for prepared in self._prepared():
            prepared.footprint = prepared.joint_footprint = None

    def _prepared(self) -> list[PreparedProgram]:
        return [prepared for library in self._libraries.values() for prepared in library.entries.values()]


def _is_half(storage: torch.dtype | None) -> bool:
    if storage not in (None, torch.float16, torch.float32):
        raise InvalidInputError(f"storage must be torch.float16 or torch.float32, got {storage}")
    return storage is torch.float16


def first_samples(batch: tuple[Any, ...], share: float, most: float) -> tuple[Any, ...]:
    """A share of the samples of a batch, the batch itself if its tensors do not agree on their number.

    At least :data:`~deepzero.graph.library.MANY` where the share ``most`` has them, so that rules take the kernels that
    they take for all samples; at least two.
    """
    leaves, spec = pytree.tree_flatten((tuple(batch), keywords(batch)))
    sizes = {leaf.shape[0] if leaf.dim() else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    whole = max(sizes, default=0)
    count = max(2, int(share * whole), min(MANY, int(most * whole)))
    if len(sizes) != 1 or count >= min(sizes):
        return batch
    few = [leaf[:count] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    arguments, options = pytree.tree_unflatten(few, spec)
    return Batch(arguments, options)
