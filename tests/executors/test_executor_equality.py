"""The numbers on an executor are those of the sequential oracle, bit for bit, whatever the order of the answers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import boxes
import numpy as np
import pytest
import torch

import deepzero as dz
from deepzero.coordinates import Coordinates
from deepzero.errors import InvalidInputError, QueryError
from deepzero.executors.queries import listed_queries
from deepzero.executors.worker import KEPT, Message, PackedTensor, Payload, answer
from deepzero.objective import parameters_of
from deepzero.probes import CoordinatePerturbations, RandomPerturbations

ESTIMATORS = {
    "coordinates": dz.CGE,
    "gaussian": lambda box, **kw: dz.RGE(box, queries=6, **kw),
    "sphere": lambda box, **kw: dz.RGE(box, queries=6, distribution="sphere", **kw),
    "rademacher": lambda box, **kw: dz.RGE(box, queries=6, distribution="rademacher", **kw),
}


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with boxes.process_pool() as pool:
        yield pool


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.mark.parametrize("pool", ["threads", "processes"])
@pytest.mark.parametrize("batched", [None, 4])
@pytest.mark.parametrize("stencil", [dz.FORWARD, dz.CENTRAL], ids=lambda s: s.name)
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_pools_agree_with_the_oracle(
    kind: str, stencil: dz.Stencil, batched: int | None, pool: str, request: pytest.FixtureRequest
) -> None:
    executor = request.getfixturevalue(pool)
    fn = boxes.rough if batched is None else boxes.rough_stacked
    options = {"stencil": stencil, "step_size": 0.5}
    expected = ESTIMATORS[kind](boxes.box(), **options).estimate(1.5)
    found = ESTIMATORS[kind](boxes.box(fn, batched), executor=executor, **options).estimate(1.5)
    assert boxes.same(found, expected)
    assert found.queries == expected.queries


def test_stacks_are_the_same_as_single_sets() -> None:
    assert boxes.same(
        boxes.estimate(dz.SequentialEvaluator(), boxes.box(boxes.rough_stacked, 4), 2.0),
        boxes.estimate(dz.SequentialEvaluator(), boxes.box(), 2.0),
    )


@pytest.mark.parametrize("seed", range(5))
def test_answers_out_of_order(seed: int) -> None:
    executor = boxes.FakeExecutor(5, seed=seed)
    found = boxes.estimate(boxes.evaluator(executor, ahead=True), boxes.box(), stencil=dz.CENTRAL)
    assert boxes.same(found, boxes.estimate(dz.SequentialEvaluator(), boxes.box(), stencil=dz.CENTRAL))
    assert executor.most == 10


def test_several_steps_follow_the_oracle(threads: Executor) -> None:
    def train(**options: Any) -> list[float]:
        box = boxes.box()
        zo = dz.CGE(box, step_size=1e-2, **options)
        optimizer = torch.optim.Adam(box.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            zo.backward()
            optimizer.step()
        return [*box.values["w"].ravel().tolist(), *box.values["v"].tolist()]

    assert train(executor=threads) == train()


def test_the_layout_of_arrays_travels(processes: Executor) -> None:
    """The last bits of a sum depend on the order of the elements in memory."""
    draw = np.random.default_rng(0).normal(size=(3, 40, 50))
    layouts = {"w": np.asfortranarray(draw), "u": draw.transpose(1, 2, 0), "e": np.zeros((0, 2))}
    sparse = Coordinates({"w": torch.tensor([3]), "u": torch.tensor([17])})

    def estimate(**options: Any) -> dz.Estimate:
        return dz.CGE(dz.BlackBox(plain_sum, layouts), sparsity=sparse, **options).estimate(torch.ones(2), {"a": 1})

    assert boxes.same(estimate(executor=processes), estimate())


def plain_sum(params: dict[str, Any], weights: torch.Tensor, options: dict[str, int]) -> float:
    assert options == {"a": 1}
    return float(weights.sum()) * float(np.exp(params["w"]).sum() + np.sin(params["u"]).sum())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_tensors_survive_packing(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    value = torch.arange(24, dtype=dtype)[: int(np.prod(shape))].reshape(shape)
    for tensor in (value, value.permute(tuple(reversed(range(value.dim()))))):
        back = PackedTensor.pack(tensor).unpack()
        assert torch.equal(back, tensor)
        assert back.stride() == tensor.stride() or tensor.numel() < 2


def test_nothing_to_ask_but_the_base() -> None:
    empty = Coordinates({"w": torch.tensor([], dtype=torch.int64)})
    zo = dz.CGE(boxes.box(), sparsity=empty, evaluator=boxes.evaluator(boxes.FakeExecutor()))
    assert float(zo.estimate().loss) == boxes.rough(boxes.values())


def test_the_payload_travels_once_a_worker_and_when_it_is_missed() -> None:
    executor = boxes.FakeExecutor(3)
    boxes.estimate(boxes.evaluator(executor), boxes.box())
    assert [m.payload is not None for m in executor.messages] == [True] * 3 + [False] * 11
    assert len({m.serial for m in executor.messages}) == 14


def test_a_worker_without_the_payload_says_so() -> None:
    assert answer(Message("never seen", ((None, 0.0),), None, 0)) is None


class Forgetful(boxes.FakeExecutor):
    """Every call but those with the payload runs in a process that knows nothing."""

    def submit(self, fn: Any, message: Message) -> Any:
        if message.payload is None:
            return super().submit(lambda m: None, message)
        return super().submit(fn, message)


def test_what_was_missed_is_sent_again() -> None:
    executor = Forgetful(2)
    found = boxes.estimate(boxes.evaluator(executor), boxes.box())
    assert boxes.same(found, boxes.estimate(dz.SequentialEvaluator(), boxes.box()))
    assert sum(m.payload is None for m in executor.messages) == 12


def test_workers_keep_few_steps() -> None:
    payload = Payload.pack(boxes.box().worker_function(), parameters_of(boxes.box()), ())
    steps = [f"kept {i}" for i in range(KEPT + 1)]
    for step in steps:
        answer(Message(step, ((None, 0.0),), None, 0, payload))
    known = [answer(Message(step, ((None, 0.0),), None, 0)) is not None for step in steps]
    assert known == [False] + [True] * KEPT


@pytest.mark.parametrize("make", [
    lambda p: CoordinatePerturbations(Coordinates.dense({"w": p["w"].shape}), p),
    lambda p: RandomPerturbations(9, "gaussian", 1, p),
])  # fmt: skip
def test_a_query_is_far_smaller_than_the_parameters(make: Any) -> None:
    parameters = {"w": torch.zeros(10_000, dtype=torch.float64)}
    query = listed_queries(make(parameters), [1e-3], b"identity")[7]
    message = Message("0" * 32, ((query.displacement, query.offset),), query.key, 7)
    assert len(pickle.dumps((answer, message))) < 500 < 80_000 / 100


def test_a_network_is_refused(threads: Executor) -> None:
    model = torch.nn.Linear(2, 1)
    zo = dz.CGE(model, loss=torch.nn.functional.mse_loss, evaluator=dz.ExecutorEvaluator(threads))
    with pytest.raises(InvalidInputError, match=r"evaluates a dz.BlackBox.*torchrun"):
        zo.estimate(torch.ones(3, 2), torch.ones(3, 1))


@pytest.mark.parametrize("make", [dz.CGE, dz.RGE])
def test_what_cannot_be_combined(make: Any, threads: Executor) -> None:
    model = torch.nn.Linear(2, 1)
    with pytest.raises(InvalidInputError, match=r"executor=... is for black boxes.*torchrun"):
        make(model, loss=torch.nn.functional.mse_loss, executor=threads)
    with pytest.raises(InvalidInputError, match=r"either evaluator=... or executor=..., not both"):
        make(boxes.box(), executor=threads, evaluator=dz.SequentialEvaluator())
    with pytest.raises(InvalidInputError, match=r"policy and journal go with executor="):
        make(boxes.box(), policy=dz.QueryPolicy())


def test_bad_executors() -> None:
    with pytest.raises(InvalidInputError, match=r"concurrent.futures executor or a function that makes one"):
        dz.ExecutorEvaluator(8)
    with pytest.raises(QueryError, match="returned int; it must return a"):
        boxes.estimate(dz.ExecutorEvaluator(lambda: 8), boxes.box())


def test_an_executor_that_does_not_say_its_size() -> None:
    class Silent(boxes.FakeExecutor):
        def __init__(self) -> None:
            super().__init__()
            del self._max_workers

    with pytest.raises(QueryError, match=r"policy=dz.QueryPolicy\(in_flight="):
        boxes.estimate(boxes.evaluator(Silent()), boxes.box())
    limited = boxes.evaluator(Silent(), policy=dz.QueryPolicy(in_flight=2))
    assert boxes.same(boxes.estimate(limited, boxes.box()), boxes.estimate(dz.SequentialEvaluator(), boxes.box()))


def test_a_factory_s_pool_lives_until_it_is_closed() -> None:
    made: list[ThreadPoolExecutor] = []

    def factory() -> ThreadPoolExecutor:
        made.append(ThreadPoolExecutor(2))
        return made[-1]

    with dz.ExecutorEvaluator(factory) as evaluator:
        for _ in range(2):
            boxes.estimate(evaluator, boxes.box())
        made[0].submit(int).result()
    assert len(made) == 1
    with pytest.raises(RuntimeError, match="after shutdown"):
        made[0].submit(int)


def test_a_pool_that_was_given_stays_open_and_one_that_is_shut_is_named(threads: Executor) -> None:
    with dz.ExecutorEvaluator(threads) as evaluator:
        boxes.estimate(evaluator, boxes.box())
    assert threads.submit(int).result() == 0
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(QueryError, match=r"the base query: the executor could not run it, RuntimeError: .*shutdown"):
        boxes.estimate(dz.ExecutorEvaluator(closed), boxes.box())


def test_evaluation_changes_nothing(threads: Executor) -> None:
    box, before = boxes.box(), boxes.values()
    state = torch.get_rng_state()
    dz.RGE(box, queries=3, executor=threads).estimate()
    assert np.array_equal(box.values["w"], before["w"])
    assert torch.equal(box.values["v"], before["v"])
    assert torch.equal(torch.get_rng_state(), state)


def test_state_is_empty(threads: Executor) -> None:
    evaluator = dz.ExecutorEvaluator(threads)
    assert evaluator.state_dict() == {}
    evaluator.load_state_dict({})
