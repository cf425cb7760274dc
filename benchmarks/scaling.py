"""Two processes of one thread against one process of one thread, and a simulation of many from the measured costs.

    torchrun --standalone --nproc-per-node 2 benchmarks/scaling.py --out benchmarks/records/scaling.json

ResNet-20 at coordinates drawn by Smart-Ratio at 90 %, batch 128. In every round rank 0 makes an estimate alone while
the others wait, then all make the same estimate together. A part of the chunks of every parameter is queried, drawn
anew each round; the base forward is part of both times. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import deepzero as dz
from deepzero.evaluators.distributed import CALIBRATION
from deepzero.measure.cases import problem
from deepzero.measure.scaling import Machine, simulate
from deepzero.measure.timed_part import in_full_chunks
from deepzero.training import hardware, versions

WORKERS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
BANDWIDTH = 1.25e9
"""Bytes a second that a simulated worker receives: 10 Gbit/s Ethernet."""
STEPS_PER_EPOCH = 351
"""45,000 images of CIFAR-10 in batches of 128."""


def seconds_of(function: Callable[[], Any]) -> float:
    """Wall seconds of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def loopback_bytes() -> int:
    """Bytes that went through the loopback interface so far, headers included (Linux)."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


@dataclass
class Bench:
    """One network, queried by one process and by all."""

    team: dz.Team
    fraction: float

    def __post_init__(self) -> None:
        self.problem = problem("resnet20")
        self.inner = dz.PropagationEvaluator(workers=1)
        self.alone = dz.DistributedEvaluator(self.inner)
        self.together = dz.DistributedEvaluator(self.inner, self.team)
        whole = dz.CGE(self.problem.model, loss=F.cross_entropy, sparsity=self.problem.coordinates)
        self.objective = whole.objective
        directions = whole.directions(*self.problem.batch)
        prepared = self.inner.prepare(whole.step_queries(directions, [self.problem.step_size], self.problem.batch))
        self.jobs = prepared.jobs
        prepared.release()
        self.chunks: dict[str, int] = {}
        for job in self.jobs:
            self.chunks[job.kind] = max(len(job), self.chunks.get(job.kind, 0))

    def estimate(self, evaluator: dz.DistributedEvaluator, part: dz.Coordinates) -> float:
        """Seconds of an estimate of a part of the coordinates."""
        zo = dz.CGE(self.problem.model, loss=F.cross_entropy, sparsity=part, evaluator=evaluator)
        zo.objective = self.objective  # the exported graph belongs to it
        return seconds_of(lambda: zo.estimate(*self.problem.batch))

    def round(self, seed: int) -> dict[str, float]:
        """One turn of each side."""
        part = in_full_chunks(self.problem.coordinates, self.chunks, self.fraction, seed)
        self.team.highest(0)
        one = self.estimate(self.alone, part) if self.team.leads else 0.0
        self.team.highest(0)
        sent = loopback_bytes()
        many = self.estimate(self.together, part)
        self.team.highest(0)
        payload = loopback_bytes() - sent
        speed = {"queries": part.count + 1, "one": one, "together": many, "speed_up": one / many if one else 0.0}
        return {**speed, "loopback_bytes_per_query": payload / (part.count + 1)}

    def latency(self, repeats: int = 200) -> float:
        """Median seconds of an exchange of one number each, by rank."""
        own, sizes = torch.zeros(1, dtype=torch.float64), [1] * self.team.size
        times = [seconds_of(lambda: self.team.exchange(own, sizes)) for _ in range(repeats)]
        return statistics.median(times) / self.team.size

    def base(self) -> float:
        """Median seconds of the base forward."""
        program = self.inner.program(self.objective, self.problem.batch)
        arguments = program, self.objective, self.problem.batch, 0
        return statistics.median(seconds_of(lambda: self.inner.base_values(*arguments)) for _ in range(5))


def main() -> None:
    """All rounds, then the simulation and the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=0.03, help="part of the chunks of each parameter")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with dz.joined() as team:
        bench = Bench(team, options.fraction)
        for seed in range(CALIBRATION):
            bench.round(-1 - seed)
        rounds = [bench.round(seed) for seed in range(options.rounds)]
        latency, base = bench.latency(), bench.base()
        if not team.leads:
            return
        machine = Machine(base, bench.together.state_dict()["costs"], latency, BANDWIDTH)
        forecasts = [simulate(bench.jobs, machine, workers) for workers in WORKERS]
        record = {
            "command": f"torchrun --standalone --nproc-per-node {team.size} {' '.join(sys.argv)}",
            "versions": versions(),
            "hardware": hardware(torch.device("cpu")),
            "load": os.getloadavg()[0],
            "processes": team.size,
            "rounds": rounds,
            "speed_up": statistics.median(r["speed_up"] for r in rounds),
            "machine": asdict(machine),
            "jobs": len(bench.jobs),
            "queries": sum(len(job) for job in bench.jobs),
            "simulation": [
                {
                    **asdict(f),
                    "efficiency": f.efficiency,
                    "hours_per_epoch": f.seconds * STEPS_PER_EPOCH / 3600,
                    "worker_hours_per_epoch": f.seconds * STEPS_PER_EPOCH * f.workers / 3600,
                }
                for f in forecasts
            ],
        }
    print(f"speed-up {record['speed_up']:.2f}", [round(r["speed_up"], 2) for r in rounds])
    for f in forecasts:
        print(f"{f.workers:5d} workers: {f.seconds:9.3f} s a step, efficiency {f.efficiency:.2f}")
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
