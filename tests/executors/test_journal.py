"""The journal: an answer is on disk before it is used, and nothing that happens to the process or the disk loses it."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import boxes
import pytest
import torch
from boxes import NAN, FakeExecutor, Faulty

import deepzero as dz
from deepzero.errors import InvalidInputError, JournalError, QueryError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queries.sqlite"


def estimate(path: Path, fn: Any, *batch: Any, **policy: Any) -> tuple[dz.Estimate, dz.ExecutorEvaluator]:
    with dz.QueryJournal(path) as journal:
        evaluator = boxes.evaluator(FakeExecutor(3), journal=journal, policy=dz.QueryPolicy(**policy))
        return boxes.estimate(evaluator, boxes.box(fn), *batch), evaluator


def count(path: Path) -> int:
    with dz.QueryJournal(path) as journal:
        return len(journal)


def fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Replay ------------------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_twice(path: Path) -> None:
    fn = Faulty({})
    first, _ = estimate(path, fn)
    again, evaluator = estimate(path, fn)
    assert fn.calls == 14
    assert boxes.same(again, first)
    assert evaluator.replayed == 14


def test_after_an_error_only_the_rest_is_asked(path: Path) -> None:
    fn = Faulty({6: ConnectionError("gone")})
    with pytest.raises(QueryError):
        estimate(path, fn, on_error="stop")
    known = count(path)
    assert 4 <= known <= 6
    found, evaluator = estimate(path, fn)
    assert evaluator.replayed == known
    assert fn.calls == 7 + 14 - known
    assert boxes.same(found, boxes.estimate(dz.SequentialEvaluator(), boxes.box()))


def test_what_was_skipped_stays_skipped(path: Path) -> None:
    """Otherwise the replay would go another way than the run, and pay for all that follows once more."""
    fn = Faulty({3: ConnectionError("gone"), 8: NAN})
    first, _ = estimate(path, fn, on_error="skip", on_nan="skip")
    again, evaluator = estimate(path, fn, on_error="skip", on_nan="skip")
    assert boxes.same(again, first)
    assert (evaluator.skipped, evaluator.replayed, fn.calls) == (2, 14, 14)


def test_what_is_no_number_is_not_kept(path: Path) -> None:
    fn = Faulty({5: NAN})
    found, _ = estimate(path, fn, on_nan="retry")
    assert fn.calls == 15
    with dz.QueryJournal(path) as journal:
        assert len(journal) == 14
        assert journal.lookup([fn.keys[5]])[fn.keys[5]] is not None
    assert boxes.same(found, boxes.estimate(dz.SequentialEvaluator(), boxes.box()))


def test_what_was_there_at_an_interrupt_is_kept(path: Path) -> None:
    """Answers that lie ready while one of them is being used."""

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with dz.QueryJournal(path) as journal:
        executor = FakeExecutor(3)
        evaluator = boxes.evaluator(executor, journal=journal, progress=interrupt)
        take = evaluator._clock.take

        def take_when_all_are_done(queue: Any, seconds: float) -> Any:
            while executor.step():
                pass
            return take(queue, seconds) if seconds > 0 else None

        evaluator._clock.take = take_when_all_are_done
        with pytest.raises(KeyboardInterrupt):
            boxes.estimate(evaluator, boxes.box())
        assert len(journal) == 3


def test_batches_are_told_apart(path: Path) -> None:
    found = [estimate(path, boxes.rough, scale)[0] for scale in (1.0, 2.0, 1.0)]
    expected = [boxes.estimate(dz.SequentialEvaluator(), boxes.box(), scale) for scale in (1.0, 2.0, 1.0)]
    assert all(boxes.same(a, b) for a, b in zip(found, expected, strict=True))


def test_steps_are_told_apart(path: Path) -> None:
    """A black box that draws anew at every call: a later step at the same parameters is another question."""
    fn = Faulty({})
    with dz.QueryJournal(path) as journal:
        evaluator = boxes.evaluator(FakeExecutor(1), journal=journal)
        zo = dz.CGE(boxes.box(fn), evaluator=evaluator)
        zo.backward()
        zo.backward()
    assert fn.calls == 28


@pytest.mark.parametrize("argument", [object(), [{1, 2}], torch.nn.Linear(1, 1)])
def test_arguments_must_have_a_key(path: Path, argument: Any) -> None:
    with pytest.raises(InvalidInputError, match="has no content key; with a journal, pass numbers, strings, arrays"):
        estimate(path, lambda *_: 0.0, argument)


def test_stacks_are_replayed_and_joined_as_before(path: Path) -> None:
    fn = Faulty(dict.fromkeys(range(40), boxes.rough_stacked) | {2: ConnectionError("gone")})
    keys = []
    for _ in range(2):
        with dz.QueryJournal(path) as journal:
            evaluator = boxes.evaluator(FakeExecutor(1), journal=journal, policy=dz.QueryPolicy(on_error="stop"))
            try:
                boxes.estimate(evaluator, boxes.box(fn, batched=4))
            except QueryError:
                keys = list(fn.keys)
    assert fn.keys[3] == keys[2]
    assert fn.calls == 3 + 3


# The file ----------------------------------------------------------------------------------------------------------------


def test_many_answers(path: Path) -> None:
    answers = {f"key {n}": n / 3 for n in range(3000)} | {"skipped": None}
    with dz.QueryJournal(path) as journal:
        journal.record(answers)
        journal.record({})
    with dz.QueryJournal(str(path)) as journal:
        assert journal.lookup([*answers, "unknown"]) == answers
        assert len(journal) == 3001


def test_every_answer_is_synced(path: Path) -> None:
    with dz.QueryJournal(path) as journal:
        settings = {
            name: journal._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2}


def test_a_second_user_is_turned_away(path: Path) -> None:
    with dz.QueryJournal(path) as journal:
        journal.record({"a": 1.0})
        with pytest.raises(JournalError, match=rf"{path.name} is in use by another process"):
            dz.QueryJournal(path)
        script = f"import deepzero as dz; dz.QueryJournal({str(path)!r})"
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert "is in use by another process" in other.stderr
        journal.record({"b": 2.0})
    assert count(path) == 2


def test_a_closed_journal(path: Path) -> None:
    journal = dz.QueryJournal(path)
    journal.close()
    with pytest.raises(JournalError, match="was closed"):
        journal.record({"a": 1.0})


def abandon(path: str) -> None:
    """Ends like a process that was killed: the log is neither merged nor removed."""
    journal = dz.QueryJournal(path)
    for n in range(200):
        journal.record({f"{n:032d}": n / 7})
    sys.stdout.flush()
    import os

    os._exit(0)


@pytest.fixture(scope="module")
def abandoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of 200 commits that are all in the log."""
    path = tmp_path_factory.mktemp("abandoned") / "queries.sqlite"
    process = boxes.processes().Process(target=abandon, args=(str(path),))
    process.start()
    process.join()
    assert path.with_name("queries.sqlite-wal").stat().st_size > 100_000
    return path


def copied(abandoned: Path, path: Path) -> Path:
    """A copy of the abandoned journal; the path of its log."""
    shutil.copy(abandoned, path)
    log = path.with_name(path.name + "-wal")
    shutil.copy(abandoned.with_name(abandoned.name + "-wal"), log)
    return log


def test_a_killed_process_leaves_all_its_answers(abandoned: Path, path: Path) -> None:
    copied(abandoned, path)
    with dz.QueryJournal(path) as journal:
        assert journal.lookup(f"{n:032d}" for n in range(200)) == {f"{n:032d}": n / 7 for n in range(200)}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.77, 0.9, 0.999])
@pytest.mark.parametrize("damage", ["cut", "torn"])
def test_a_log_that_ends_in_mid_record(abandoned: Path, path: Path, share: float, damage: str) -> None:
    """All answers before the damage are there, and no wrong one."""
    log = copied(abandoned, path)
    whole = log.read_bytes()
    keep = int(share * len(whole))
    log.write_bytes(whole[:keep] if damage == "cut" else whole[:keep] + bytes(len(whole) - keep))
    with dz.QueryJournal(path) as journal:
        found = journal.lookup(f"{n:032d}" for n in range(200))
        assert found == {f"{n:032d}": n / 7 for n in range(len(found))}
        assert len(found) >= int(190 * share) - 3
        journal.record({"more": 1.0})
    with dz.QueryJournal(path) as journal:
        assert len(journal) == len(found) + 1


@pytest.mark.parametrize("damage", ["cut", "overwritten", "text", "other database"])
def test_a_damaged_file_is_named_and_left_alone(path: Path, damage: str) -> None:
    with dz.QueryJournal(path) as journal:
        journal.record({f"{n:032d}": n / 7 for n in range(2000)})
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2 + 100])
    elif damage == "overwritten":
        path.write_bytes(whole[:20_000] + bytes(40_000) + whole[60_000:])
    elif damage == "text":
        path.write_text("not a database at all\n" * 200)
    else:
        path.unlink()
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE other (x)")
        other.commit()
        other.close()
    before = fingerprint(path)
    with pytest.raises(JournalError, match=rf"{path.name} is .*left as it (is|was)"):
        dz.QueryJournal(path)
    assert fingerprint(path) == before


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.touch()
    with dz.QueryJournal(path) as journal:
        assert len(journal) == 0


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"cannot be used \(unable to open database file\)"):
        dz.QueryJournal(tmp_path / "missing" / "queries.sqlite")


def test_a_full_disk_keeps_what_was_recorded(path: Path) -> None:
    fn = Faulty(dict.fromkeys(range(2000), lambda *_: 0.5))
    fn_of_all = lambda params, _: fn(params)  # noqa: E731
    with dz.QueryJournal(path) as journal:
        journal.record({f"{n:032d}": 0.0 for n in range(60)})
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count={pages}")
        zo = dz.CGE(boxes.box(fn_of_all), evaluator=boxes.evaluator(FakeExecutor(1), journal=journal))
        with pytest.raises(JournalError, match=r"or disk is full.*every answer recorded so far is kept") as caught:
            list(map(zo.backward, range(100)))
        assert str(path) in str(caught.value)
        known = len(journal)
    assert known == 60 + fn.calls - 1
    with dz.QueryJournal(path) as journal:
        assert len(journal) == known
        assert set(fn.keys[:-1]) == set(journal.lookup(fn.keys))
