"""The solver of the wake flow: the cost of a step, its physics, and the gain of asking in batches.

    python benchmarks/wake_flow.py --data-dir FOLDER --out benchmarks/records/wake-flow.json

1. **Physics**, from the reference simulations of the recipe ``wake-small`` (made first if they are not in
   ``--data-dir``): the Strouhal number St = f D / U of the shedding, from the probe behind the cylinder over the last
   1,000 steps, with the cylinder's diameter D = 20 and the inflow's speed U = 1; mean kinetic energy of the frames; and
   the largest divergence after a coarse step, away from the cylinder, in units of U over the size of a cell.
2. **A step** of the coarse and the fine solver, milliseconds, by the number of flows side by side.
3. **A step of ZO-SOL**: coordinate-wise estimates of the recipe's network inside of the coarse solver, by difference
   propagation, where all perturbed networks advance together, and one perturbed simulation after the other
   (``evaluator="sequential"``), in turns: queries a second and their ratio.

One thread. Leave the machine alone meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

import deepzero as dz
from deepzero.measure.measurement_record import environment, heading, write_record
from deepzero.measure.rounds import Spread, by_side, in_turns, ratio
from deepzero.recipes.correction_recipes import RECIPES
from deepzero.stopwatch import Stopwatch, seconds_of
from deepzero.tasks.correction import Flows, Reference, WakeFlow, divergence, shedding
from deepzero.tasks.correction.correction_methods import FlowBatches, UnrolledError, make_network
from deepzero.tasks.correction.reference_flows import reference
from deepzero.tasks.correction.wake import RADIUS, WIDTH
from deepzero.training import StopRequest

SHED = 1000
"""Steps at the end of a reference simulation over which vortices are counted."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    data_dir: Path = Path("data")
    rounds: int = 7
    out: Path | None = None


def physics(frames: Reference, flow: WakeFlow) -> list[dict[str, float]]:
    """Of every reference simulation."""
    numbers = torch.cat([frames.training_reynolds, frames.test_reynolds])
    fields = torch.cat([frames.training, frames.test])
    after = flow.step(fields[:, -1], numbers)
    x, y = torch.meshgrid(torch.arange(flow.resolution) + 0.5, torch.arange(2 * flow.resolution) + 0.5, indexing="ij")
    cell = WIDTH / flow.resolution
    away = torch.hypot(x * cell - WIDTH / 2, y * cell - WIDTH / 2) > RADIUS + 3 * cell
    energy = fields.square().sum(2).flatten(2).mean(2) / 2
    return [
        {
            "reynolds": float(number),
            "strouhal": 2 * RADIUS * shedding(frames.probe[-SHED:, k]),
            "probe_deviation": float(frames.probe[-SHED:, k].std()),
            "least_energy": float(energy[k].min()),
            "most_energy": float(energy[k].max()),
            "divergence": float(divergence(after[k : k + 1], flow.resolution)[0][away].abs().max()) * cell,
        }
        for k, number in enumerate(numbers)
    ]


def milliseconds(call: Callable[[], object], rounds: int) -> dict[str, Any]:
    """Of a call, after two that compile."""
    found = [1e3 * seconds_of(call) for _ in range(2 + rounds)]
    return asdict(Spread.of(found[2:]))


@dataclass(frozen=True)
class Turn:
    """A step of ZO-SOL.

    Attributes:
        rate: queries a second.
        gradient: the estimate of all parameters.
    """

    rate: float
    gradient: Tensor


def step(zo: dz.Estimator, network: nn.Module, batches: FlowBatches, turn: int) -> Turn:
    """Estimate on the batch of a turn."""
    batch = batches.batch(0, turn)
    network.zero_grad()
    before, watch = zo.queries, Stopwatch()
    zo.backward(*batch)
    rate = (zo.queries - before) / watch.seconds()
    return Turn(rate, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))


def estimates(frames: Reference, flow: WakeFlow, rounds: int) -> dict[str, Any]:
    """Queries a second of a step of ZO-SOL, together and one by one."""
    config = RECIPES.find("wake-small").config()
    batches = FlowBatches(frames.training, frames.training_reynolds, config.unroll, config.batch_size, rounds + 1, 0)
    torch.manual_seed(0)
    network = make_network(config.widths, config.start, frames.scales)
    ratios = {f"network.{name}": 1 - config.sparsity for name, p in network.named_parameters() if p.dim() > 1}
    sides = {
        name: dz.CGE(
            dz.Corrected(flow, network, steps=config.unroll),
            loss=UnrolledError(frames.scales),
            step_size=config.step_size,
            sparsity=dz.DynamicRatios(ratios, every=1),
            evaluator=evaluator,
        )
        for name, evaluator in (("together", "propagation"), ("one by one", "sequential"))
    }
    turns = by_side(in_turns({name: partial(step, zo, network, batches) for name, zo in sides.items()}, rounds + 1))
    apart = [
        float((one.gradient - other.gradient).norm() / other.gradient.norm())
        for one, other in zip(turns["together"], turns["one by one"], strict=True)
    ]
    rates = {name: [turn.rate for turn in found[1:]] for name, found in turns.items()}  # the first checks and compiles
    return {
        "queries_per_step": int(sides["together"].estimate(*batches.batch(0, 0)).queries),
        "queries_per_second": {name: asdict(Spread.of(found)) for name, found in rates.items()},
        "ratio": asdict(ratio(rates["together"], rates["one by one"])),
        "relative_difference_of_the_estimates": max(apart),
    }


def main(options: Options) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    circumstances = environment()
    circumstances["python"] = circumstances["versions"]["python"]
    config = RECIPES.find("wake-small").config().flow
    frames = reference(config, data_dir=options.data_dir, stop=StopRequest())
    coarse, fine = WakeFlow(config.resolution), WakeFlow(2 * config.resolution)
    record: dict[str, Any] = {
        **heading(circumstances, command="python benchmarks/wake_flow.py"),
        "settings": {"rounds": options.rounds, "flow": asdict(config), "threads": 1},
        "physics": physics(frames, coarse),
        "milliseconds_of_a_step": [],
    }
    for one in record["physics"]:
        print({name: round(value, 5) for name, value in one.items()}, flush=True)
    for flow, counts in ((coarse, (1, 16, 64)), (fine, (1, 11))):
        for count in counts:
            state = Flows(*flow.initial([390.6] * count))
            took = milliseconds(partial(flow.step, *state), options.rounds)
            record["milliseconds_of_a_step"].append({"cells_across": flow.resolution, "flows": count, **took})
            print(flow.resolution, count, took, flush=True)
    record["estimates"] = estimates(frames, coarse, options.rounds)
    rates = record["estimates"]["queries_per_second"]
    print({name: rate["median"] for name, rate in rates.items()}, record["estimates"]["ratio"])
    write_record(options.out, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
