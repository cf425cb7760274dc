"""Forecast of the seconds that a correction takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from deepzero.randomness import seeded_scope
from deepzero.stopwatch import seconds_of
from deepzero.tasks.correction import correction_config as names
from deepzero.tasks.correction.correction_config import CorrectionConfig
from deepzero.tasks.correction.correction_methods import make_network
from deepzero.tasks.correction.reference_flows import FRAMES, folder_of
from deepzero.tasks.correction.train_correction import PARTS
from deepzero.tasks.correction.wake import AT_ONCE, WakeFlow
from deepzero.training.checkpoint_contents import snapshot

BACKWARD = 5
"""A backward through the solver's step, in units of the step (measured: 4 to 6)."""
NETWORK_BACKWARD = 3
"""Forward and backward of the network, in units of its forward."""
REPEATS = 3


def correction_seconds(config: CorrectionConfig, data_dir: str | Path | None = None) -> float:
    """About how many seconds a run takes: single steps of the solvers and of the network, timed and multiplied.

    Args:
        config: of the run.
        data_dir: folder of the reference simulations; those that are there take no time.
    """
    flow = WakeFlow(config.flow.resolution, tolerance=config.flow.tolerance)
    state = flow.initial([390.6] * AT_ONCE)
    solver = _seconds(lambda: flow.step(*state)) / AT_ONCE
    with seeded_scope(config.seed, torch.device("cpu")):
        network = make_network(config.widths, config.start, (1.0, 1.0, 1.0))
    with torch.no_grad():
        forward = _seconds(lambda: network(state.velocity[:8], state.reynolds[:8])) / 8
    rows = config.batch_size * config.unroll
    total = config.flow.frames * len(config.flow.test) * (PARTS + 1) * (solver + forward)
    if not (folder_of(config.flow, data_dir) / FRAMES).exists():
        total += (config.flow.warmup + config.flow.frames) * _reference_step(config)
    if config.method == names.NON:
        return total + config.steps * config.batch_size * NETWORK_BACKWARD * forward
    if config.method == names.FO_SOL:
        return total + config.steps * rows * ((1 + BACKWARD) * solver + NETWORK_BACKWARD * forward)
    moving = config.batch_size * (config.unroll - 1)
    if config.method in (names.OPAQUE, names.EMULATOR):
        calls, other = rows + config.directions * moving, rows * NETWORK_BACKWARD * forward
    elif config.method in (names.ZO_SOL, names.ZO_SOL_RGE):
        weights = snapshot(network).values()
        queries = sum(round((1 - config.sparsity) * p.numel()) if p.dim() > 1 else p.numel() for p in weights)
        calls = rows + queries * moving
        other = calls * forward
    else:
        return total
    steps = config.steps if config.budget is None else max(1, config.budget // calls)
    return total + steps * (calls * solver + other)


def _reference_step(config: CorrectionConfig) -> float:
    flow = WakeFlow(2 * config.flow.resolution, tolerance=config.flow.tolerance)
    state = flow.initial([*config.flow.training, *config.flow.test])
    return _seconds(lambda: flow.step(*state))


def _seconds(call: Callable[[], object]) -> float:
    """The least of a few, after two that compile."""
    return min([seconds_of(call) for _ in range(2 + REPEATS)][2:])
