import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from threads_team import together

from deepzero.team import Team
from deepzero.training import SharedStop, StoppedError, StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_block_goes_on(number: Any) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
    assert signal.getsignal(number) is before


def test_a_second_interrupt_acts_as_usual() -> None:
    def interrupt_twice() -> None:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()


def test_a_request_around_another_hears_of_a_signal_too() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as outer:
        with StopRequest() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.reason == "SIGTERM"
        assert outer.reason == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) is before  # the next one acts as usual
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_time_limit_is_a_reason() -> None:
    with StopRequest(max_seconds=1e-9) as stop:
        assert stop.reason == "the time limit of 1e-09 s"
    with StopRequest(max_seconds=3600) as stop:
        assert stop.reason is None


def test_what_remains_of_a_time_limit_never_runs_out_to_nothing() -> None:
    with StopRequest() as stop:
        assert stop.remaining is None
    with StopRequest(max_seconds=100) as stop:
        assert 90 < stop.remaining <= 100
    with StopRequest(max_seconds=1e-9) as stop:
        assert stop.remaining == 1e-3


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def run() -> None:
        with StopRequest() as stop:
            seen.append((stop.reason, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def test_where_signals_come_in_pairs_the_second_is_noted_too() -> None:
    with StopRequest(once=False) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGTERM"


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ([None, None, None], None),
        ([None, "SIGTERM", None], "SIGTERM"),
        (["the time limit of 3 s", None, None], "the time limit of 3 s"),
        ([None, "SIGINT", "the time limit of 3 s"], "SIGINT"),
    ],
)
def test_a_team_stops_if_any_of_it_is_asked_to(reasons: list[Any], expected: str | None) -> None:
    def agreed(team: Team) -> str | None:
        return SharedStop(SimpleNamespace(reason=reasons[team.rank]), team).agreed()

    assert together(3, agreed) == [expected] * 3
    assert [SharedStop(SimpleNamespace(reason=reason), Team()).agreed() for reason in reasons] == reasons


@pytest.mark.parametrize(
    ("number", "again"),
    [(signal.SIGINT, "press Ctrl-C again to stop now"), (signal.SIGTERM, "a second one stops it now")],
)
def test_a_signal_is_answered_at_once(number: Any, again: str, caplog: pytest.LogCaptureFixture) -> None:
    with StopRequest() as outer, StopRequest():
        os.kill(os.getpid(), number)
        assert caplog.messages == [f"{number.name}: finishing this step, then saving; {again}"]
        assert outer.reason == number.name
    with StopRequest(once=False):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert caplog.messages[1:] == ["SIGINT: finishing this step, then saving"]


def test_before_there_is_anything_to_save_signals_act_as_usual() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest(waits=True) as stop:
        assert signal.getsignal(signal.SIGINT) is before
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        SharedStop(stop, Team()).begin()
        stop.begin()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGINT"
        stop.begin()  # a second interrupt still acts as usual
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_request_that_begins_after_the_signal_hears_of_it(caplog: pytest.LogCaptureFixture) -> None:
    """A cell of a reproduction waits for its first step; the whole was asked to stop before."""
    with StopRequest() as outer, StopRequest(waits=True) as inner:
        os.kill(os.getpid(), signal.SIGTERM)
        inner.begin()
        assert inner.reason == outer.reason == "SIGTERM"
        with StopRequest() as third:
            assert third.reason == "SIGTERM"
    with StopRequest() as later:
        assert later.reason is None
    with StopRequest(max_seconds=1e-9), StopRequest() as within:
        assert within.reason == "the time limit of 1e-09 s"


def test_outside_of_its_block_a_request_notes_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    StopRequest().begin()
    assert signal.getsignal(signal.SIGINT) is before


def test_threads_do_not_hear_of_the_requests_of_others() -> None:
    with StopRequest(max_seconds=1e-9), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: StopRequest().__enter__().reason).result() is None


def test_orphans_are_asked_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a process is asked itself: the agent that would start it again, or pass a signal on, is gone."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    started = Team()
    assert SharedStop(StopRequest(), started).agreed() is None
    monkeypatch.setattr(os, "getppid", lambda: 1 << 30)
    assert SharedStop(StopRequest(), started).agreed() == "the end of the torchrun agent that started it"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert SharedStop(StopRequest(), Team()).agreed() is None, "without torchrun, a parent may end"

    def agreed(team: Team) -> str | None:
        team._agent = 5 if team.rank == 2 else None
        return SharedStop(StopRequest(), team).agreed()

    assert together(3, agreed) == ["the end of the torchrun agent that started it"] * 3


def test_requests_inside_of_each_other_end_in_any_order() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(once=False) as outer:
        with StopRequest(once=False) as inner:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert (inner.reason, outer.reason) == (None, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_nothing_but_results_is_kept_the_first_signal_ends_the_work(number: Any) -> None:
    before = signal.getsignal(number)

    def work() -> None:
        with StopRequest(at_once=True) as stop, stop.saving():
            os.kill(os.getpid(), number)

    with pytest.raises(StoppedError, match=f"^{number.name}$"):
        work()
    assert signal.getsignal(number) is before


def test_nothing_that_looks_for_another_way_after_a_failure_takes_a_stop_for_one() -> None:
    def work() -> None:
        with StopRequest(at_once=True):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except Exception:
                pytest.fail("it went another way")

    with pytest.raises(StoppedError):
        work()


def test_from_its_beginning_on_work_is_finished_and_saved_before_the_stop() -> None:
    done: list[str] = []

    def work() -> None:
        with StopRequest(at_once=True) as stop:
            with stop.saving():
                stop.begin()
                os.kill(os.getpid(), signal.SIGTERM)
                done.append(str(stop.reason))
            done.append("after")

    with pytest.raises(StoppedError, match="SIGTERM"):
        work()
    assert done == ["SIGTERM"]


def test_after_what_was_saved_the_first_signal_acts_at_once_again() -> None:
    def work() -> None:
        with StopRequest(at_once=True) as stop:
            with stop.saving():
                stop.begin()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(StoppedError):
        work()


def test_a_time_limit_ends_nothing_at_once() -> None:
    with StopRequest(at_once=True, max_seconds=1e-9) as stop, stop.saving():
        assert stop.reason == "the time limit of 1e-09 s"
