"""A damaged journal never answers wrongly: a row whose bits have changed is named, and none of the file is used."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

import deepzero as dz
from deepzero.errors import InvalidInputError, JournalError
from deepzero.executors import journal_file

ANSWERS: dict[str, float | None] = {f"{n:032x}": n / 7 - 20 for n in range(300)} | {"f" * 32: None, "e" * 32: -0.0}
FLIPS = 200


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a journal that was closed."""
    path = tmp_path_factory.mktemp("whole") / "queries.sqlite"
    with dz.QueryJournal(path, problem="p") as journal:
        journal.record(ANSWERS)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queries.sqlite"


def found(path: Path) -> dict[str, float | None] | None:
    """What the journal says of all keys; None where it refuses."""
    try:
        with dz.QueryJournal(path, problem="p") as journal:
            return journal.lookup(ANSWERS)
    except JournalError as error:
        if str(path) not in str(error):
            raise
        return None


def test_the_whole_journal_answers_bit_for_bit(whole: bytes, path: Path) -> None:
    path.write_bytes(whole)
    answers = found(path)
    assert answers is not None
    assert {key: repr(loss) for key, loss in answers.items()} == {key: repr(loss) for key, loss in ANSWERS.items()}


def test_flipped_bits_give_no_wrong_answer_and_lose_none_silently(whole: bytes, path: Path) -> None:
    """Bits of unused space and of SQLite's own counters may flip unseen; then every answer is still right."""
    draw = random.Random(0)
    refused = 0
    for _ in range(FLIPS):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        answers = found(path)
        refused += answers is None
        assert answers is None or answers == ANSWERS
        path.unlink()
    assert refused > FLIPS / 3


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a journal whose process was killed: most of its answers are in the log."""
    path = tmp_path_factory.mktemp("killed") / "queries.sqlite"
    journal = dz.QueryJournal(path, problem="p")
    for key, answer in ANSWERS.items():
        journal.record({key: answer})
    files = {file.name.removeprefix(path.name): file.read_bytes() for file in path.parent.iterdir()}
    journal.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing but the journal is left when closed"
    return files


def put(files: dict[str, bytes], path: Path) -> None:
    for suffix, data in files.items():
        path.with_name(path.name + suffix).write_bytes(data)


def test_a_killed_journal_has_all_its_answers(killed: dict[str, bytes], path: Path) -> None:
    put(killed, path)
    assert found(path) == ANSWERS


@pytest.mark.parametrize("kind", ["flip", "cut", "zeros"])
def test_a_damaged_log_loses_no_answer_silently(killed: dict[str, bytes], path: Path, kind: str) -> None:
    """SQLite takes the first damaged page for the end of the log and drops the rest; the count tells."""
    draw, refused = random.Random(1), 0
    for _ in range(FLIPS // 5):
        log = bytearray(killed["-wal"])
        place = draw.randrange(len(log))
        if kind == "flip":
            log[place] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del log[place:]
        else:
            log[place : place + 512] = bytes(len(log[place : place + 512]))
        put({**killed, "-wal": bytes(log)}, path)
        answers = found(path)
        refused += answers is None
        assert answers is None or answers == ANSWERS
        for file in path.parent.iterdir():
            file.unlink()
    assert refused > FLIPS / 20


def test_missing_answers_are_counted_and_may_be_paid_for_again(killed: dict[str, bytes], path: Path) -> None:
    put({**killed, "-wal": killed["-wal"][: len(killed["-wal"]) // 2]}, path)
    with pytest.raises(
        JournalError, match=r"\d+ of its 302 answers are gone, because it or its log .*delete queries.sqlite-count"
    ):
        dz.QueryJournal(path, problem="p")
    path.with_name("queries.sqlite-count").unlink()
    with dz.QueryJournal(path, problem="p") as journal:
        assert 0 < len(journal) < len(ANSWERS)


def test_a_file_that_is_gone_is_missed_while_its_count_is_there(killed: dict[str, bytes], path: Path) -> None:
    put({"-count": killed["-count"]}, path)
    with pytest.raises(JournalError, match=r"302 of its 302 answers are gone"):
        dz.QueryJournal(path, problem="p")
    path.touch()
    with pytest.raises(JournalError, match=r"302 of its 302 answers are gone"):
        dz.QueryJournal(path, problem="p")


def test_a_damaged_count_is_told(killed: dict[str, bytes], path: Path) -> None:
    for count in (killed["-count"][:-1], killed["-count"] + b"x", bytes(16)):
        put({**killed, "-count": count}, path)
        with pytest.raises(JournalError, match=r"queries.sqlite-count, the number of its answers; delete it"):
            dz.QueryJournal(path, problem="p")
    put({**killed, "-count": b""}, path)
    assert found(path) == ANSWERS, "killed before the first number was written"


def test_answers_recorded_again_count_once(path: Path) -> None:
    with dz.QueryJournal(path) as journal:
        for _ in range(3):
            journal.record({"a": 1.0, "b": 2.0})
        assert journal_file.AnswerCount.noted(path) == 2


@pytest.mark.parametrize("part", ["key", "loss", "checksum"])
def test_a_damaged_row_is_named(whole: bytes, path: Path, part: str) -> None:
    path.write_bytes(whole)
    key = f"{17:032x}"
    change = {
        "key": f"UPDATE answers SET key = '{'0' * 30}zz' WHERE key = '{key}'",
        "loss": f"UPDATE answers SET loss = x'000000000000f03f' WHERE key = '{key}'",
        "checksum": f"UPDATE answers SET checksum = x'0011223344556677' WHERE key = '{key}'",
    }[part]
    with sqlite3.connect(path) as db:
        db.execute(change)
    db.close()
    named = "0" * 30 + "zz" if part == "key" else key
    with pytest.raises(JournalError, match=rf"is damaged.*the checksum of its row '{named}' is wrong.*left as it is"):
        dz.QueryJournal(path, problem="p")


def test_a_row_that_is_damaged_while_the_journal_is_open_is_not_used(path: Path) -> None:
    with dz.QueryJournal(path) as journal:
        journal.record({"a": 1.0, "b": 2.0})
        journal._db.execute("UPDATE answers SET loss = NULL WHERE key = 'a'")
        with pytest.raises(JournalError, match="checksum of its row 'a' is wrong"):
            journal.lookup(["a"])
        assert journal.lookup(["b"]) == {"b": 2.0}


@pytest.mark.parametrize("change", [-5000, -4096, -100, -1, 1, 4096])
def test_a_file_of_another_size_is_refused(whole: bytes, path: Path, change: int) -> None:
    given = whole[:change] if change < 0 else whole + bytes(change)
    path.write_bytes(given)
    assert found(path) is None
    assert path.read_bytes() == given


def test_the_row_that_says_which_problem_it_is_has_a_checksum_too(whole: bytes, path: Path) -> None:
    path.write_bytes(whole)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE problem SET name = 'q'")
    db.close()
    with pytest.raises(JournalError, match="is damaged"):
        dz.QueryJournal(path, problem="q")


@pytest.mark.parametrize("name", [":memory:", "file:queries", "file::memory:?cache=shared", ""])
def test_names_that_keep_nothing_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (name, Path(name)) if name else (name,):
        with pytest.raises(InvalidInputError, match=r"must name a file.*dz.QueryJournal\('queries.sqlite'\)"):
            dz.QueryJournal(given)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match=r"is a folder; name a file in it: dz.QueryJournal\('.*queries.sqlite'\)"
    ):
        dz.QueryJournal(tmp_path)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_only_finite_answers_are_kept(path: Path, loss: float) -> None:
    with dz.QueryJournal(path) as journal:
        with pytest.raises(InvalidInputError, match="finite answers"):
            journal.record({"a": 1.0, "b": loss})
        assert len(journal) == 0


def killed_while_made(path: Path) -> None:
    """A file of which a killed process had written some pages, and what is to be undone, and nothing else."""
    busy = path.with_name("busy.sqlite")
    db = sqlite3.connect(busy, isolation_level=None)
    for setting in ("locking_mode=EXCLUSIVE", "cache_size=1", "cache_spill=1"):
        db.execute(f"PRAGMA {setting}")
    db.execute("BEGIN IMMEDIATE")
    for statement in journal_file.SCHEMA:
        db.execute(statement)
    db.execute("CREATE TABLE more (value TEXT)")
    db.executemany("INSERT INTO more VALUES (?)", [("x" * 900,)] * 400)
    for suffix in ("", journal_file.UNDO_SUFFIX):
        path.with_name(path.name + suffix).write_bytes(busy.with_name(busy.name + suffix).read_bytes())
    db.close()
    for file in path.parent.glob("busy*"):
        file.unlink()


def test_a_journal_whose_process_was_killed_while_it_made_the_file_is_made_again(path: Path) -> None:
    killed_while_made(path)
    assert path.stat().st_size > 0
    with dz.QueryJournal(path, problem="p") as journal:
        journal.record({"a": 0.5})
    with dz.QueryJournal(path, problem="p") as journal:
        assert journal.lookup(["a"]) == {"a": 0.5}


def test_a_look_at_a_journal_that_is_being_made_says_so_and_changes_nothing(path: Path) -> None:
    killed_while_made(path)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(JournalError, match=r"a change of the journal .* is not finished.*start that script again"):
        journal_file.summary(path)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
