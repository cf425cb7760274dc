"""One step of difference propagation: its base query, and the loss differences of its jobs.

Shapes: ``P`` perturbations that are propagated together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from deepzero.errors import GraphError, from_black_box
from deepzero.evaluators.base import Answer, Job, StepQueries, timed_answer
from deepzero.evaluators.workers import begun, parallel_map
from deepzero.graph import kernels
from deepzero.graph.capture import Node
from deepzero.graph.differences import Dense, Difference
from deepzero.graph.forward import HALF, Recomputation, Values, cast, graph_inputs, native, run
from deepzero.graph.library import PreparedProgram
from deepzero.graph.precision import USUAL, Precision, computing_in
from deepzero.graph.program import Cone, Program, reads
from deepzero.graph.propagate import loss_differences, propagated
from deepzero.objective import Evaluation, NetworkObjective, as_complex
from deepzero.probes import CoordinateDirections, JointDirections, Perturbations
from deepzero.randomness import Draws

log = logging.getLogger("deepzero")


@dataclass(frozen=True)
class LiveQuery:
    """The base query of a step by the live program: what a graph is compared with.

    Attributes:
        objective: the network and its program.
        batch: arguments of the program.
        seed: of its random numbers.
        sizes: step size of each parameter.
        base: loss and buffers.
        draws: the random numbers.
    """

    objective: NetworkObjective
    batch: tuple[Any, ...]
    seed: int
    sizes: Mapping[str, float]
    base: Evaluation
    draws: Draws

    @property
    def draws_depend_on_values(self) -> bool:
        """True if operations cannot be run again in float64, where a draw could come out otherwise."""
        return any(draw.state is not None for draw in self.draws.entries)

    def forward(self, program: Program) -> Values:
        """The base values of a program's graph, with the same random numbers."""
        inputs = graph_inputs(program.graph, self.objective, self.batch)
        return run(program.graph, inputs, keep=program.kept, draws=self.draws)


@dataclass(frozen=True)
class ForwardAhead:
    """The base forward of a graph, begun on the thread of a worker beside the live query.

    A guess: whether its program is the one that the live query asks for is known after that one alone. The inputs are
    found before it begins, since a query moves parameters and buffers of the network for as long as it takes.

    Attributes:
        program: whose graph runs; it draws nothing, since the live query has not drawn yet.
        future: the values.
    """

    program: Program
    future: Future[Values]

    @classmethod
    def of(cls, program: Program, objective: NetworkObjective, batch: tuple[Any, ...], workers: int) -> ForwardAhead:
        """Begin the forward."""
        inputs = graph_inputs(program.graph, objective, batch)
        return cls(program, begun(lambda: run(program.graph, inputs, keep=program.kept, draws=Draws(seed=0)), workers))

    def values(self) -> Values | None:
        """The values as soon as they are there; None if the forward fails, which it may where the program changed."""
        try:
            return self.future.result()
        except Exception as error:
            log.debug("a forward that ran ahead of the live query failed: %r", error)
            return None


@dataclass(frozen=True)
class RecomputedQueries:
    """Queries of one parameter that run operations again.

    Attributes:
        operations: those behind the parameter.
        base: the loss that they give at the parameter itself.
        own: the parameter by its name, as real numbers, in the dtype of the operations.
        sources: the graph inputs that hold it.
        like: the parameter.
    """

    operations: Recomputation
    base: Float64[Tensor, ""]
    own: dict[str, Tensor]
    sources: tuple[Node, ...]
    like: Tensor

    def differences(
        self, perturbations: Perturbations, directions: Iterable[int], offset: float
    ) -> Float64[Tensor, " P"]:
        """Loss differences of some directions."""
        losses = []
        for k in directions:
            (moved,) = perturbations.displacement(k).apply(self.own, offset).values()
            losses.append(self.operations.loss(dict.fromkeys(self.sources, as_complex(moved, self.like))))
        return torch.stack(losses) - self.base


@dataclass(frozen=True)
class PropagatedStep:
    """A step after its base query and the base forward of its graph.

    Attributes:
        live: the base query.
        prepared: the program.
        values: base values of its graph.
    """

    live: LiveQuery
    prepared: PreparedProgram
    values: Values

    @property
    def program(self) -> Program:
        """The exported and compiled graph."""
        return self.prepared.program

    def base_loss(self) -> Float64[Tensor, ""]:
        """The base loss of the graph, averaged in float64."""
        return base_loss(self.program, self.values)

    def coordinate_differences(
        self, name: str, indices: Int64[Tensor, " P"], step_size: float
    ) -> Float64[Tensor, " P"]:
        """:math:`\\ell(\\theta + \\mu e_i) - \\ell(\\theta)` for flat indices ``i`` of one parameter."""
        cone, output = self.program.cones[name], self.program.graph.output
        return loss_differences(cone, self.values, output, indices, step_size)

    def direction_differences(
        self, cone: Cone, directions: JointDirections, some: range, offset: float
    ) -> Float64[Tensor, " P"]:
        """:math:`\\ell(\\theta + t u_k) - \\ell(\\theta)`: all parameters differ, in all entries."""
        stacked, places = directions.stack(some.start, some.stop), self.live.objective.places()
        sources: dict[Node, Difference] = {}
        for node in cone.sources:
            name = str(self.program.graph.inputs[node][1])
            moved = as_complex(stacked[name] * (offset * directions.scale(name)), places.parameters[name][0])
            sources[node] = Dense(moved.float() if moved.dtype in HALF else moved)
        return propagated(cone, self.values, self.program.graph.output, sources, len(some))

    def recomputed(self, names: Sequence[str]) -> dict[str, RecomputedQueries]:
        """Queries of some parameters that run operations again.

        They run in float64, unless what the operations draw depends on their values.
        """
        if not names:
            return {}
        cones, objective, wide = self.program.cones, self.live.objective, not self.live.draws_depend_on_values
        graph, values, dtype = self.program.graph, self.values, None
        if wide:
            graph, dtype = graph.widened, torch.float64
            needed = {node for name in names for node in reads(graph, cones[name])}
            inputs = graph_inputs(graph, objective, self.live.batch, dtype=dtype)
            values = run(graph, inputs, keep=needed, draws=self.live.draws, wide=True)
        parameters, places = objective.parameters(), objective.places()
        found = {}
        for name in names:
            sources = cones[name].sources
            operations = Recomputation(graph, sources, values, self.live.draws, wide=wide)
            base = operations.loss({node: native(values[node]) for node in sources})
            own = {name: cast(parameters[name], dtype)}
            found[name] = RecomputedQueries(operations, base, own, sources, places.parameters[name][0])
        return found


def answered_by_rules(
    difference: Callable[[Job], Float64[Tensor, " P"]],
    jobs: Sequence[Job],
    answers: list[Answer],
    workers: int,
    device: torch.device,
) -> list[Answer]:
    """Answers with those queries, one by one and without kernels, that a kernel answers with NaN.

    It does so where it would lose digits (:data:`deepzero.graph.tails.REMAINS`). The device is asked once, when all
    jobs are under way. A query that is no number by the rules either makes an error of the step: the others are left.
    """
    if not answers:
        return answers
    good = torch.stack([answer.differences.isfinite().all() for answer in answers]).tolist()
    lost = [
        (n, k)
        for n, fine in enumerate(good)
        if not fine
        for k in (~answers[n].differences.isfinite()).nonzero().flatten().tolist()
    ]

    def again(place: tuple[int, int]) -> Float64[Tensor, " 1"]:
        job, k = jobs[place[0]], place[1]
        with kernels.aside():
            return timed_answer(difference, replace(job, start=job.start + k, stop=job.start + k + 1)).differences

    some = 4 * workers
    for first in range(0, len(lost), some):
        part = lost[first : first + some]
        found = parallel_map(again, part, workers, device)
        for (n, k), value in zip(part, found, strict=True):
            answers[n].differences[k] = value[0]
        if not bool(torch.cat(found).isfinite().all()):
            break
    if lost:
        log.info("%d queries by plain rules: kernels would have lost digits of a variance", len(lost))
    return answers


@dataclass(frozen=True)
class CoordinateJobs:
    """Answers the jobs of a step along coordinates.

    Attributes:
        step: the step.
        queries: what it asks.
        directions: its directions.
        recomputed: queries of the parameters that differences cannot follow to the loss.
        strict: raise the error of a rule instead of running operations again.
        precision: in which a GPU stores and multiplies differences.
    """

    step: PropagatedStep
    queries: StepQueries
    directions: CoordinateDirections
    recomputed: Mapping[str, RecomputedQueries]
    strict: bool
    precision: Precision = USUAL

    def __call__(self, job: Job) -> Float64[Tensor, " P"]:
        """Loss differences of the job's queries, all of one parameter."""
        name, offset = job.kind, self.queries.offsets[job.row]
        if name in self.recomputed:
            return self.recomputed[name].differences(self.directions, job.directions, offset)
        step_size = offset * self.directions.scale(name)
        indices = self.directions.coordinates[name][job.start - job.first : job.stop - job.first]
        try:
            with computing_in(self.precision.of_step(step_size)):
                return self.step.coordinate_differences(name, indices, step_size)
        except Exception as error:
            if self.strict or from_black_box(error) or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                raise
            log.warning("queries of %s run operations again: a rule raised %s", name, error)
            rescue = self.step.recomputed([name])[name]
            return rescue.differences(self.directions, job.directions, offset)

    def repaired(self, jobs: Sequence[Job], answers: list[Answer]) -> list[Answer]:
        """Answers with numbers: what float16 could not hold is propagated again in float32.

        The device is asked once, when all jobs are under way.
        """
        if not (self.precision.half and jobs):
            return answers
        good = torch.stack([answer.differences.isfinite().all() for answer in answers]).tolist()
        if all(good):
            return answers
        log.info(
            "%d of %d chunks again in float32: float16 could not hold their differences", good.count(False), len(good)
        )
        wide = replace(self, precision=replace(self.precision, half=False))
        return [
            answer if fine else timed_answer(wide, job) for job, answer, fine in zip(jobs, answers, good, strict=True)
        ]


@dataclass(frozen=True)
class DirectionJobs:
    """Answers the jobs of a step along random directions.

    Attributes:
        step: the step.
        queries: what it asks.
        directions: its directions.
        cone: the operations behind any parameter.
        precision: in which a GPU multiplies differences.

    Raises:
        GraphError: differences of all parameters cannot be followed to the loss.
    """

    step: PropagatedStep
    queries: StepQueries
    directions: JointDirections
    cone: Cone
    precision: Precision = USUAL

    def __post_init__(self) -> None:
        if self.cone.reason:
            raise GraphError(self.cone.reason)

    def __call__(self, job: Job) -> Float64[Tensor, " P"]:
        """Loss differences of the job's queries."""
        offset = self.queries.offsets[job.row]
        with computing_in(replace(self.precision, half=False)):
            return self.step.direction_differences(self.cone, self.directions, job.directions, offset)

    def first(self) -> None:
        """Propagate the first direction, for a footprint."""
        self.step.direction_differences(self.cone, self.directions, range(1), self.queries.offsets[0])


def base_loss(program: Program, values: Values) -> Float64[Tensor, ""]:
    """The base loss of a graph's forward, averaged in float64."""
    loss: Tensor = values[program.graph.output].base
    return loss.double().mean()
