"""The file of a journal: its formats, how it is read and checked unchanged, and how an old one becomes a new one.

An SQLite file whose ``application_id`` tells the format: 1 has keys and losses; 2 a checksum for each row, and the
problem; 3 besides the time of each row, in seconds since 1970.
"""

from __future__ import annotations

import csv
import io
import sqlite3
import stat
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deepzero.errors import InvalidInputError, JournalError
from deepzero.executors import journal_rows as rows
from deepzero.files import replace_file, sync_folder, temporary_name, write_file

CURRENT = 3
MAGIC = {1: 0x647A6A31, 2: 0x647A6A32, CURRENT: 0x647A6A33}
"""Format -> SQLite's ``application_id``: ``dzj1`` and so on."""
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS answers "
    "(key TEXT PRIMARY KEY, loss BLOB, at REAL, checksum BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS problem (name TEXT NOT NULL, checksum BLOB NOT NULL)",
)
READ = {
    1: "SELECT key, loss, NULL, NULL FROM answers",
    2: "SELECT key, loss, NULL, checksum FROM answers",
    CURRENT: "SELECT key, loss, at, checksum FROM answers",
}
UNDO_SUFFIX = "-journal"
"""Of what SQLite needs to undo a change outside of the log: the file is made by one."""
WAL_SUFFIX = "-wal"
INDEX_SUFFIX = "-shm"
"""Of the log's index, which readers of a log leave behind."""
OLD_SUFFIX = ".before-upgrade"
COUNT_SUFFIX = "-count"
COUNT = struct.Struct("<Q8s")


class Row(NamedTuple):
    """One answer.

    Attributes:
        key: of the query.
        answer: a number, an array, or None for a query that was skipped.
        at: when it was recorded, in seconds since 1970; None where the format does not say.
    """

    key: str
    answer: rows.Answer | None
    at: float | None


class AnswerCount:
    """The number of answers that are on disk, in a file beside a journal that is open or whose process was killed.

    SQLite takes the first damaged page of its log for the log's end, and drops what lies behind without a word. The
    number tells that answers are gone. It is written after every commit, so it is never above what is on disk; after a
    power cut it may be below.

    Args:
        path: the journal.
        number: of its answers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     count = AnswerCount(Path(folder, "queries.sqlite"), 3)
        ...     count.add(2)
        ...     least = AnswerCount.noted(Path(folder, "queries.sqlite"))
        ...     count.close(remove=True)
        ...     least, AnswerCount.noted(Path(folder, "queries.sqlite"))
        (5, 0)
    """

    def __init__(self, path: Path, number: int) -> None:
        self._path = self.beside(path)
        self._number = number
        self._file = self._path.open("r+b" if self._path.exists() else "x+b", buffering=0)
        self.add(0)

    @staticmethod
    def beside(path: Path) -> Path:
        """The file for a journal."""
        return path.with_name(path.name + COUNT_SUFFIX)

    @classmethod
    def noted(cls, path: Path) -> int:
        """The number that is noted for a journal; 0 where none is.

        Raises:
            sqlite3.DatabaseError: the file that says it is damaged.
        """
        file = cls.beside(path)
        data = file.read_bytes()[: COUNT.size + 1] if file.exists() else b""
        if not data:
            return 0  # none, or its process was killed before the first was written
        number, digest = COUNT.unpack(data) if len(data) == COUNT.size else (0, b"")
        if digest != rows.checksum("count", number):
            raise sqlite3.DatabaseError(
                f"{file.name}, the number of its answers; delete it if the journal is as it was"
            )
        return int(number)

    def add(self, more: int) -> None:
        """Note some more answers, in one write."""
        self._number += more
        self._file.seek(0)
        self._file.write(COUNT.pack(self._number, rows.checksum("count", self._number)))

    def close(self, *, remove: bool) -> None:
        """Leave the number to the next process, or take it away from a journal whose log is merged into it."""
        if not self._file.closed:
            self._file.close()
            if remove:
                self._path.unlink(missing_ok=True)

    def __del__(self) -> None:
        """Of a journal that was not closed, the number stays."""
        if hasattr(self, "_file"):
            self.close(remove=False)


@dataclass(frozen=True)
class JournalSummary:
    """Contents of a journal, counted.

    Attributes:
        path: the file.
        format: 1, 2 or 3.
        problem: what is answered; None where it is not noted.
        numbers: answers that are one number.
        arrays: answers that are arrays.
        skipped: queries without an answer.
        first: the row recorded first; None in an empty journal, and where times are not known.
        last: likewise.
        size: bytes of the file and its log.
    """

    path: Path
    format: int
    problem: str | None
    numbers: int
    arrays: int
    skipped: int
    first: Row | None
    last: Row | None
    size: int

    def __len__(self) -> int:
        return self.numbers + self.arrays + self.skipped


def summary(path: Path) -> JournalSummary:
    """Read a journal through, every row of it, without changing it.

    Raises:
        JournalError: it is damaged, is no journal, or is in use.

    Example:
        >>> import tempfile, deepzero as dz
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with dz.QueryJournal(Path(folder, "queries.sqlite"), problem="furnace") as journal:
        ...         journal.record({"a": 0.5, "b": None})
        ...     found = summary(Path(folder, "queries.sqlite"))
        >>> len(found), found.numbers, found.skipped, found.problem
        (2, 1, 1, 'furnace')
    """
    counts = {"numbers": 0, "arrays": 0, "skipped": 0}
    first: Row | None = None
    last: Row | None = None
    with explained(path), reading(path) as (db, form):
        for row in answers(db, form, path):
            counts[_kind(row.answer)] += 1
            if row.at is not None:
                first = row if first is None or row.at < (first.at or 0.0) else first
                last = row if last is None or row.at >= (last.at or 0.0) else last
        problem = problem_in(db, form)
        size = path.stat().st_size + log_size(path)
    return JournalSummary(path, form, problem, **counts, first=first, last=last, size=size)


def _kind(answer: rows.Answer | None) -> str:
    if answer is None:
        return "skipped"
    return "arrays" if isinstance(answer, np.ndarray) else "numbers"


def write_csv(path: Path, out: Path) -> int:
    """Write the answers of a journal as a table, in the order in which they were recorded; their number.

    The columns are ``key``, ``recorded`` (UTC), ``kind`` (number, array, skipped), ``shape`` and ``answer``: the
    shortest decimals that give the same bits again, those of an array in its order in memory, separated by spaces.

    Raises:
        JournalError: the journal is damaged, is no journal, or is in use.
        InvalidInputError: ``out`` is the journal, or cannot be written.
    """
    if out.resolve() == path.resolve():
        raise InvalidInputError(f"{out} is the journal itself; name another file, such as {path.with_suffix('.csv')}")
    with explained(path), reading(path) as (db, form):
        found = sorted(answers(db, form, path), key=lambda row: (row.at or 0.0, row.key))
    table = io.StringIO()
    lines = csv.writer(table)
    lines.writerow(["key", "recorded", "kind", "shape", "answer"])
    lines.writerows(_cells(row) for row in found)
    try:
        replace_file(out, table.getvalue().encode())
    except OSError as error:
        raise InvalidInputError(f"{out} cannot be written ({error}); name another file") from error
    return len(found)


def _cells(row: Row) -> list[str]:
    recorded = "" if row.at is None else time_text(row.at)
    if row.answer is None:
        return [row.key, recorded, "skipped", "", ""]
    if not isinstance(row.answer, np.ndarray):
        return [row.key, recorded, "number", "", repr(row.answer)]
    shape = "x".join(map(str, row.answer.shape))
    return [row.key, recorded, "array", shape, " ".join(str(value) for value in row.answer.ravel())]


def time_text(at: float) -> str:
    """A time in UTC, to the second.

    Example:
        >>> time_text(0.0)
        '1970-01-01 00:00:00Z'
    """
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}Z"


def upgrade(path: Path) -> Path:
    """Bring a journal of an earlier format to the present one; the old file, which is kept beside it.

    Answers stay as they are, to the bit. Rows of format 1 had no checksums, so a damage that came before goes on
    unseen. A process that is killed meanwhile leaves the old journal or the new one under the name, and nothing else.

    Raises:
        JournalError: the journal is damaged, is in use, or is of the present format.
        InvalidInputError: there is a file where the old one is to be kept.
    """
    old = path.with_name(path.name + OLD_SUFFIX)
    if old.exists():
        raise InvalidInputError(f"{old} is there already; move it away, the old journal is to be kept under this name")
    with explained(path):
        with reading(path) as (db, form):
            found, problem = list(answers(db, form, path)), problem_in(db, form)
        if form == CURRENT:
            raise JournalError(f"the journal {path} is of the present format already; nothing was changed")
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as db:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=DELETE")  # the log goes into the file, and no other process comes in
            db.execute("BEGIN EXCLUSIVE")
            fresh = temporary_name(path)
            try:
                write_file(fresh, b"", mode=stat.S_IMODE(path.stat().st_mode))
                _write(fresh, found, problem)
                replace_file(old, path.read_bytes())
                path.with_name(path.name + INDEX_SUFFIX).unlink(missing_ok=True)
                fresh.replace(path)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)
    return old


def _write(path: Path, found: list[Row], problem: str | None) -> None:
    """A new journal with some rows."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=FULL")
        db.execute("BEGIN IMMEDIATE")
        db.execute(f"PRAGMA application_id={MAGIC[CURRENT]}")
        for statement in SCHEMA:
            db.execute(statement)
        if problem is not None:
            db.execute("INSERT INTO problem VALUES (?, ?)", (problem, rows.checksum("problem", problem)))
        for key, answer, at in found:
            ((_, loss),) = rows.packed({key: answer})
            db.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", (key, loss, at, rows.checksum(key, loss, at)))
        db.execute("COMMIT")


@contextmanager
def reading(path: Path) -> Iterator[tuple[sqlite3.Connection, int]]:
    """A journal that is there, opened to be read, and its format; its structure is sound then, its rows are to be seen.

    Raises:
        InvalidInputError: it is not there.
        JournalError: it is another kind of file.
        sqlite3.Error: it is damaged or in use.
    """
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise InvalidInputError(f"{what}; name the journal: the file that was given to dz.QueryJournal or to journal=")
    if is_unfinished(path):
        raise JournalError(
            f"a change of the journal {path} is not finished: its process is still at work, or was killed; start that "
            "script again, which undoes the change"
        )
    log = path.with_name(path.name + WAL_SUFFIX)
    alone = "" if log.exists() else "&immutable=1"  # without it, SQLite would leave an empty log and an index of it
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{alone}", uri=True, timeout=0)) as db:
        db.text_factory = readable
        found = [row[0] for row in db.execute("PRAGMA quick_check(3)")]
        if found != ["ok"]:
            raise sqlite3.DatabaseError("; ".join(found))
        magic = db.execute("PRAGMA application_id").fetchone()[0]
        form = next((form for form, of in MAGIC.items() if of == magic), None)
        if form is None:
            raise JournalError(
                f"{path} is an SQLite file but no query journal, and was left as it is; name another file"
            )
        if not log_size(path):
            _require_size(db, path)
        yield db, form


def readable(text: bytes) -> str:
    """A text of the file; of a damaged one the rest can be read, and its checksum is wrong.

    Example:
        >>> readable(b"key"), readable(b"k\\xffy") == "key"
        ('key', False)
    """
    return text.decode("utf-8", "surrogateescape")


def is_text(read: str) -> bool:
    """True unless a text came from bytes that are none, as :func:`readable` gives it."""
    try:
        read.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_size(db: sqlite3.Connection, path: Path) -> None:
    pages, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    found = path.stat().st_size
    if found != pages * size:
        raise sqlite3.DatabaseError(f"it has {found} bytes and should have {pages * size}")


def is_unfinished(path: Path) -> bool:
    """True if a process is in the middle of making the file, or was killed there: what is to be undone lies beside it.

    Answers are not recorded that way, but in a log, and none before the file was made.
    """
    undo = path.with_name(path.name + UNDO_SUFFIX)
    if not undo.is_file():
        return False
    with undo.open("rb") as file:
        return file.read(1) not in (b"", b"\0")  # SQLite's own rule: at the end of a change the header is zeroed


def undo_unfinished(path: Path) -> None:
    """Let SQLite bring the file back to what it was before a change that a killed process has not finished.

    Raises:
        sqlite3.Error: another process is at work in it.
    """
    if path.is_file() and is_unfinished(path):
        with closing(sqlite3.connect(path, timeout=0)) as db:
            db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()


def log_size(path: Path) -> int:
    """Bytes of a journal's log, which lies beside it."""
    log = path.with_name(path.name + WAL_SUFFIX)
    return log.stat().st_size if log.exists() else 0


def answers(db: sqlite3.Connection, form: int, path: Path) -> Iterator[Row]:
    """The rows, each of which is checked, and in the end that none is missing.

    Raises:
        sqlite3.DatabaseError: one is damaged, and named; or some are gone.
    """
    found = 0
    for key, loss, at, checksum in db.execute(READ[form]):
        found += 1
        if form == 1:
            yield Row(key, _of_first_format(key, loss), None)
        else:
            yield Row(key, checked(key, loss, at, checksum), at)
    require_none_missing(path, found)


def require_none_missing(path: Path, found: int) -> None:
    """Raise :class:`sqlite3.DatabaseError` if more answers of a journal were on disk than are found."""
    least = AnswerCount.noted(path)
    if found < least:
        raise sqlite3.DatabaseError(
            f"{least - found} of its {least} answers are gone, because it or its log {path.name}{WAL_SUFFIX} is "
            f"damaged or missing; to pay for these again, delete {path.name}{COUNT_SUFFIX}"
        )


def _of_first_format(key: object, loss: object) -> float | None:
    if (
        not isinstance(key, str)
        or not is_text(key)
        or not (loss is None or (isinstance(loss, float) and np.isfinite(loss)))
    ):
        raise sqlite3.DatabaseError(f"its row {key!r} holds {loss!r}")
    return loss


def checked(key: object, loss: object, at: object, checksum: object) -> rows.Answer | None:
    """The answer in a row.

    Raises:
        sqlite3.DatabaseError: its checksum is wrong.
    """
    if not isinstance(key, str) or checksum != rows.checksum(key, loss, at):
        raise sqlite3.DatabaseError(f"the checksum of its row {key!r} is wrong")
    return rows.unpack(loss)


def problem_in(db: sqlite3.Connection, form: int = CURRENT) -> str | None:
    """The problem that a journal says it answers; None if it does not say.

    Raises:
        sqlite3.DatabaseError: the row that says it is damaged.
    """
    found = db.execute("SELECT name, checksum FROM problem").fetchall() if form > 1 else []
    for name, checksum in found:
        if len(found) > 1 or checksum != rows.checksum("problem", name):
            raise sqlite3.DatabaseError("the row that says which problem it answers")
    return str(found[0][0]) if found else None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """SQLite's errors as what to do about them."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # SQLite's message may quote a damaged name
        raise JournalError(_advice(path, error)) from error


def _advice(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "locked" in text or "busy" in text:
        return f"the journal {path} is in use by another process; wait for it to end, or name another file"
    if isinstance(error, sqlite3.ProgrammingError):
        return f"the journal {path} was closed ({text}); open it again with dz.QueryJournal({str(path)!r})"
    unusable = isinstance(error, (sqlite3.OperationalError, OSError))
    if unusable and "no such" not in text and "malformed" not in text:
        return (
            f"the journal {path} cannot be used ({text}); every answer recorded so far is kept: "
            "see to the disk (space, permissions), then start the script again"
        )
    return (
        f"the journal {path} is damaged or is no journal ({text}); it was left as it is: put back a copy "
        f"(with its {path.name}{WAL_SUFFIX}, if there is one), or name another file and pay for its queries again"
    )
