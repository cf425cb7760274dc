"""Many queries of a network at once: ``torch.func.vmap`` over stacked parameters, ``P`` queries a forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero import validation
from deepzero.errors import InvalidInputError, UnbatchableError, from_black_box
from deepzero.evaluators.base import (
    DivisibleEvaluator,
    Job,
    Preparation,
    StepQueries,
    cut,
    in_turn,
    require_finite_base,
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
from deepzero.randomness import Draws

CHUNK = 8
SMALL, CHUNK_OF_SMALL = 1 << 16, 32
"""Entries of parameters and batch up to which a forward costs its calls, not its arithmetic; queries that then go
together."""
AGREEMENT = 1e-4
"""Accepted distance of the base loss of a batch of queries from that of one, relative to it, in float32; in others
in proportion to their rounding."""


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
        require_finite_base(base.loss, (parameters, batch))
        if objective.hidden or not objective.follows(parameters, batch, queries.seed, draws):
            raise UnbatchableError("the program holds references to its parameters that torch.func.vmap cannot replace")
        chunk = self.chunk or usual_chunk(parameters, batch)
        step = _StackedStep(objective, queries, parameters, base.loss, draws, chunk)
        answer = partial(in_turn, step.differences)
        return Preparation(base.loss, base.buffers, cut(queries, chunk), answer, steps=steps)

    def state_dict(self) -> dict[str, Any]:
        """The chunk, on which the last bits depend."""
        return {"chunk": self.chunk}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the chunk."""
        self.chunk = state["chunk"]


@dataclass
class _StackedStep:
    """A step after its base query: stacks the parameters of several queries and evaluates them together.

    Attributes:
        objective: the network and its program.
        queries: what is asked.
        parameters: at the base query.
        loss: base loss of a single forward.
        draws: the random numbers.
        chunk: queries a forward.
        bases: base loss of a vectorized forward, ``[P]``, by the parameters that are stacked and the number of queries.
    """

    objective: NetworkObjective
    queries: StepQueries
    parameters: Parameters
    loss: Tensor
    draws: Draws
    chunk: int
    bases: dict[tuple[tuple[str, ...], int], Tensor] = field(default_factory=dict)

    def differences(self, job: Job) -> Float64[Tensor, " P"]:
        """Loss differences of a job's queries; a shorter job is filled up, so that all forwards are of one size."""
        size = min(self.chunk, job.full)
        points = [self.queries.moved(self.parameters, job.row, k) for k in job.directions]
        points += [points[-1]] * (size - len(points))
        moving = tuple(n for n, value in self.parameters.items() if any(point[n] is not value for point in points))
        key = (moving, size)
        if key not in self.bases:
            self.bases[key] = self._base(moving, size)
        losses = self._losses({name: torch.stack([point[name] for point in points]) for name in moving})
        return (losses - self.bases[key])[: len(job)]

    def _base(self, moving: Sequence[str], size: int) -> Float64[Tensor, " P"]:
        """The base loss in every row of a stack, which must be the loss of a single forward."""
        losses = self._losses({name: torch.stack([self.parameters[name]] * size) for name in moving})
        coarsest = max(float(torch.finfo(p.dtype).eps) for p in self.parameters.values())
        tolerance = AGREEMENT * coarsest / float(torch.finfo(torch.float32).eps)
        if not bool(((losses - self.loss).abs() <= tolerance * (1 + self.loss.abs())).all()):
            raise UnbatchableError(
                f"the program gives the loss {float(losses[0]):g} under torch.func.vmap and {float(self.loss):g} by "
                "itself; use evaluator=dz.SequentialEvaluator()"
            )
        return losses

    def _losses(self, stacked: Parameters) -> Float64[Tensor, " P"]:
        """Losses where some parameters are stacked, ``[P, *shape]``, and the others are as at the base query."""
        objective, places, batch = self.objective, self.objective.places(), self.queries.batch
        copies = next(iter(stacked.values())).shape[0]
        buffers = {n: b.detach().expand(copies, *b.shape).clone() for n, (b, _) in places.buffers.items()}
        fixed = {name: value for name, value in self.parameters.items() if name not in stacked}
        still = objective.own_copies(fixed)
        arguments = objective.given(batch)

        def loss(moved: dict[str, Tensor]) -> Tensor:
            own = places.parameters
            values = {n: as_complex(v, own[n][0]) if n in own else v for n, v in moved.items()}
            with places.holding(still), places.holding(values, as_parameters=False):
                return one_number(objective.program(objective.model, *arguments, **keywords(arguments)))

        before = Attributes.of(places.modules)
        try:
            with objective.restoring():
                return self._vectorized(loss, {**stacked, **buffers})
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
        self, loss: Callable[[dict[str, Tensor]], Tensor], stacked: dict[str, Tensor]
    ) -> Float64[Tensor, " P"]:
        """``vmap`` under the step's random numbers."""
        scope = self.objective.scope(self.draws, device_of(stacked))
        with scope, self.draws.replaying(strict=True), without_batching_advice(), perturbed_query():
            result: Tensor = torch.func.vmap(loss, randomness="same")(stacked)
        return result


def usual_chunk(parameters: Parameters, batch: tuple[Any, ...]) -> int:
    """Queries a forward, by the size of the problem alone: the same in every run.

    Example:
        >>> usual_chunk({"w": torch.zeros(100)}, (torch.zeros(4),)), usual_chunk({"w": torch.zeros(1 << 17)}, ())
        (32, 8)
    """
    tensors = [leaf for leaf in pytree.tree_leaves((tuple(batch), keywords(batch))) if isinstance(leaf, Tensor)]
    entries = sum(tensor.numel() for tensor in (*parameters.values(), *tensors))
    return CHUNK_OF_SMALL if entries <= SMALL else CHUNK
