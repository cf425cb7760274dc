"""Two processes of one thread against one process of one thread, and a simulation of many from the measured costs.

    torchrun --standalone --nproc-per-node 2 benchmarks/scaling.py --out benchmarks/records/scaling.json

ResNet-20 at coordinates drawn by Smart-Ratio at 90 %, batch 128. In every round rank 0 makes an estimate alone while
the others wait, then all make the same estimate together. A part of the chunks of every parameter is queried, drawn
again each round; the base forward is part of both times. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import deepzero as dz
from deepzero.evaluators.distributed import CALIBRATION
from deepzero.measure.cases import in_full_chunks, problem
from deepzero.measure.measurement_record import command_line, environment, flat_heading, write_record
from deepzero.measure.simulated_workers import Machine, simulate
from deepzero.objective import NetworkObjective
from deepzero.stopwatch import median_seconds, seconds_of

WORKERS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
BANDWIDTH = 1.25e9
"""Bytes a second that a simulated worker receives: 10 Gbit/s Ethernet."""
STEPS_PER_EPOCH = 351
"""45,000 images of CIFAR-10 in batches of 128."""


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
        assert isinstance(whole.objective, NetworkObjective)
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
        return median_seconds(lambda: self.team.exchange(own, sizes), repeats) / self.team.size

    def base(self) -> float:
        """Median seconds of the base forward."""
        program = self.inner.program(self.objective, self.problem.batch)
        values = partial(self.inner.base_values, program, self.objective, self.problem.batch, 0)
        return median_seconds(values, repeats=5)


def main() -> None:
    """All rounds, then the simulation and the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=0.03, help="part of the chunks of each parameter")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    circumstances = environment()
    with dz.joined() as team:
        bench = Bench(team, options.fraction)
        for seed in range(CALIBRATION):
            bench.round(-1 - seed)
        rounds = [bench.round(seed) for seed in range(options.rounds)]
        latency, base = bench.latency(), bench.base()
        if not team.leads:
            return
        machine = Machine(base, bench.together.state_dict()["costs"], latency, BANDWIDTH)
        steps = [simulate(bench.jobs, machine, workers) for workers in WORKERS]
        command = command_line("torchrun", "--standalone", "--nproc-per-node", str(team.size), sys.argv[0])
        head = flat_heading(circumstances, command=command)
        record = {
            **head,
            "load": head["load_before"],
            "processes": team.size,
            "rounds": rounds,
            "speed_up": statistics.median(r["speed_up"] for r in rounds),
            "machine": asdict(machine),
            "jobs": len(bench.jobs),
            "queries": sum(len(job) for job in bench.jobs),
            "simulation": [
                {
                    **asdict(step),
                    "efficiency": step.efficiency,
                    "hours_per_epoch": step.seconds * STEPS_PER_EPOCH / 3600,
                    "worker_hours_per_epoch": step.seconds * STEPS_PER_EPOCH * step.workers / 3600,
                }
                for step in steps
            ],
        }
    print(f"speed-up {record['speed_up']:.2f}", [round(r["speed_up"], 2) for r in rounds])
    for step in steps:
        print(f"{step.workers:5d} workers: {step.seconds:9.3f} s a step, efficiency {step.efficiency:.2f}")
    write_record(options.out, record)


if __name__ == "__main__":
    main()
