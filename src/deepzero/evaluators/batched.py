"""Many queries of a network at once: ``torch.func.vmap`` over stacked parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero import validation
from deepzero.errors import InvalidInputError, UnbatchableError, from_black_box
from deepzero.evaluators.base import (
    DivisibleEvaluator,
    Job,
    Preparation,
    StepQueries,
    require_finite_base,
    timed_answer,
)
from deepzero.evaluators.workers import without_batching_advice
from deepzero.objective import (
    NetworkObjective,
    Parameters,
    as_complex,
    device_of,
    keywords,
    one_number,
)
from deepzero.operator import perturbed_query
from deepzero.placement import Attributes
from deepzero.probes import CoordinatePerturbations
from deepzero.randomness import Draws

CHUNK = 8
SMALL, CHUNK_OF_SMALL = 1 << 16, 32
"""Entries of parameters and batch up to which a forward costs its calls, not its arithmetic; queries that then go
together."""
AGREEMENT = 1e-4
"""How far the base loss of a batch of queries may be from that of one, relative to it, in float32; in other dtypes in
proportion to their rounding."""


class BatchedEvaluator(DivisibleEvaluator):
    """Evaluates ``chunk`` queries of a network in one vectorized forward.

    Losses are compared with the base loss of a vectorized forward of the same size, so a step of zero gives a
    difference of exactly 0; that this is the loss of a single forward, too, is checked at every step.

    Args:
        chunk: queries a forward; memory grows with it. The same chunk gives the same bits. Default 32 where parameters
            and batch together have up to 65,536 entries, so that the time goes into calls; else 8.

    Raises:
        UnbatchableError: ``vmap`` cannot run the program, or gives another loss.
    """

    def __init__(self, *, chunk: int | None = None) -> None:
        self.chunk = None if chunk is None else validation.count("chunk", chunk)

    def prepare(self, queries: StepQueries) -> Preparation:
        """The base query; every chunk of directions is a job."""
        objective, batch = queries.objective, queries.batch
        if not isinstance(objective, NetworkObjective):
            raise InvalidInputError(
                "BatchedEvaluator evaluates an nn.Module; use evaluator=dz.SequentialEvaluator() here"
            )
        parameters = queries.parameters()
        steps = queries.rounded_steps()
        base, draws = objective.base(parameters, batch, seed=queries.seed)
        require_finite_base(base.loss)
        if objective.hidden or not objective.follows(parameters, batch, queries.seed, draws):
            raise UnbatchableError("the program holds references to its parameters that torch.func.vmap cannot replace")
        chunk = self.chunk or usual_chunk(parameters, batch)
        jobs = jobs_of(queries, chunk)
        bases: dict[tuple[str, int], Tensor] = {}

        def differences(job: Job) -> Tensor:
            size = min(chunk, job.full)
            points = [queries.moved(parameters, job.row, k) for k in range(job.start, job.stop)]
            points += [points[-1]] * (size - len(points))
            moving = [name for name in parameters if any(point[name] is not parameters[name] for point in points)]
            key = (job.kind, size)
            if key not in bases:
                bases[key] = self._base(objective, parameters, moving, size, batch, draws, base.loss)
            losses = _stacked(
                objective, parameters, {n: torch.stack([p[n] for p in points]) for n in moving}, batch, draws
            )
            return (losses - bases[key])[: len(job)]

        return Preparation(
            base.loss,
            base.buffers,
            jobs,
            lambda some: [timed_answer(differences, job) for job in some],
            steps=steps,
        )

    def _base(
        self,
        objective: NetworkObjective,
        parameters: Parameters,
        moving: Sequence[str],
        size: int,
        batch: tuple[Any, ...],
        draws: Draws,
        single: Tensor,
    ) -> Tensor:
        """The base loss in every row of a stack, which must be the loss of a single forward."""
        same = {name: torch.stack([parameters[name]] * size) for name in moving}
        losses = _stacked(objective, parameters, same, batch, draws)
        coarsest = max(float(torch.finfo(p.dtype).eps) for p in parameters.values())
        tolerance = AGREEMENT * coarsest / float(torch.finfo(torch.float32).eps)
        if not bool(((losses - single).abs() <= tolerance * (1 + single.abs())).all()):
            raise UnbatchableError(
                f"the program gives the loss {float(losses[0]):g} under torch.func.vmap and {float(single):g} by "
                "itself; use evaluator=dz.SequentialEvaluator()"
            )
        return losses

    def state_dict(self) -> dict[str, Any]:
        """The chunk, on which the last bits depend."""
        return {"chunk": self.chunk}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the chunk."""
        self.chunk = state["chunk"]


def usual_chunk(parameters: Parameters, batch: tuple[Any, ...]) -> int:
    """Queries a forward, by the size of the problem alone: the same in every run.

    Example:
        >>> usual_chunk({"w": torch.zeros(100)}, (torch.zeros(4),)), usual_chunk({"w": torch.zeros(1 << 17)}, ())
        (32, 8)
    """
    given = [leaf for leaf in pytree.tree_leaves((tuple(batch), keywords(batch))) if isinstance(leaf, Tensor)]
    entries = sum(tensor.numel() for tensor in (*parameters.values(), *given))
    return CHUNK_OF_SMALL if entries <= SMALL else CHUNK


def jobs_of(queries: StepQueries, chunk: int) -> list[Job]:
    """The directions at each offset, ``chunk`` at a time; coordinates of one parameter together."""
    perturbations = queries.perturbations
    groups = [("query", 0, len(perturbations))]
    if isinstance(perturbations, CoordinatePerturbations):
        chosen = perturbations.coordinates
        groups = [(name, perturbations.start(name), perturbations.start(name) + len(chosen[name])) for name in chosen]
    return [
        Job(row, k, min(k + chunk, stop), kind, full=stop - start)
        for row in range(len(queries.offsets))
        for kind, start, stop in groups
        for k in range(start, stop, chunk)
    ]


def _stacked(
    objective: NetworkObjective, fixed: Parameters, stacked: Parameters, batch: tuple[Any, ...], draws: Draws
) -> Tensor:
    """Losses ``[P]`` where some parameters are stacked and the others are ``fixed``."""
    places = objective.places()
    copies = next(iter(stacked.values())).shape[0]
    buffers = {n: b.detach().expand(copies, *b.shape).clone() for n, (b, _) in places.buffers.items()}
    still = objective.own_copies({name: value for name, value in fixed.items() if name not in stacked})

    def loss(moved: dict[str, Tensor]) -> Tensor:
        values = {n: as_complex(v, places.parameters[n][0]) if n in places.parameters else v for n, v in moved.items()}
        with places.holding(still), places.holding(values, as_parameters=False):
            return one_number(objective.program(objective.model, *given, **keywords(given)))

    given = objective.given(batch)
    before = Attributes.of(places.modules)
    try:
        with objective.restoring():
            return _vectorized(loss, {**stacked, **buffers}, objective, draws)
    except (UnbatchableError, InvalidInputError):
        raise
    except Exception as error:
        if from_black_box(error):
            raise
        raise UnbatchableError(
            f"torch.func.vmap cannot run the program ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:200] if str(error) else ''}); use evaluator=dz.SequentialEvaluator()"
        ) from error
    finally:
        before.restore()


def _vectorized(
    loss: Callable[[dict[str, Tensor]], Tensor],
    stacked: Mapping[str, Tensor],
    objective: NetworkObjective,
    draws: Draws,
) -> Tensor:
    """``vmap`` under the step's random numbers."""
    scope = objective.scope(draws, device_of(dict(stacked)))
    with scope, draws.replaying(strict=True), without_batching_advice(), perturbed_query():
        result: Tensor = torch.func.vmap(loss, randomness="same")(dict(stacked))
    return result
