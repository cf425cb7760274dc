import os
import signal
import threading

import pytest

from deepzero.training import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_block_goes_on(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
    assert signal.getsignal(number) is before


def test_a_second_interrupt_acts_as_usual():
    def interrupt_twice():
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()


def test_a_time_limit_is_a_reason():
    with StopRequest(max_seconds=1e-9) as stop:
        assert stop.reason == "the time limit of 1e-09 s"
    with StopRequest(max_seconds=3600) as stop:
        assert stop.reason is None


def test_other_threads_leave_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def run():
        with StopRequest() as stop:
            seen.append((stop.reason, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
