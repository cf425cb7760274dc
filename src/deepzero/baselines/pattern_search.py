"""Pattern search: coordinate moves that are kept if they lower the loss, as a gradient source.

P. Chiang et al., "Loss Landscapes are All You Need: Neural Network Generalization Can Be Explained Without the Implicit
Bias of Gradient Descent", ICLR 2023; V. Torczon, "On the Convergence of the Multidirectional Search Algorithm", SIAM
Journal on Optimization, 1991.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from deepzero import validation
from deepzero.baselines.base import Baseline
from deepzero.coordinates import Coordinates
from deepzero.evaluators import (
    BatchedEvaluator,
    Evaluator,
    Measurement,
    PropagationEvaluator,
    SequentialEvaluator,
    StepQueries,
)
from deepzero.objective import Loss, Parameters, parameters_of
from deepzero.probes import CoordinatePerturbations
from deepzero.randomness import derive_seed, step_seed

GROWTH = 16
MODELS_TIMES_SAMPLES = 50_000


class Polling(Baseline):
    """The base of both variants: the moves, their order, the radius, the budget.

    The moves are :math:`\\theta_i \\pm r` for every parameter entry :math:`i` and both signs. A sweep tries all of them
    in an order that is a pure function of the seed and the number of the sweep. A call of :meth:`backward` goes on with
    the sweep, poll after poll, on its batch, until

    * a poll has a move that lowers the loss strictly: it is accepted, and the next call begins a new sweep;
    * the sweep has come to its end without one: :math:`r` is halved, and the next call begins a new sweep;
    * the budget of the call is spent: the next call goes on with this sweep where this one stopped, on its own batch.

    The direction is **minus the accepted move**, or 0 if there is none. So ``torch.optim.SGD`` with a constant learning
    rate of 1, no momentum and no weight decay makes exactly the move; any other choice makes another method of it.

    :attr:`queries` counts the base loss once a call and every move that was evaluated. Batch norm's running statistics
    move once a call, by the forward at the parameters before the move. A loss that is not finite is never accepted.

    Args:
        model: any network, in its mode: in train mode batch norm uses the statistics of the batch.
        loss: ``loss(output, target)``.
        seed: of the order of the moves, and of dropout masks.
        radius: :math:`r` at the start.
        queries: most moves that a call evaluates; None: as many as the sweep has left.
        evaluator: ``"batched"`` (full forwards of several networks at once, as the authors do on a GPU),
            ``"sequential"`` (one full forward after another) or ``"propagation"`` (difference propagation: the same
            losses up to rounding for far fewer operations, the more so the larger a poll is).
        chunk: moves that ``"batched"`` evaluates in one forward; more suits a GPU.

    Attributes:
        memory: ``radius``, ``sweep`` (its number, from 0) and ``position`` (moves of it that were tried).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss,
        seed: int = 0,
        radius: float = 1.0,
        queries: int | None = None,
        evaluator: str = "batched",
        chunk: int = 4,
    ) -> None:
        super().__init__(model, loss=loss, seed=seed)
        self.budget = None if queries is None else validation.count("queries", queries)
        self.evaluator = _evaluator(evaluator, chunk)
        self.memory = {"radius": validation.positive("radius", radius, hint="1.0"), "sweep": 0, "position": 0}

    @abstractmethod
    def sizes(self, samples: int) -> Iterator[int]:
        """Numbers of moves that are evaluated together, poll after poll, on a batch of that many samples."""

    @abstractmethod
    def pick(self, differences: Float64[Tensor, " moves"]) -> int:
        """The number of the move to accept, by the differences of the loss, one of which at least is below 0."""

    @torch.no_grad()
    def directions(
        self, x: Float[Tensor, "b ..."], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """The loss, minus the accepted move, and 1 + the number of moves that were evaluated."""
        parameters = parameters_of(self.objective)
        order = self._order(parameters)
        accepted, evaluated = None, 0
        for moves in self._polls(order, len(x)):
            base, differences = self._measure(parameters, (x, y), moves)
            evaluated += len(moves)
            if bool((differences < 0).any()):
                accepted = int(moves[self.pick(differences)])
                break
        directions = _minus(accepted, self.memory["radius"], parameters)
        self.objective.commit(base.buffers)
        self._remember(accepted, evaluated, len(order))
        return base.loss, directions, 1 + evaluated

    def _order(self, parameters: Parameters) -> Int64[Tensor, " moves"]:
        """The moves of the sweep: number :math:`2 i` is :math:`+r` at entry :math:`i`, number :math:`2 i + 1` is -r."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "sweep", self.memory["sweep"]))
        return torch.randperm(2 * sum(p.numel() for p in parameters.values()), generator=generator)

    def _polls(self, order: Int64[Tensor, " moves"], samples: int) -> Iterator[Int64[Tensor, " polled"]]:
        start = self.memory["position"]
        stop = len(order) if self.budget is None else min(len(order), start + self.budget)
        for size in self.sizes(samples):
            yield order[start : min(start + size, stop)]
            start += size
            if start >= stop:
                return

    def _measure(
        self, parameters: Parameters, batch: tuple[Tensor, Tensor], moves: Int64[Tensor, " moves"]
    ) -> tuple[Measurement, Float64[Tensor, " moves"]]:
        """The base query, and the differences of the loss in the order of the moves; infinite where not finite."""
        seed = step_seed(self.seed, self.step)
        differences = torch.empty(len(moves), dtype=torch.float64)
        for parity, sign in enumerate((1, -1)):
            places = (moves % 2 == parity).nonzero().squeeze(1)
            if not len(places):
                continue
            entries, order = (moves[places] // 2).sort()
            perturbations = CoordinatePerturbations(_coordinates(entries, parameters), parameters)
            offset = sign * self.memory["radius"]
            measurement = self.evaluator.measure(StepQueries(self.objective, batch, perturbations, [offset], seed))
            differences[places[order]] = measurement.differences[0].to(differences.device)
        return measurement, torch.where(differences.isfinite(), differences, torch.inf)

    def _remember(self, accepted: int | None, evaluated: int, moves: int) -> None:
        radius, sweep, position = self.memory["radius"], self.memory["sweep"], self.memory["position"] + evaluated
        if accepted is None and position < moves:
            self.memory = {"radius": radius, "sweep": sweep, "position": position}
            return
        self.memory = {"radius": radius / 2 if accepted is None else radius, "sweep": sweep + 1, "position": 0}


class PatternSearch(Polling):
    """Pattern search that accepts the first move found to lower the loss, in a shuffled order of all of them.

    This is the sequential variant of Chiang et al. (2023): for entries :math:`i` and signs in the order of the sweep,
    :math:`\\theta + s r e_i` is tried, and kept if the loss falls strictly.

    Moves are evaluated ``block`` at once, and twice as many as before (up to 16 ``block``) as long as none is found;
    then the first in the order is taken. So ``block`` changes what is evaluated, and counted in :attr:`queries`, but
    not what is accepted: ``block=1`` wastes least, a large one suits ``evaluator="propagation"``.

    Args:
        model: any network.
        loss: ``loss(output, target)``.
        seed: of the order of the moves, and of dropout masks.
        radius: :math:`r` at the start.
        queries: most moves that a call evaluates; None: as many as the sweep has left.
        evaluator: ``"batched"``, ``"propagation"`` or ``"sequential"``, as for :class:`Polling`.
        chunk: moves that ``"batched"`` evaluates in one forward.
        block: moves of the first poll of a call.

    Example:
        >>> import torch, torch.nn.functional as F
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> source, sgd = PatternSearch(model, loss=F.mse_loss), torch.optim.SGD(model.parameters(), lr=1.0)
        >>> for _ in range(4):
        ...     sgd.zero_grad()
        ...     loss = source.backward(torch.eye(2), torch.tensor([[1.0], [-2.0]]))
        ...     sgd.step()
        >>> model.weight.tolist(), float(loss), source.memory["radius"]
        ([[1.0, -2.0]], 0.0, 0.5)
    """

    name = "pattern-search"

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss,
        seed: int = 0,
        radius: float = 1.0,
        queries: int | None = None,
        evaluator: str = "batched",
        chunk: int = 4,
        block: int = 8,
    ) -> None:
        super().__init__(model, loss=loss, seed=seed, radius=radius, queries=queries, evaluator=evaluator, chunk=chunk)
        self.block = validation.count("block", block)

    def sizes(self, samples: int) -> Iterator[int]:
        """``block``, twice as many, and so on up to 16 times as many."""
        size = self.block
        while True:
            yield size
            size = min(2 * size, GROWTH * self.block)

    def pick(self, differences: Float64[Tensor, " moves"]) -> int:
        """The first that is below 0."""
        return int((differences < 0).nonzero()[0])


class FastPatternSearch(Polling):
    """Pattern search that compares several moves and the current point at a time, and accepts the best of them.

    This is the parallel variant of Chiang et al. (2023), the one of their experiments: a poll is the current network
    and the next :math:`M - 1` moves in the order of the sweep, and the one of the lowest loss wins; the search goes on
    to the next poll as long as that is the current one. A poll at the end of the sweep, or of the budget, is smaller.

    Their code halves the radius whenever a poll reaches the end of a sweep; here only if that poll has no better move.

    Args:
        model: any network.
        loss: ``loss(output, target)``.
        seed: of the order of the moves, and of dropout masks.
        radius: :math:`r` at the start.
        queries: most moves that a call evaluates; None: as many as the sweep has left.
        evaluator: ``"batched"``, ``"propagation"`` or ``"sequential"``, as for :class:`Polling`.
        chunk: moves that ``"batched"`` evaluates in one forward.
        models: :math:`M`, at least 2; None: 50,000 over the samples of the batch, as in the authors' configuration.

    Example:
        >>> import torch, torch.nn.functional as F
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> source, sgd = FastPatternSearch(model, loss=F.mse_loss), torch.optim.SGD(model.parameters(), lr=1.0)
        >>> for _ in range(2):
        ...     sgd.zero_grad()
        ...     loss = source.backward(torch.eye(2), torch.tensor([[1.0], [-3.0]]))
        ...     sgd.step()
        >>> model.weight.tolist(), source.queries
        ([[0.0, -2.0]], 10)
    """

    name = "pattern-search-fast"

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss,
        seed: int = 0,
        radius: float = 1.0,
        queries: int | None = None,
        evaluator: str = "batched",
        chunk: int = 4,
        models: int | None = None,
    ) -> None:
        super().__init__(model, loss=loss, seed=seed, radius=radius, queries=queries, evaluator=evaluator, chunk=chunk)
        self.models = None if models is None else validation.count("models", models, minimum=2)

    def sizes(self, samples: int) -> Iterator[int]:
        """:math:`M - 1`, always."""
        models = max(2, MODELS_TIMES_SAMPLES // samples) if self.models is None else self.models
        return itertools.repeat(models - 1)

    def pick(self, differences: Float64[Tensor, " moves"]) -> int:
        """The lowest; the first of them if there are several."""
        return int((differences == differences.min()).nonzero()[0])


def _evaluator(name: str, chunk: int) -> Evaluator:
    choices: dict[str, Callable[[], Evaluator]] = {
        "batched": lambda: BatchedEvaluator(chunk=chunk),
        "propagation": PropagationEvaluator,
        "sequential": SequentialEvaluator,
    }
    return choices[validation.choice("evaluator", name, choices)]()


def _coordinates(entries: Int64[Tensor, " n"], parameters: Parameters) -> Coordinates:
    """Sorted entries of the vector of all parameters, by parameter."""
    chosen, start = {}, 0
    for name, parameter in parameters.items():
        stop = start + parameter.numel()
        chosen[name] = entries[(entries >= start) & (entries < stop)] - start
        start = stop
    return Coordinates(chosen)


def _minus(move: int | None, radius: float, parameters: Parameters) -> dict[str, Float[Tensor, " ..."]]:
    """Minus the move, by parameter; 0 without one."""
    directions = {n: torch.zeros(p.shape, dtype=p.dtype, device=p.device) for n, p in parameters.items()}
    if move is not None:
        ((name, index),) = _coordinates(torch.tensor([move // 2]), parameters).items()
        directions[name].view(-1)[index] = -radius if move % 2 == 0 else radius
    return directions
