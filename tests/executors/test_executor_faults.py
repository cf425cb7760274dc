"""Whatever goes wrong: the same numbers as without it, a direction that counts 0, or a clear error."""

from __future__ import annotations

import functools
import itertools
import logging
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boxes
import pytest
import torch
from boxes import NAN, FakeExecutor, Faulty

import deepzero as dz
from deepzero.errors import InvalidInputError, NonFiniteLossError, QueryError
from deepzero.executors.policy import RateLimit

EXPECTED = functools.cache(lambda: boxes.estimate(dz.SequentialEvaluator(), boxes.box()))
ERROR = ConnectionError("the line is dead")


def run(faults: dict[int, Any], **policy: Any) -> tuple[dz.Estimate, Faulty, dz.ExecutorEvaluator]:
    """One estimate on one fake worker, so that calls are numbered in order."""
    fn = Faulty(faults)
    evaluator = boxes.evaluator(FakeExecutor(1), policy=dz.QueryPolicy(**policy))
    return boxes.estimate(evaluator, boxes.box(fn)), fn, evaluator


# The black box raises, or returns what is not a number -------------------------------------------------------------------


@pytest.mark.parametrize("fault", [ERROR, NAN, float("inf")])
@pytest.mark.parametrize("at", [0, 1, 7, 13])
def test_a_retry_makes_good(fault: Any, at: int) -> None:
    found, fn, _ = run({at: fault}, on_error="retry", on_nan="retry")
    assert boxes.same(found, EXPECTED())
    assert fn.calls == 15


def test_a_retry_after_an_error_is_the_same_question_and_after_nan_another() -> None:
    _, fn, _ = run({0: ERROR, 1: NAN, 2: NAN}, on_nan="retry", backoff=0)
    first = fn.keys[0]
    assert fn.keys[:4] == [first, first, f"{first}-1", f"{first}-2"]
    assert len(set(fn.keys)) == 14 + 2


@pytest.mark.parametrize(
    ("fault", "policy"),
    [(ERROR, {"on_error": "skip"}), (NAN, {"on_nan": "skip"}), (ERROR, {"exhausted": "skip", "retries": 0})],
)
def test_a_skipped_direction_counts_zero(fault: Any, policy: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="deepzero"):
        found, _, evaluator = run({3: fault}, **policy)
    expected = EXPECTED().gradients["w"].clone()
    expected.view(-1)[2] = 0
    assert torch.equal(found.gradients["w"], expected)
    assert torch.equal(found.gradients["v"], EXPECTED().gradients["v"])
    assert evaluator.skipped == 1
    assert "w[2] moved by 0.5" in caplog.text
    assert "skipped" in caplog.text


def test_half_of_a_central_difference_counts_zero_as_well() -> None:
    evaluator = boxes.evaluator(FakeExecutor(1), policy=dz.QueryPolicy(on_error="skip"))
    found = boxes.estimate(evaluator, boxes.box(Faulty({3: ERROR})), stencil=dz.CENTRAL)
    assert found.gradients["w"].view(-1)[2] == 0
    assert evaluator.skipped == 1


@pytest.mark.parametrize("policy", [{"on_error": "stop"}, {"on_error": "retry", "retries": 0}])
def test_stop_says_which_query_and_why(policy: Any) -> None:
    with pytest.raises(
        QueryError, match=r"w\[2\] moved by 0.5, try 1: the black box raised ConnectionError: the line"
    ) as e:
        run({3: ERROR}, **policy)
    assert "boxes.py" in e.value.__notes__[0]


def test_retries_are_used_up() -> None:
    with pytest.raises(QueryError, match=r"w\[2\] moved by 0.5, try 4"):
        run({3: ERROR, 4: ERROR, 5: ERROR, 6: ERROR}, backoff=0)


@pytest.mark.parametrize(("fault", "error"), [(ERROR, QueryError), (NAN, NonFiniteLossError)])
def test_the_base_query_is_never_skipped(fault: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="the base query, try 1"):
        run({0: fault}, on_error="skip", on_nan="skip", exhausted="skip")


def test_nan_stops_by_default() -> None:
    with pytest.raises(NonFiniteLossError, match=r"w\[4\] moved by 0.5, try 1: the black box returned NaN"):
        run({5: NAN})


def test_an_exception_that_does_not_survive_pickling(tmp_path: Path) -> None:
    with (
        boxes.process_pool(1) as pool,
        pytest.raises(QueryError, match="raised StrangeError: 500 out of order") as caught,
    ):
        boxes.estimate(dz.ExecutorEvaluator(pool, policy=dz.QueryPolicy(retries=0)), boxes.box(boxes.raises_strangely))
    assert "raises_strangely" in caught.value.__notes__[0]


def test_what_cannot_be_pickled_is_named() -> None:
    with (
        boxes.process_pool(1) as pool,
        pytest.raises(QueryError, match="define fn and what it uses at the top of a module"),
    ):
        boxes.estimate(dz.ExecutorEvaluator(pool, policy=dz.QueryPolicy(retries=0)), boxes.box(lambda p: 0.0))


@pytest.mark.parametrize("answer", ["a word", [1.0, 2.0], None])
def test_an_answer_that_is_not_one_number(answer: Any) -> None:
    with pytest.raises(QueryError, match="fn must return one number"):
        run({2: answer}, retries=0)


# Stacks ------------------------------------------------------------------------------------------------------------------


def stacked(faults: dict[int, Any], **policy: Any) -> tuple[dz.Estimate, Faulty, dz.ExecutorEvaluator]:
    fn = Faulty(faults)
    for n in range(30):
        fn.faults.setdefault(n, boxes.rough_stacked)
    evaluator = boxes.evaluator(FakeExecutor(1), policy=dz.QueryPolicy(backoff=0, **policy))
    return boxes.estimate(evaluator, boxes.box(fn, batched=4)), fn, evaluator


def test_of_a_stack_only_what_failed_is_asked_again() -> None:
    sizes = []

    def partly(params: Any) -> list[float]:
        sizes.append(len(params["w"]))
        losses = boxes.rough_stacked(params)
        return [losses[0], NAN, losses[2], NAN]

    def rest(params: Any) -> list[float]:
        sizes.append(len(params["w"]))
        return boxes.rough_stacked(params)

    found, fn, _ = stacked({1: partly, 2: rest}, on_nan="retry")
    assert boxes.same(found, EXPECTED())
    assert sizes == [4, 2]
    assert fn.calls == 1 + 4 + 1  # the base, thirteen directions by four, the rest of one stack


def test_a_stack_that_raises_is_skipped_whole() -> None:
    found, _, evaluator = stacked({1: ERROR}, on_error="skip")
    assert found.gradients["w"].view(-1)[:4].tolist() == [0, 0, 0, 0]
    assert evaluator.skipped == 4


@pytest.mark.parametrize("answer", [[1.0], 1.0, [1.0] * 5])
def test_a_stack_has_as_many_answers_as_sets(answer: Any) -> None:
    with pytest.raises(QueryError, match="fn must return 4 losses, one for each"):
        stacked({1: answer}, on_error="stop")


# Hanging -----------------------------------------------------------------------------------------------------------------


def test_a_hanging_query_is_answered_elsewhere() -> None:
    executor = FakeExecutor(3, hang=lambda n: n == 4)
    evaluator = boxes.evaluator(executor, policy=dz.QueryPolicy(timeout=60))
    assert boxes.same(boxes.estimate(evaluator, boxes.box()), EXPECTED())
    assert 60 <= evaluator._clock.now() < 62
    assert executor.most <= 3


def test_a_worker_that_hangs_is_not_counted_on_in_the_next_step() -> None:
    executor = FakeExecutor(2, hang=lambda n: n == 0)
    evaluator = boxes.evaluator(executor, policy=dz.QueryPolicy(timeout=60))
    for _ in range(2):
        assert boxes.same(boxes.estimate(evaluator, boxes.box()), EXPECTED())
    assert executor.most == 2


def test_if_all_hang_there_must_be_a_factory() -> None:
    evaluator = boxes.evaluator(FakeExecutor(2, hang=lambda n: n < 2), policy=dz.QueryPolicy(timeout=60))
    with pytest.raises(QueryError, match=r"all 2 workers hang .* 60 s; .*executor=lambda: ProcessPoolExecutor"):
        boxes.estimate(evaluator, boxes.box())


def test_if_all_hang_a_new_pool_is_made() -> None:
    pools = FakeExecutor(2, hang=lambda n: n >= 6), FakeExecutor(2)
    evaluator = boxes.evaluator(*pools, remade=True, policy=dz.QueryPolicy(timeout=60))
    assert boxes.same(boxes.estimate(evaluator, boxes.box()), EXPECTED())
    assert pools[0].broken
    assert [m.payload is not None for m in pools[1].messages[:3]] == [True, True, False]


def test_a_query_that_always_hangs() -> None:
    pools = [FakeExecutor(2, hang=lambda n: True) for _ in range(9)]
    evaluator = boxes.evaluator(*pools, remade=True, policy=dz.QueryPolicy(timeout=60, retries=2))
    with pytest.raises(QueryError, match=r"the base query, try 3: no answer within 60 s"):
        boxes.estimate(evaluator, boxes.box())


def test_late_answers_are_welcome() -> None:
    """Call 4 hangs for 90 s; after 60 s it is given up, but its retry has to wait for far longer."""
    executor = FakeExecutor(2)
    policy = dz.QueryPolicy(timeout=60, backoff=1000, backoff_limit=1000)
    evaluator = boxes.evaluator(executor, policy=policy)
    executor._hang = lambda n: n == 4 and executor.clock.time < 90
    assert boxes.same(boxes.estimate(evaluator, boxes.box()), EXPECTED())
    assert len(executor.messages) == 14
    assert 90 <= evaluator._clock.now() < 100


@pytest.mark.parametrize("fault", [ERROR, NAN])
def test_a_late_failure_does_not_add_a_retry(fault: Any) -> None:
    executor, fn = FakeExecutor(2), Faulty({13: fault})
    evaluator = boxes.evaluator(executor, policy=dz.QueryPolicy(timeout=60, backoff=1000, backoff_limit=1000))
    executor._hang = lambda n: n == 4 and executor.clock.time < 90
    assert boxes.same(boxes.estimate(evaluator, boxes.box(fn)), EXPECTED())
    assert fn.calls == 15


def test_an_executor_that_refuses_a_call() -> None:
    class Refusing(FakeExecutor):
        def submit(self, fn: Any, message: Any) -> Any:
            raise TypeError("cannot pickle 'socket' object")

    with pytest.raises(
        QueryError, match=r"the base query: the executor could not run it, TypeError: .*top of a module"
    ):
        boxes.estimate(boxes.evaluator(Refusing()), boxes.box())


def test_hanging_processes_are_replaced(tmp_path: Path) -> None:
    fn = functools.partial(boxes.hangs_once, folder=str(tmp_path), every=1)
    with dz.ExecutorEvaluator(
        lambda: boxes.process_pool(1), policy=dz.QueryPolicy(timeout=1.5, backoff=0)
    ) as evaluator:
        assert boxes.same(boxes.estimate(evaluator, boxes.box(fn)), EXPECTED())


# Lost workers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 5, 13])
def test_a_broken_executor_is_made_anew(at: int) -> None:
    pools = FakeExecutor(3, breaks=at), FakeExecutor(3)
    evaluator = boxes.evaluator(*pools, remade=True)
    assert boxes.same(boxes.estimate(evaluator, boxes.box()), EXPECTED())
    assert pools[1].messages


def test_a_broken_executor_without_a_factory() -> None:
    evaluator = boxes.evaluator(FakeExecutor(3, breaks=5))
    with pytest.raises(QueryError, match=r"broke down .*executor=lambda: ProcessPoolExecutor"):
        boxes.estimate(evaluator, boxes.box())


def test_executors_that_always_break() -> None:
    pools = [FakeExecutor(1, breaks=0) for _ in range(9)]
    evaluator = boxes.evaluator(*pools, remade=True, policy=dz.QueryPolicy(backoff=0))
    with pytest.raises(QueryError, match="the base query, try 4: its worker was lost"):
        boxes.estimate(evaluator, boxes.box())


def test_a_killed_worker_process(tmp_path: Path) -> None:
    at = float(boxes.values()["w"][0, 0]) + 0.5
    fn = functools.partial(boxes.dies_once, mark=str(tmp_path / "died"), at=at)
    with dz.ExecutorEvaluator(boxes.process_pool, policy=dz.QueryPolicy(backoff=0)) as evaluator:
        found = boxes.estimate(evaluator, boxes.box(fn))
    assert (tmp_path / "died").exists()
    assert boxes.same(found, EXPECTED())


def test_a_killed_worker_process_without_a_factory() -> None:
    with boxes.process_pool() as pool, pytest.raises(QueryError, match=r"broke down \(BrokenProcessPool"):
        boxes.estimate(dz.ExecutorEvaluator(pool), boxes.box(boxes.always_dies))


# Limits ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "workers", "timeout", "most"), [
    (None, 3, None, 6), (None, 3, 60.0, 3), (2, 3, None, 2), (9, 3, None, 9), (9, 3, 60.0, 3), (1, 3, None, 1),
])  # fmt: skip
def test_calls_in_flight(asked: int | None, workers: int, timeout: float | None, most: int) -> None:
    executor = FakeExecutor(workers)
    policy = dz.QueryPolicy(in_flight=asked, timeout=timeout)
    evaluator = boxes.evaluator(executor, ahead=True, policy=policy)
    boxes.estimate(evaluator, boxes.box())
    assert executor.most == most


def test_calls_a_second_over_two_steps() -> None:
    executor = FakeExecutor(8)
    evaluator = boxes.evaluator(executor, policy=dz.QueryPolicy(per_second=4))
    for _ in range(2):
        boxes.estimate(evaluator, boxes.box())
    starts = executor.starts
    assert len(starts) == 28
    assert all(later - earlier >= 0.25 for earlier, later in itertools.pairwise(starts))
    assert starts[-1] < 27 * 0.26


def test_retries_wait_longer_and_longer() -> None:
    policy = dz.QueryPolicy(backoff=1.0, backoff_limit=5.0, seed=3)
    delays = [[policy.delay(attempt, place=place) for attempt in (1, 2, 3, 4, 200)] for place in range(50)]
    for attempt, longest in enumerate((1.0, 2.0, 4.0, 5.0, 5.0)):
        column = [row[attempt] for row in delays]
        assert longest / 2 <= min(column) < 0.6 * longest
        assert 0.9 * longest < max(column) <= longest
    assert delays[7][2] == dz.QueryPolicy(backoff=1.0, backoff_limit=5.0, seed=3).delay(3, place=7)


def test_a_retry_waits_and_the_others_go_on() -> None:
    fn, executor = Faulty({0: ERROR}), FakeExecutor(1)
    evaluator = boxes.evaluator(executor, policy=dz.QueryPolicy(backoff=100, backoff_limit=100))
    boxes.estimate(evaluator, boxes.box(fn))
    assert [m.points[0][0] is None for m in executor.messages] == [True] + [False] * 13 + [True]
    assert 50 <= executor.starts[-1] <= 102


def test_no_limit_on_the_rate() -> None:
    rate = RateLimit(None)
    rate.start(3.0)
    assert rate.ready_at() == 3.0


@pytest.mark.parametrize(("options", "message"), [
    ({"timeout": 0}, "timeout must be a finite number above 0"),
    ({"per_second": -1}, "per_second must be a finite number above 0"),
    ({"in_flight": 0}, "in_flight must be an integer of at least 1"),
    ({"retries": -1}, "retries must be an integer of at least 0"),
    ({"backoff": -0.1}, "backoff must be a finite number of seconds, 0 or more"),
    ({"backoff_limit": NAN}, "backoff_limit must be a finite number of seconds"),
    ({"on_error": "ignore"}, "on_error must be one of retry, skip, stop"),
    ({"on_nan": "zero"}, "on_nan must be one of retry, skip, stop"),
    ({"exhausted": "retry"}, "exhausted must be one of skip, stop"),
])  # fmt: skip
def test_bad_policies(options: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dz.QueryPolicy(**options)


# Progress and interruption -----------------------------------------------------------------------------------------------


def test_progress_counts_queries() -> None:
    seen: list[tuple[int, int]] = []
    evaluator = boxes.evaluator(FakeExecutor(1), progress=lambda done, total: seen.append((done, total)))
    boxes.estimate(evaluator, boxes.box())
    assert seen == [(n, 14) for n in range(1, 15)]


def test_an_interrupt_cancels_what_is_pending() -> None:
    calls, cancelled = 0, threading.Event()

    def second_waits(params: Any) -> float:
        nonlocal calls
        calls += 1
        if calls > 1:
            cancelled.wait(100)
        return boxes.rough(params)

    def interrupt(done: int, total: int) -> None:
        signal.raise_signal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        evaluator = dz.ExecutorEvaluator(pool, policy=dz.QueryPolicy(in_flight=14), progress=interrupt)
        with pytest.raises(KeyboardInterrupt):
            boxes.estimate(evaluator, boxes.box(second_waits))
        cancelled.set()
    assert calls <= 2


# The key -----------------------------------------------------------------------------------------------------------------


def test_every_query_has_its_own_key_everywhere() -> None:
    assert dz.query_key() is None
    keys = []
    for workers in (1, 3):
        fn = Faulty({})
        boxes.estimate(boxes.evaluator(FakeExecutor(workers)), boxes.box(fn))
        keys.append(fn.keys)
    assert len(set(keys[0])) == 14
    assert set(keys[0]) == set(keys[1])
    with boxes.process_pool(1) as pool:
        boxes.estimate(dz.ExecutorEvaluator(pool), boxes.box(boxes.keyed))


def test_keys_tell_steps_batches_and_values_apart() -> None:
    def key(batch: tuple[Any, ...] = (), seed: int = 0, shift: float = 0.0) -> str:
        fn = Faulty({0: lambda *_: 0.0})
        fn_of_all = lambda params, *_: fn(params)  # noqa: E731
        black_box = boxes.box(fn_of_all)
        black_box.values["w"] += shift
        evaluator = boxes.evaluator(FakeExecutor(1))
        dz.CGE(black_box, evaluator=evaluator, seed=seed, sparsity=dz.Coordinates({})).estimate(*batch)
        return fn.keys[0]

    arguments = [
        (), (1,), (1.0,), ("1",), (b"1",), (True,), (None,), ([1],), (1, 1), ([1, 1],), ({"a": 1},), ({"a": [1]},),
        (torch.ones(2),), (torch.ones(2, dtype=torch.float64),), (torch.ones(2, 1),), (torch.ones(2).numpy(),),
    ]  # fmt: skip
    keys = [key(batch) for batch in arguments] + [key(seed=1), key(shift=1e-12)]
    assert len(set(keys)) == len(keys)
    assert key(({"a": torch.ones(3)},)) == key(({"a": torch.ones(3)},))


def test_arguments_without_a_key() -> None:
    fn = Faulty({})
    evaluator = boxes.evaluator(FakeExecutor(1))
    boxes.estimate(evaluator, boxes.box(lambda params, _: fn(params)), object())
    assert set(fn.keys) == {None}


# All at once -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [None, 3])
@pytest.mark.parametrize("seed", range(10))
def test_everything_goes_wrong_now_and_then(seed: int, batched: int | None, tmp_path: Path) -> None:
    """Errors, NaN, hanging calls, broken pools, answers in any order: the same numbers, each of them in the journal."""
    draw = random.Random(seed)
    right = boxes.rough if batched is None else boxes.rough_stacked
    wrong: list[Any] = [ERROR, NAN if batched is None else lambda params: [NAN] * len(params["w"])]
    fn = Faulty({n: draw.choice(wrong) if draw.random() < 0.2 else right for n in range(3000)})
    pools = [
        FakeExecutor(3, seed=n, breaks=draw.randint(5, 60), hang=lambda n: random.Random(n).random() < 0.1)
        for n in range(200)
    ]
    policy = dz.QueryPolicy(timeout=60, retries=30, on_nan="retry", seed=seed)
    with dz.QueryJournal(tmp_path / "queries.sqlite") as journal:
        evaluator = boxes.evaluator(*pools, remade=True, policy=policy, journal=journal)
        found = boxes.estimate(evaluator, boxes.box(fn, batched), stencil=dz.CENTRAL)
        assert len(journal) == 1 + 2 * 13
    assert boxes.same(found, boxes.estimate(dz.SequentialEvaluator(), boxes.box(), stencil=dz.CENTRAL))
    assert max(pool.most for pool in pools) <= 3
