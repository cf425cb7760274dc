"""Training of the network inside of the simulation: one gradient source a method."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepzero.estimator import CGE, RGE
from deepzero.executors import QueryPolicy
from deepzero.models import FlowCorrector
from deepzero.opaque import Corrected, Learned
from deepzero.randomness import derive_seed, seeded_scope
from deepzero.sparsity import DynamicRatios, SparsityWarning, layer_ratios, zo_grasp
from deepzero.sparsity.selection import counts_from_ratios
from deepzero.stencils import FORWARD
from deepzero.tasks.black_box_sources import BlackBoxSource, CountedCalls
from deepzero.tasks.correction import correction_config as names
from deepzero.tasks.correction.correction_config import CorrectionConfig
from deepzero.tasks.correction.reference_flows import Reference
from deepzero.tasks.correction.wake import Flows, WakeFlow
from deepzero.training.gradient_sources import Autograd, GradientSource

POLICY = QueryPolicy(retries=1, on_nan="skip")
"""A solver that fails is run once more; a flow that blows up costs its query and nothing else."""
RANKING = 192
"""Directions by which ZO-GraSP ranks, as in the paper."""
EMULATOR_WIDTHS = (16, 16)


class UnrolledError(nn.Module):
    """The objective of solver-in-the-loop training (Um et al., 2020).

    .. math:: \\frac{1}{m} \\sum_{i=1}^m \\frac12 \\Bigl\\| \\frac{s_i - y_i}{\\sigma} \\Bigr\\|^2

    summed over batch, components and faces, with a scale :math:`\\sigma` of each component.

    Shapes: two of ``[n, m, 2, X+1, Y+1]`` to a number.

    >>> float(UnrolledError((1.0, 2.0))(torch.ones(1, 3, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2)))
    2.5
    """

    scales: Tensor

    def __init__(self, scales: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("scales", torch.tensor(scales[:2]))

    def forward(self, trajectory: Float[Tensor, "n m 2 x1 y1"], reference: Float[Tensor, "n m 2 x1 y1"]) -> Tensor:
        """The objective."""
        error = (trajectory - reference) / self.scales[:, None, None]
        return 0.5 * error.square().sum() / trajectory.shape[1]


@dataclass(frozen=True)
class FlowBatches:
    """Batches of frames and of those that follow; a pure function of the seed and the position.

    All pairs of a simulation and a frame are shuffled, and shuffled again when they are used up.

    Attributes:
        frames: ``[s, t, 2, X+1, Y+1]``.
        reynolds: ``[s, 1]``.
        unroll: frames that follow.
        size: pairs of a batch.
        steps: batches of an epoch.
        seed: of the order.
        advanced: the solver's step of every frame but the last, ``[s, t-1, 2, X+1, Y+1]``: these take the place of
            the frames, for a network that is trained on pairs.
    """

    frames: Tensor
    reynolds: Tensor
    unroll: int
    size: int
    steps: int
    seed: int
    advanced: Tensor | None = None

    def __len__(self) -> int:
        return self.steps

    def batch(self, epoch: int, index: int) -> tuple[Any, Tensor]:
        """Velocities and Reynolds numbers, and the frames that follow."""
        starts = self.frames.shape[1] - self.unroll
        total = len(self.frames) * starts
        first = (epoch * self.steps + index) * self.size
        chosen = torch.stack([self._order((first + k) // total, total)[(first + k) % total] for k in range(self.size)])
        simulation, frame = chosen // starts, chosen % starts
        inputs = self.frames if self.advanced is None else self.advanced
        following = torch.stack([self.frames[simulation, frame + 1 + i] for i in range(self.unroll)], dim=1)
        return Flows(inputs[simulation, frame], self.reynolds[simulation]), following

    def _order(self, turn: int, total: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "frames", turn))
        return torch.randperm(total, generator=generator)


class Once(nn.Module):
    """A network that corrects what the solver has advanced before, once: ``s + C(s)``, ``[n, 1, 2, X+1, Y+1]``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, advanced: Flows) -> Tensor:
        """Corrected velocities."""
        velocity, reynolds = advanced
        corrected: Tensor = velocity + self.network(velocity, reynolds)
        return corrected.unsqueeze(1)


class Emulator(nn.Module):
    """A differentiable guess of a step, ``s + net(s)``, which begins as the identity."""

    def __init__(self, scales: tuple[float, ...]) -> None:
        super().__init__()
        self.change = FlowCorrector(widths=EMULATOR_WIDTHS, scales=scales)
        nn.init.zeros_(self.change.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, velocity: Tensor, reynolds: Tensor) -> Tensor:
        """Velocities one step later."""
        found: Tensor = velocity + self.change(velocity, reynolds)
        return found


@dataclass
class Method:
    """A network in its surroundings, and its gradient source.

    Attributes:
        model: from a batch to a trajectory.
        source: of gradients; its queries are solver calls.
        unroll: frames that a batch is compared with.
        calls: solver calls of a step.
        corrected: the simulation around the network; None where the network never meets the solver.
    """

    model: nn.Module
    source: GradientSource
    unroll: int
    calls: int
    corrected: Corrected | None

    @property
    def skipped(self) -> int:
        """Solver calls without an answer."""
        return 0 if self.corrected is None or self.corrected.solver is None else self.corrected.solver.ledger.skipped


def make_network(widths: tuple[int, ...], start: str, scales: tuple[float, ...]) -> FlowCorrector:
    """The network at its initial weights; ``start`` says how its last layer begins: ``glorot`` or ``zero``."""
    network = FlowCorrector(widths=widths, scales=scales)
    if start == names.ZERO:
        nn.init.zeros_(network.layers[-1].weight)  # type: ignore[arg-type]
    return network


def surroundings(
    config: CorrectionConfig, network: nn.Module, flow: WakeFlow, reference: Reference, ratios: Mapping[str, float]
) -> Method:
    """The simulation around the network, by a method that trains.

    Args:
        config: names the method, and its budget and directions.
        network: is trained.
        flow: the coarse solver.
        reference: training simulations, and the scales of their components.
        ratios: for ``zo-sol``: part of each weight that a step takes, as :func:`layer_shares` finds.
    """
    loss, rows = UnrolledError(reference.scales), config.batch_size * config.unroll
    match config.method:
        case names.NON:
            return _on_pairs(network, loss, pairs=reference.training[:, 1:, 0, 0, 0].numel(), seed=config.seed)
        case names.FO_SOL:
            exact = Corrected(flow, network, steps=config.unroll, differentiable=True)
            source = CountedCalls(Autograd(exact, loss=loss, seed=config.seed), before=0, each=rows)
            return Method(exact, source, config.unroll, rows, exact)
        case names.OPAQUE:
            return _by_autograd(config, network, flow, loss)
        case names.EMULATOR:
            return _by_autograd(config, network, flow, loss, _learning_emulator(reference.scales, seed=config.seed))
        case _:
            return _by_estimate(config, network, flow, loss, ratios)


def _on_pairs(network: nn.Module, loss: nn.Module, *, pairs: int, seed: int) -> Method:
    """Autograd on pairs of frames, each of which took one solver call before the training."""
    model = Once(network)
    return Method(model, CountedCalls(Autograd(model, loss=loss, seed=seed), before=pairs, each=0), 1, 0, None)


def _learning_emulator(scales: tuple[float, ...], *, seed: int) -> Learned:
    """An emulator of the solver that learns from its answers."""
    with seeded_scope(derive_seed(seed, "emulator"), torch.device("cpu")):
        emulator = Emulator(scales)
    return Learned(emulator, lr=1e-3, steps=1, batch=8, capacity=512, seed=seed)


def _by_autograd(
    config: CorrectionConfig, network: nn.Module, flow: WakeFlow, loss: nn.Module, guess: Learned | None = None
) -> Method:
    """Autograd for the network, queries of the solver along directions in its states."""
    model = Corrected(
        flow,
        network,
        steps=config.unroll,
        queries=config.directions,
        stencil=FORWARD,
        surrogate=guess,
        policy=POLICY,
        max_queries=config.budget,
        seed=config.seed,
    )
    assert model.solver is not None
    source = BlackBoxSource(Autograd(model, loss=loss, seed=config.seed), model.solver, guess)
    return Method(model, source, config.unroll, _calls(config, config.directions), model)


def _by_estimate(
    config: CorrectionConfig, network: nn.Module, flow: WakeFlow, loss: nn.Module, ratios: Mapping[str, float]
) -> Method:
    """Differences of the loss along coordinates, or random directions, in the space of weights."""
    model = Corrected(flow, network, steps=config.unroll, policy=POLICY, max_queries=config.budget, seed=config.seed)
    assert model.solver is not None
    parameters = {f"network.{name}": p for name, p in network.named_parameters()}
    kept = {f"network.{name}": ratio for name, ratio in ratios.items()}
    whole = sum(p.numel() for name, p in parameters.items() if name not in kept)  # biases
    count = whole + sum(counts_from_ratios(kept, parameters).values())
    if config.method == names.ZO_SOL:
        zo = CGE(
            model,
            loss=loss,
            step_size=config.step_size,
            sparsity=DynamicRatios(kept, every=1, seed=config.seed),
            seed=config.seed,
        )
    else:
        zo = RGE(model, loss=loss, step_size=config.step_size, queries=count, seed=config.seed)
    return Method(model, BlackBoxSource(zo, model.solver), config.unroll, _calls(config, count), model)


def _calls(config: CorrectionConfig, directions: int) -> int:
    """Solver calls of a step; the first step of a trajectory takes no directions: the network comes after it."""
    return config.batch_size * (config.unroll + directions * (config.unroll - 1))


def layer_shares(
    config: CorrectionConfig,
    network: nn.Module,
    flow: WakeFlow,
    scales: tuple[float, ...],
    batch: tuple[Any, Tensor],
) -> tuple[dict[str, float], int]:
    """Part of each parameter that a step of ``zo-sol`` takes, and the solver calls to find it.

    All parameters count, biases included; those are taken as a whole.
    """
    weights = {name: p for name, p in network.named_parameters() if p.dim() > 1}
    if config.ratios == names.UNIFORM or config.sparsity == 0:
        return dict.fromkeys(weights, 1 - config.sparsity), 0
    counted = _Counted(flow)
    model = Corrected(counted, network, steps=config.unroll, seed=config.seed)
    scores = zo_grasp(
        model,
        UnrolledError(scales),
        *batch,
        queries=RANKING,
        step_size=config.step_size,
        seed=config.seed,
        dtype=torch.float32,
    )
    own = {name: scores[f"network.{name}"] for name in weights}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparsityWarning)  # a layer may keep next to nothing
        return layer_ratios(own, sparsity=config.sparsity), counted.calls


class _Counted:
    """A solver whose calls are counted, whoever copies it."""

    reads_only = True

    def __init__(self, flow: WakeFlow) -> None:
        self.flow, self.calls = flow, 0

    def __deepcopy__(self, memo: object) -> _Counted:
        return self

    def arrays(self, state: Flows) -> tuple[Tensor, Tensor]:
        """Velocities and Reynolds numbers, of the solver."""
        return self.flow.arrays(state)

    def step(self, values: Tensor, reynolds: Tensor) -> Tensor:
        """A step, counted."""
        self.calls += len(values)
        advanced: Tensor = self.flow.step(values, reynolds)
        return advanced
