"""What a journal holds is told and exported; journals of earlier formats are upgraded with every answer's bits."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepzero as dz
from deepzero.cli import main
from deepzero.errors import InvalidInputError, JournalError
from deepzero.executors import journal_file
from deepzero.executors.journal_rows import packed

KEYS = [f"{n:032x}" for n in range(5)]
ARRAY = np.array([[0.1, -0.0], [1e-300, 3.0]])
ANSWERS: dict[str, Any] = dict(zip(KEYS, [0.1, -0.0, None, 5e-324, ARRAY], strict=True))


def same(found: dict[str, Any]) -> bool:
    return {k: repr(v) for k, v in found.items()} == {k: repr(v) for k, v in ANSWERS.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queries.sqlite"


@pytest.fixture
def journal(path: Path) -> Path:
    with dz.QueryJournal(path, problem="furnace") as kept:
        for key in (KEYS[3], KEYS[0], KEYS[4], KEYS[1], KEYS[2]):
            kept.record({key: ANSWERS[key]})
            time.sleep(0.002)
    return path


def old_checksum(key: str, value: object) -> bytes:
    """The digest of format 2, written down independently."""
    data = value if isinstance(value, bytes) else str(value).encode()
    short = hashlib.blake2b(key.encode(), digest_size=32).digest()
    row = b"%d %s %s" % (len(key), type(value).__name__.encode(), data)
    return hashlib.blake2b(row, key=short, digest_size=8).digest()


def make_second_format(path: Path, *, log: bool = False) -> sqlite3.Connection:
    """A journal as the version before wrote it; with ``log``, everything is in the log still, as after a kill."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA application_id={0x647A6A32}")
    db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, loss BLOB, checksum BLOB NOT NULL) WITHOUT ROWID")
    db.execute("CREATE TABLE problem (name TEXT NOT NULL, checksum BLOB NOT NULL)")
    if log:
        db.execute("PRAGMA journal_mode=WAL")
    db.execute("INSERT INTO problem VALUES (?, ?)", ("furnace", old_checksum("problem", "furnace")))
    for key, loss in packed(ANSWERS):
        db.execute("INSERT INTO answers VALUES (?, ?, ?)", (key, loss, old_checksum(key, loss)))
    return db


def make_first_format(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA application_id={0x647A6A31}")
        db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, loss REAL) WITHOUT ROWID")
        db.executemany("INSERT INTO answers VALUES (?, ?)", [("a", 0.1), ("b", None)])
    db.close()


def test_the_summary_counts_kinds_and_tells_the_ends(journal: Path) -> None:
    found = journal_file.summary(journal)
    assert (found.format, found.problem, len(found)) == (3, "furnace", 5)
    assert (found.numbers, found.arrays, found.skipped) == (3, 1, 1)
    assert found.first is not None
    assert found.last is not None
    assert (found.first.key, found.last.key) == (KEYS[3], KEYS[2])
    assert 0 < (found.last.at or 0) - (found.first.at or 0) < 60
    assert abs((found.last.at or 0) - time.time()) < 60


def test_an_answer_recorded_again_is_the_last(path: Path) -> None:
    with dz.QueryJournal(path) as kept:
        kept.record({"a": 1.0})
        time.sleep(0.002)
        kept.record({"b": 1.0})
        time.sleep(0.002)
        kept.record({"a": 2.0})
    found = journal_file.summary(path)
    assert found.last is not None
    assert (found.last.key, found.last.answer, len(found)) == ("a", 2.0, 2)


def test_reading_changes_nothing(journal: Path) -> None:
    before = {file.name: file.read_bytes() for file in journal.parent.iterdir()}
    journal_file.summary(journal)
    journal_file.write_csv(journal, journal.parent.parent / "answers.csv")
    assert {file.name: file.read_bytes() for file in journal.parent.iterdir()} == before


def test_the_table_has_every_answer_to_the_bit(journal: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.csv"
    assert journal_file.write_csv(journal, out) == 5
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["key"] for row in table] == [KEYS[3], KEYS[0], KEYS[4], KEYS[1], KEYS[2]], "as they were recorded"
    found: dict[str, Any] = {}
    for row in table:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", row["recorded"])
        if row["kind"] == "array":
            shape = [int(size) for size in row["shape"].split("x")]
            found[row["key"]] = np.array([float(value) for value in row["answer"].split()]).reshape(shape)
        else:
            found[row["key"]] = None if row["kind"] == "skipped" else float(row["answer"])
    assert same({key: found[key] for key in KEYS})


def test_the_table_does_not_overwrite_the_journal(journal: Path) -> None:
    before = journal.read_bytes()
    with pytest.raises(InvalidInputError, match=r"is the journal itself; name another file, such as .*queries.csv"):
        journal_file.write_csv(journal, journal)
    assert journal.read_bytes() == before


@pytest.mark.parametrize("log", [False, True])
def test_a_journal_with_checksums_is_upgraded_to_the_bit(path: Path, log: bool) -> None:
    made = make_second_format(path, log=log)
    if log:  # as a killed process leaves it
        copy = path.with_name("killed.sqlite")
        for suffix in ("", "-wal"):
            copy.with_name(copy.name + suffix).write_bytes(path.with_name(path.name + suffix).read_bytes())
        path = copy
    made.close()
    with pytest.raises(JournalError, match=r"an earlier version.*left as it is; type deepzero journal .* --upgrade"):
        dz.QueryJournal(path, problem="furnace")
    assert journal_file.summary(path).format == 2
    old = journal_file.upgrade(path)
    with dz.QueryJournal(path, problem="furnace") as kept:
        assert same(kept.lookup(KEYS))
        assert len(kept) == 5
    found = journal_file.summary(path)
    assert (found.format, found.first) == (3, None)
    assert journal_file.summary(old).format == 2
    assert len(journal_file.summary(old)) == 5
    assert {file.name for file in path.parent.iterdir() if file.name.startswith((path.name, "."))} == {
        path.name,
        old.name,
    }


def test_a_journal_without_checksums_is_upgraded(path: Path) -> None:
    make_first_format(path)
    with pytest.raises(JournalError, match="--upgrade"):
        dz.QueryJournal(path)
    journal_file.upgrade(path)
    with dz.QueryJournal(path) as kept:
        assert kept.lookup(["a", "b", "c"]) == {"a": 0.1, "b": None}
        assert kept.problem is None


def test_a_key_that_is_no_text_any_more_is_named_before_an_upgrade(path: Path) -> None:
    """Rows of the first format have no checksum that would tell."""
    make_first_format(path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE answers SET key = CAST(x'61ff62' AS TEXT) WHERE key = 'a'")
    db.close()
    before = path.read_bytes()
    for look in (journal_file.summary, journal_file.upgrade):
        with pytest.raises(JournalError, match=r"is damaged.*its row 'a\\udcffb'"):
            look(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_damaged_journal_is_not_upgraded(path: Path) -> None:
    make_second_format(path).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE answers SET loss = NULL WHERE key = ?", (KEYS[0],))
    db.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match=f"is damaged.*row '{KEYS[0]}'"):
        journal_file.upgrade(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_old_journal_that_is_kept_already_is_not_overwritten(path: Path) -> None:
    make_second_format(path).close()
    kept = path.with_name(path.name + ".before-upgrade")
    kept.write_bytes(b"precious")
    with pytest.raises(InvalidInputError, match="is there already; move it away"):
        journal_file.upgrade(path)
    assert kept.read_bytes() == b"precious"


KILLED = """
import sys
from pathlib import Path
import os
from deepzero.executors import journal_file
step, count = int(sys.argv[2]), [0]
def dying(function):
    def called(*args, **kwargs):
        count[0] += 1
        if count[0] == step:
            os._exit(9)
        return function(*args, **kwargs)
    return called
for name in ("replace", "rename", "fsync", "open", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
journal_file.upgrade(Path(sys.argv[1]))
"""
"""Ends at the n-th operation on files."""


def test_an_upgrade_that_is_killed_leaves_a_whole_journal(path: Path) -> None:
    finished = False
    for step in range(1, 40):
        for file in path.parent.iterdir():
            file.unlink()
        make_second_format(path).close()
        code = subprocess.run([sys.executable, "-c", KILLED, str(path), str(step)], check=False).returncode
        found = journal_file.summary(path)
        assert (len(found), found.problem) == (5, "furnace"), step
        if found.format == 2:
            path.with_name(path.name + ".before-upgrade").unlink(missing_ok=True)
            journal_file.upgrade(path)
        with dz.QueryJournal(path, problem="furnace") as kept:
            assert same(kept.lookup(KEYS)), step
        if code == 0:
            finished = True
            break
        assert code == 9
    assert finished
    assert step > 3


def test_the_command_tells_exports_and_upgrades(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_second_format(path).close()
    assert main(["journal", str(path)]) == 0
    assert "5 answers (3 numbers, 1 arrays, 1 skipped)" in capsys.readouterr().out
    out = tmp_path / "answers.csv"
    assert main(["journal", str(path), "--upgrade", "--csv", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["answers"], found["problem"], found["csv"]) == (3, 5, "furnace", str(out))
    assert Path(found["old"]).exists()
    assert out.read_text().count("\n") == 6


MISTAKES: dict[str, tuple[Callable[[Path], list[str]], int, str]] = {
    "not there": (lambda p: [str(p)], 2, "there is no file .*queries.sqlite; name the journal"),
    "no journal": (lambda p: (p.write_text("a,b\n"), [str(p)])[1], 1, "damaged or is no journal"),
    "a folder": (lambda p: [str(p.parent)], 2, "is a folder; name the journal"),
    "nothing to upgrade": (
        lambda p: (dz.QueryJournal(p).close(), [str(p), "--upgrade"])[1],
        1,
        "of the present format already; nothing was changed",
    ),
    "no folder for the table": (
        lambda p: (dz.QueryJournal(p).close(), [str(p), "--csv", str(p.parent / "none" / "a.csv")])[1],
        2,
        "there is no folder",
    ),
}


@pytest.mark.parametrize(("words", "code", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told(
    path: Path, capsys: pytest.CaptureFixture[str], words: Callable[[Path], list[str]], code: int, message: str
) -> None:
    assert main(["journal", *words(path)]) == code
    errors = " ".join(capsys.readouterr().err.split())
    assert re.search(message, errors), errors
    assert "Traceback" not in errors


def test_a_journal_in_use_says_so(path: Path) -> None:
    with dz.QueryJournal(path) as kept:
        kept.record({"a": 1.0})
        child = "import sys; from deepzero.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", child, "journal", str(path)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )
    assert done.returncode == 1
    assert "is in use by another process" in done.stderr
