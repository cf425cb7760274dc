"""One journal, several threads; and forks, from which what the parent records is safe."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import deepzero as dz
from deepzero.errors import JournalError

THREADS, EACH = 6, 20
fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queries.sqlite"


def kept(path: Path) -> int:
    with dz.QueryJournal(path) as journal:
        return len(journal)


def test_threads_share_a_journal(path: Path) -> None:
    """Every answer that ``record`` confirmed is there, and each thread reads the others' answers at once."""
    with dz.QueryJournal(path) as journal:
        start = threading.Barrier(THREADS)

        def work(number: int) -> int:
            start.wait()
            for n in range(EACH):
                journal.record({f"{number}-{n}": float(n)})
                assert journal.lookup([f"{number}-{n}"]) == {f"{number}-{n}": n}
            return len(journal)

        with ThreadPoolExecutor(THREADS) as pool:
            assert max(pool.map(work, range(THREADS))) == THREADS * EACH
    assert kept(path) == THREADS * EACH


def in_child(action: Callable[[], None]) -> int:
    """The exit status of a forked child: 0 if ``action`` comes to its end, 1 if it raises."""
    child = multiprocessing.get_context("fork").Process(target=action)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


@fork
@pytest.mark.parametrize("use", ["record", "lookup", "len"])
def test_a_forked_child_is_turned_away(path: Path, use: str) -> None:
    with dz.QueryJournal(path) as journal:
        journal.record({"before": 1.0})

        def child() -> None:
            action = {
                "record": lambda: journal.record({"child": 2.0}),
                "lookup": lambda: journal.lookup(["before"]),
                "len": lambda: len(journal),
            }[use]
            with pytest.raises(JournalError, match=r"opened by process \d+, and this is process \d+, forked from it"):
                action()

        assert in_child(child) == 0
        journal.record({"after": 3.0})
    assert kept(path) == 2


@fork
@pytest.mark.parametrize("end", ["close", "collect"])
def test_the_end_of_a_child_takes_nothing_from_the_parent(path: Path, end: str) -> None:
    """A child that closed its copy of the connection would delete the log to which the parent goes on writing.

    The parent is killed at last: only what is in the log by its name is there afterwards.
    """

    def parent() -> None:
        journal = dz.QueryJournal(path)
        journal.record({f"before {n}": 1.0 for n in range(10)})
        pid = os.fork()
        if pid == 0:
            if end == "close":
                journal.close()
            del journal
            gc.collect()
            os._exit(0)
        os.waitpid(pid, 0)
        journal.record({f"after {n}": 2.0 for n in range(10)})
        os._exit(0)

    assert in_child(parent) == 0
    assert kept(path) == 20


@fork
def test_a_child_may_open_the_journal_once_the_parent_has_closed_it(path: Path) -> None:
    journal = dz.QueryJournal(path)
    journal.record({"parent": 1.0})
    journal.close()

    def child() -> None:
        with dz.QueryJournal(path) as own:
            own.record({"child": 2.0})

    assert in_child(child) == 0
    assert kept(path) == 2
