"""A step on many workers, from costs measured on one: shares of the jobs, a base forward each, an exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepzero import validation
from deepzero.evaluators.base import Job
from deepzero.evaluators.distributed import divide


@dataclass(frozen=True)
class Machine:
    """Workers of one thread each, and the network between them.

    Attributes:
        base: seconds of the base forward, which every worker makes.
        costs: seconds a query, by kind of job.
        latency: seconds until a small message from one worker has reached all others; each worker sends one.
        bandwidth: bytes a second that a worker receives.
    """

    base: float
    costs: Mapping[str, float]
    latency: float
    bandwidth: float


@dataclass(frozen=True)
class SimulatedStep:
    """One step on a number of workers.

    Attributes:
        workers: number of workers.
        seconds: of the step.
        base: seconds of it for the base forward.
        work: seconds of it for the longest share.
        exchange: seconds of it for the exchange of loss differences.
        imbalance: longest share over the mean share.
        speed_up: over one worker.
    """

    workers: int
    seconds: float
    base: float
    work: float
    exchange: float
    imbalance: float
    speed_up: float

    @property
    def efficiency(self) -> float:
        """Speed-up by worker."""
        return self.speed_up / self.workers


def simulate(jobs: Sequence[Job], machine: Machine, workers: int) -> SimulatedStep:
    """Divide ``jobs`` as :class:`~deepzero.DistributedEvaluator` does, and add up.

    .. math:: T(W) = T_{\\text{base}} + \\max_w \\sum_{j \\in \\text{share}_w} c_j
        + [W > 1] \\left( W \\alpha + \\frac{8 K}{\\beta} \\right)

    with costs :math:`c_j`, latency :math:`\\alpha`, :math:`K` loss differences of 8 bytes, and bandwidth
    :math:`\\beta`.

    Example:
        >>> jobs = [Job(0, k, k + 1) for k in range(8)]
        >>> machine = Machine(base=1.0, costs={"query": 1.0}, latency=0.0, bandwidth=float("inf"))
        >>> simulate(jobs, machine, 4).seconds, simulate(jobs, machine, 4).speed_up
        (3.0, 3.0)
    """
    validation.count("workers", workers)
    seconds = [len(job) * machine.costs[job.kind] for job in jobs]
    shares = [sum(seconds[i] for i in share) for share in divide(jobs, machine.costs, workers)]
    queries = sum(len(job) for job in jobs)
    exchange = workers * machine.latency + 8 * queries / machine.bandwidth if workers > 1 else 0.0
    total = machine.base + max(shares) + exchange
    return SimulatedStep(
        workers=workers,
        seconds=total,
        base=machine.base,
        work=max(shares),
        exchange=exchange,
        imbalance=max(shares) * workers / sum(seconds) if seconds else 1.0,
        speed_up=(machine.base + sum(seconds)) / total,
    )
