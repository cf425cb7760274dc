"""Forward parallelization over processes (eq. (5) of Chen et al., 2024): whole chunks, shared out by measured cost."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deepzero.errors import InvalidInputError, TeamError
from deepzero.evaluators.base import Answer, DivisibleEvaluator, Evaluator, Job, Measurement, StepQueries
from deepzero.team import Alone, Team

CALIBRATION = 3
"""Steps whose times make the cost table; the first one, in which loops are compiled, is overwritten by the next."""


class DistributedEvaluator:
    """Divides the queries of another evaluator among the processes of a team.

    Every rank makes the base query and answers its share of the jobs; only loss differences travel, 8 bytes a query,
    and every rank then holds all of them. So every rank takes the same optimizer step, and no parameter is ever sent.
    Jobs are cut without regard to the number of ranks: the gradient has the same bits on one process and on many.

    Shares are balanced by the seconds that each kind of job was measured to take in the first steps. The measurements
    travel too, so that all ranks divide alike; they steer who does what, never what comes out.

    Args:
        inner: how a process answers its share.
        team: the processes, from :func:`deepzero.team.joined`; by default this one alone.

    Example:
        >>> import torch, torch.nn.functional as F, deepzero as dz
        >>> evaluator = DistributedEvaluator(dz.PropagationEvaluator())
        >>> zo = dz.CGE(torch.nn.Linear(3, 2), loss=F.cross_entropy, evaluator=evaluator)
        >>> _ = zo.backward(torch.randn(8, 3), torch.randint(0, 2, (8,)))
        >>> zo.queries
        9
    """

    def __init__(self, inner: DivisibleEvaluator, team: Team | None = None) -> None:
        self.inner = inner
        self.team = team or Alone()
        self._costs: dict[str, float] = {}
        self._measured = 0

    def measure(self, queries: StepQueries) -> Measurement:
        """Loss differences of all jobs, each answered by one rank.

        Raises:
            TeamError: a rank hangs, has ended, or has another base loss.
        """
        step = self.inner.prepare(queries)
        shares = divide(step.jobs, self._costs, self.team.size)
        answers = step.answer([step.jobs[i] for i in shares[self.team.rank]])
        step.release()
        kinds = sorted({job.kind for job in step.jobs}) if self._measured < CALIBRATION else []
        own = torch.cat(
            [
                step.loss.reshape(1),
                *(answer.differences for answer in answers),
                _seconds(kinds, [step.jobs[i].kind for i in shares[self.team.rank]], answers).to(step.loss.device),
            ]
        )
        lengths = [1 + sum(len(step.jobs[i]) for i in share) + len(kinds) for share in shares]
        received = self.team.exchange(own, lengths)
        self._require_one_loss([part[0] for part in received])
        if kinds:
            self._learn(step.jobs, kinds, [part[len(part) - len(kinds) :] for part in received])
        parts: list[Tensor] = [torch.empty(0)] * len(step.jobs)
        for share, part in zip(shares, received, strict=True):
            pieces = torch.split(part[1:], [*(len(step.jobs[i]) for i in share), len(kinds)])
            for i, piece in zip(share, pieces, strict=False):
                parts[i] = piece
        return step.assemble(queries, parts)

    def _learn(self, jobs: Sequence[Job], kinds: Sequence[str], seconds: Sequence[Tensor]) -> None:
        """Seconds a query of each kind, over all ranks."""
        queries = dict.fromkeys(kinds, 0)
        for job in jobs:
            queries[job.kind] += len(job)
        total = torch.stack(list(seconds)).sum(0).tolist()
        self._costs = {**self._costs, **{kind: s / queries[kind] for kind, s in zip(kinds, total, strict=True)}}
        self._measured += 1

    def _require_one_loss(self, losses: Sequence[Tensor]) -> None:
        """All ranks hold the same weights and batch if their base losses agree to the last bit."""
        for rank, loss in enumerate(losses):
            if float(loss) != float(losses[0]):
                raise TeamError(
                    f"rank {rank} has the base loss {float(loss)!r}, rank 0 {float(losses[0])!r}: the processes no "
                    "longer hold the same weights or batches. They must run the same program with the same data and "
                    "seeds, under the same versions and on the same kind of processor"
                )

    def state_dict(self) -> dict[str, Any]:
        """The inner evaluator's state and the cost table."""
        return {"inner": self.inner.state_dict(), "costs": dict(self._costs), "measured": self._measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned on any number of ranks."""
        self.inner.load_state_dict(state["inner"])
        self._costs, self._measured = dict(state["costs"]), state["measured"]


def divided(evaluator: Evaluator, team: Team) -> Evaluator:
    """The evaluator whose queries a team divides.

    Raises:
        InvalidInputError: the team has several processes, but the queries of this evaluator cannot be divided.
    """
    if isinstance(evaluator, DistributedEvaluator):
        return evaluator
    if isinstance(evaluator, DivisibleEvaluator):
        return DistributedEvaluator(evaluator, team)
    if team.size > 1:
        raise InvalidInputError(
            f"the queries of a {type(evaluator).__name__} cannot be divided among processes; leave out evaluator=..., "
            "or train in one process (an executor has workers of its own)"
        )
    return evaluator


def load_evaluator(evaluator: Evaluator, state: dict[str, Any]) -> None:
    """Give an evaluator its state, also where queries were divided before and no longer are, or the other way round."""
    divides, divided = hasattr(evaluator, "inner"), "inner" in state
    if divided and not divides:
        state = state["inner"]
    elif divides and not divided:
        state = {"inner": state, "costs": {}, "measured": 0}
    evaluator.load_state_dict(state)


def divide(jobs: Sequence[Job], costs: Mapping[str, float], ranks: int) -> list[list[int]]:
    """Positions of the jobs of each rank: the costliest job first, always to the rank with the least to do.

    The longest share is at most 4/3 of the shortest possible one (Graham, 1969).

    Args:
        jobs: all jobs of a step.
        costs: seconds a query by kind; the jobs' own weights where a kind is missing.
        ranks: how many.

    Example:
        >>> divide([Job(0, 0, 4), Job(0, 4, 6), Job(0, 6, 8)], {}, 2)
        [[0], [1, 2]]
    """
    known = all(job.kind in costs for job in jobs)
    weights = [len(job) * (costs[job.kind] if known else job.weight) for job in jobs]
    load: list[tuple[float, int]] = [(0.0, rank) for rank in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for i in sorted(range(len(jobs)), key=lambda i: (-weights[i], i)):
        least, rank = load[0]
        shares[rank].append(i)
        heapq.heapreplace(load, (least + weights[i], rank))
    return shares


def _seconds(kinds: Sequence[str], of_job: Sequence[str], answers: Sequence[Answer]) -> Tensor:
    """Seconds that this rank spent on each kind, float64."""
    total = dict.fromkeys(kinds, 0.0)
    if kinds:
        for kind, answer in zip(of_job, answers, strict=True):
            total[kind] += answer.seconds
    return torch.tensor([total[kind] for kind in kinds], dtype=torch.float64)
