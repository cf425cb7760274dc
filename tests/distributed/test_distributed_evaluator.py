"""Queries divided among ranks: the same bits on any number of them, and little traffic."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from threads_team import together
from torch import nn

import deepzero as dz
from deepzero.coordinates import Coordinates
from deepzero.errors import InvalidInputError, NonFiniteLossError, TeamError
from deepzero.evaluators.base import Answer, Job, Preparation
from deepzero.evaluators.distributed import CALIBRATION, divide, divided
from deepzero.graph.capture import capture
from deepzero.stencils import Stencil
from deepzero.team import Team

INNER = {
    "propagation": lambda: dz.PropagationEvaluator(chunk_bytes=1 << 14, workers=1, verify=False),
    "sequential": dz.SequentialEvaluator,
    "batched": lambda: dz.BatchedEvaluator(chunk=3),
}


@pytest.fixture(autouse=True)
def one_export_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.export is made for one thread; the processes of a real team have one each."""
    lock = threading.Lock()

    def locked(*args: Any) -> Any:
        with lock:
            return capture(*args)

    monkeypatch.setattr("deepzero.evaluators.propagation.capture", locked)


def network(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)
    )
    for p in model.parameters():
        p.data.uniform_(-0.3, 0.3, generator=generator)
    return model


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 1, 5, 5, generator=generator), torch.randint(0, 3, (6,), generator=generator))
        for _ in range(count)
    ]


def estimator(kind: str, model: nn.Module, team: Team | None, stencil: dz.Stencil = dz.FORWARD) -> dz.Estimator:
    inner = INNER[kind]()
    evaluator = inner if team is None else dz.DistributedEvaluator(inner, team)
    if kind == "batched":
        return dz.RGE(model, loss=F.cross_entropy, queries=10, evaluator=evaluator, stencil=stencil)
    return dz.CGE(model, loss=F.cross_entropy, evaluator=evaluator, stencil=stencil)


def trained(kind: str, team: Team | None, steps: int = 3, stencil: dz.Stencil = dz.FORWARD) -> dict[str, torch.Tensor]:
    model = network()
    zo = estimator(kind, model, team, stencil)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches(steps):
        sgd.zero_grad()
        zo.backward(x, y)
        sgd.step()
    return {**model.state_dict(), "queries": torch.tensor(zo.queries)}


@pytest.mark.parametrize("kind", INNER)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_weights_have_the_same_bits_on_any_number_of_ranks(kind: str, size: int) -> None:
    alone = trained(kind, None)
    for weights in together(size, lambda team: trained(kind, team)):
        assert all(torch.equal(weights[name], alone[name]) for name in alone)


def test_central_differences_are_divided_too() -> None:
    alone = trained("propagation", None, stencil=dz.CENTRAL)
    for weights in together(3, lambda team: trained("propagation", team, stencil=dz.CENTRAL)):
        assert all(torch.equal(weights[name], alone[name]) for name in alone)


def test_the_estimate_does_not_depend_on_the_threads_of_a_process() -> None:
    def gradients(threads: int) -> dict[str, torch.Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(7200, 3))
            for p in model.parameters():
                p.data.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(p.numel()))
            x = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
            some = Coordinates({name: torch.arange(min(6, p.numel())) for name, p in model.named_parameters()})
            return dz.CGE(model, loss=F.cross_entropy, sparsity=some).estimate(x, torch.arange(32) % 3).gradients
        finally:
            torch.set_num_threads(before)

    one, two = gradients(1), gradients(2)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_rank_receives_8_bytes_a_coordinate_and_a_constant() -> None:
    def exchanged(team: Team) -> list[int]:
        model = network()
        zo = estimator("propagation", model, team)
        counts = []
        for x, y in batches(CALIBRATION + 2):
            before = team.exchanged
            zo.backward(x, y)
            counts.append(team.exchanged - before)
        return counts

    queries = sum(p.numel() for p in network().parameters())
    kinds = len(list(network().parameters()))
    size = 3
    per_rank = together(size, exchanged)
    for counts in per_rank:
        assert all(8 <= n <= 8 * (queries + size * (1 + kinds)) for n in counts)
        assert counts[-1] <= 8 * (queries + size), "nothing but answers and base losses once costs are known"
    assert sum(counts[-1] for counts in per_rank) == 8 * (size - 1) * (queries + size)


def test_shares_are_balanced_by_measured_costs() -> None:
    def table(team: Team) -> dict[str, float]:
        zo = estimator("propagation", network(), team)
        for x, y in batches(CALIBRATION):
            zo.backward(x, y)
        return zo.evaluator.state_dict()["costs"]

    first, second = together(2, table)
    assert first == second, "all ranks divide by the same numbers"
    assert set(first) == {name for name, _ in network().named_parameters()}
    assert all(seconds > 0 for seconds in first.values())


EACH = {"0.weight": 0.5, "1.weight": 2.0, "1.bias": 1.0, "4.weight": 0.25, "4.bias": 8.0}


class MadeUpTimes:
    """Propagation on a clock of its own: a query of a parameter takes as many seconds as ``EACH`` says."""

    def __init__(self) -> None:
        self.inner = INNER["propagation"]()

    def prepare(self, *args: Any) -> Preparation:
        step = self.inner.prepare(*args)

        def answer(some: Sequence[Job]) -> list[Answer]:
            answers = step.answer(some)
            return [Answer(a.differences, len(job) * EACH[job.kind]) for a, job in zip(answers, some, strict=True)]

        return replace(step, answer=answer)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stencil", [dz.FORWARD, dz.CENTRAL])
def test_costs_are_seconds_a_query_however_many_ranks_and_queries_there_are(size: int, stencil: Stencil) -> None:
    def table(team: Team) -> dict[str, float]:
        zo = dz.CGE(
            network(), loss=F.cross_entropy, evaluator=dz.DistributedEvaluator(MadeUpTimes(), team), stencil=stencil
        )
        zo.estimate(*batches(1)[0])
        return zo.evaluator.state_dict()["costs"]

    assert together(size, table) == [EACH] * size


def test_a_state_goes_on_with_another_number_of_ranks() -> None:
    def first_half(team: Team) -> tuple[dict, dict, dict]:
        model = network()
        zo = estimator("propagation", model, team)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(4)[:2]:
            sgd.zero_grad()
            zo.backward(x, y)
            sgd.step()
        return model.state_dict(), zo.state_dict(), {}

    def second_half(team: Team) -> dict[str, torch.Tensor]:
        model = network(seed=9)
        model.load_state_dict(weights)
        zo = estimator("propagation", model, team)
        zo.load_state_dict(state)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(4)[2:]:
            sgd.zero_grad()
            zo.backward(x, y)
            sgd.step()
        return model.state_dict()

    weights, state, _ = together(2, first_half)[0]
    ends = [*together(1, second_half), *together(3, second_half)]
    assert all(torch.equal(ends[0][name], end[name]) for end in ends for name in weights)


def test_ranks_that_hold_other_weights_are_found_out() -> None:
    def run(team: Team) -> str:
        model = network()
        model[0].weight.data[0, 0, 0, 0] += team.rank * 1e-3
        with pytest.raises(TeamError) as caught:
            estimator("propagation", model, team).backward(*batches(1)[0])
        return str(caught.value)

    for message in together(2, run):
        assert "rank 1 has the base loss" in message
        assert "no longer hold the same weights" in message


def test_a_loss_that_is_not_finite_is_the_same_error_on_every_rank() -> None:
    class Cliff(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(1 - 1e6 * self.weight[5]) + x * self.weight.sum()

    def run(team: Team) -> str:
        model = Cliff()
        evaluator = dz.DistributedEvaluator(dz.SequentialEvaluator(), team)
        zo = dz.CGE(model, loss=F.mse_loss, evaluator=evaluator)
        with pytest.raises(NonFiniteLossError) as caught:
            zo.backward(torch.ones(2), torch.ones(2))
        assert model.weight.grad is None
        return str(caught.value)

    messages = together(2, run)
    assert messages[0] == messages[1]
    assert "weight[5]" in messages[0]


jobs = st.lists(st.integers(1, 50), min_size=0, max_size=40)


@given(jobs, st.integers(1, 6))
def test_every_job_has_one_rank_and_no_share_is_much_longer_than_it_must_be(lengths: list[int], ranks: int) -> None:
    work = [Job(0, sum(lengths[:i]), sum(lengths[: i + 1])) for i in range(len(lengths))]
    shares = divide(work, {}, ranks)
    assert sorted(i for share in shares for i in share) == list(range(len(work)))
    longest = max(sum(lengths[i] for i in share) for share in shares)
    assert longest <= sum(lengths) / ranks + (1 - 1 / ranks) * max(lengths, default=0) + 1e-9  # Graham, 1966


def test_costs_decide_where_they_are_known() -> None:
    work = [Job(0, 0, 10, "cheap", 1.0), Job(0, 10, 20, "cheap", 1.0), Job(0, 20, 21, "dear", 1.0)]
    assert divide(work, {"cheap": 1e-3, "dear": 1.0}, 2) == [[2], [0, 1]]
    assert divide(work, {"cheap": 1e-3}, 2) == [[0, 2], [1]], "by weight where a cost is missing"


def test_an_evaluator_is_divided_once_and_only_if_it_can_be() -> None:
    whole = dz.PropagationEvaluator()
    shared = divided(whole, Team(0, 2))
    assert isinstance(shared, dz.DistributedEvaluator)
    assert shared.inner is whole
    assert divided(shared, Team(0, 2)) is shared
    elsewhere = dz.ExecutorEvaluator(ThreadPoolExecutor)
    assert divided(elsewhere, Team()) is elsewhere
    with pytest.raises(InvalidInputError, match="the queries of a ExecutorEvaluator cannot be divided among processes"):
        divided(elsewhere, Team(0, 2))
