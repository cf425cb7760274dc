"""The query journal: every answer of a black box is on disk before it is used, so none is paid for twice."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any

from deepzero.errors import InvalidInputError, JournalError
from deepzero.executors import journal_rows as rows

MAGIC = 0x647A6A32
"""SQLite's ``application_id`` of a journal: ``dzj2``."""
MAGIC_WITHOUT_CHECKSUMS = 0x647A6A31
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, loss BLOB, checksum BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS problem (name TEXT NOT NULL, checksum BLOB NOT NULL)",
)
WAL_SUFFIX = "-wal"
LOOKUP = 500
"""Keys in one SQL statement."""


class QueryJournal:
    """Answers of a black box by content key, in one SQLite file (write-ahead log, every commit synced to disk).

    A script that was killed is simply started again: up to the point where it died its queries are answered from the
    journal, at no cost, and with the same bits. Only text keys and numbers are stored, each row with a checksum;
    nothing is ever unpickled.

    A journal answers one problem. It notes which one when an evaluator first uses it
    (:func:`~deepzero.executors.problem_of`: the function, what it refers to, the parameters' shapes), and refuses
    another.

    Threads may share a journal. A forked child may not; what the parent records is safe from it.

    Args:
        path: the file; made if it is not there. While it is open no other process can use it.
        problem: says by itself which problem is answered, in place of what is read off the function: the same text is
            the same problem. For functions whose meaning lies elsewhere (a service, files), and to go on with old
            answers after a change that does not matter to them.

    Attributes:
        path: the file.
        problem: what is answered; None until it is noted.

    Raises:
        InvalidInputError: the path names no file.
        JournalError: the file is damaged, is no journal, answers another problem, or is in use; it is left as it is.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with QueryJournal(Path(folder.name) / "queries.sqlite") as journal:
        ...     journal.record({"a": 0.5, "b": None})  # b was skipped
        >>> with QueryJournal(Path(folder.name) / "queries.sqlite") as journal:
        ...     journal.lookup(["a", "b", "c"]), len(journal)
        ({'a': 0.5, 'b': None}, 2)
        >>> folder.cleanup()
    """

    def __init__(self, path: str | Path, *, problem: str | None = None) -> None:
        self.path = _checked(path)
        if problem is not None and (not isinstance(problem, str) or not problem):
            raise InvalidInputError(f'problem must be a text such as "furnace, version 3", got {problem!r}')
        self._lock = RLock()
        self._process = os.getpid()
        self._given = problem
        with self._explained():
            self._inspect(problem)
            self._db = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False, factory=Connection
            )
            try:
                self._prepare()
                self.problem = self._read_problem(self._db)
                if problem is not None:
                    self._require(problem)
            except BaseException:
                self._db.close()
                raise

    def _inspect(self, problem: str | None) -> None:
        """Read an existing file through, every row of it, without changing it."""
        log = self._log_size()
        if not self.path.exists() or not (self.path.stat().st_size or log):
            return
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=0)) as db:
            found = [row[0] for row in db.execute("PRAGMA quick_check(3)")]
            if found != ["ok"]:
                raise sqlite3.DatabaseError("; ".join(found))
            self._require_format(db.execute("PRAGMA application_id").fetchone()[0])
            if not log:
                self._require_size(db)
            for key, loss, checksum in db.execute("SELECT key, loss, checksum FROM answers"):
                self._unpack(key, loss, checksum)
            self.problem = self._read_problem(db)
            if problem is not None and self.problem is not None:
                self._require(problem)

    def _require_format(self, magic: int) -> None:
        if magic == MAGIC_WITHOUT_CHECKSUMS:
            raise JournalError(
                f"the journal {self.path} was written by an earlier version of deepzero, whose rows have no checksums, "
                "and was left as it is; end its run with that version, or name another file and pay for its queries "
                "again"
            )
        if magic != MAGIC:
            raise JournalError(
                f"{self.path} is an SQLite file but no query journal, and was left as it is; name another file"
            )

    def _require_size(self, db: sqlite3.Connection) -> None:
        pages, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        found = self.path.stat().st_size
        if found != pages * size:
            raise sqlite3.DatabaseError(f"it has {found} bytes and should have {pages * size}")

    def _log_size(self) -> int:
        log = self.path.with_name(self.path.name + WAL_SUFFIX)
        return log.stat().st_size if log.exists() else 0

    def _prepare(self) -> None:
        """Take the file for this process alone, and set it up; the tables are there before the log is."""
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA synchronous=FULL")
        with self._transaction():
            self._db.execute(f"PRAGMA application_id={MAGIC}")
            for statement in SCHEMA:
                self._db.execute(statement)
        self._db.execute("PRAGMA journal_mode=WAL")

    def answers_for(self, problem: str) -> None:
        """Note what is answered here, where that is not noted yet.

        Args:
            problem: as :func:`~deepzero.executors.problem_of` gives it; of no account if the journal was
                opened with a ``problem`` of its own.

        Raises:
            JournalError: the answers are those of another problem.
        """
        with self._used():
            self._require(self._given or problem)

    def _require(self, problem: str) -> None:
        if self.problem is None:
            with self._transaction():
                self._db.execute("INSERT INTO problem VALUES (?, ?)", (problem, rows.checksum("problem", problem)))
            self.problem = problem
        if self.problem != problem:
            raise JournalError(
                f"the journal {self.path} answers the problem {self.problem!r}, but this one is {problem!r} (another "
                "function, or its code, the values that it refers to, or the parameters' shapes have changed); name "
                "another file, or, if its answers hold for this problem too, open it with "
                f"dz.QueryJournal({str(self.path)!r}, problem={self.problem!r})"
            )

    def _read_problem(self, db: sqlite3.Connection) -> str | None:
        found = db.execute("SELECT name, checksum FROM problem").fetchall()
        for name, checksum in found:
            if len(found) > 1 or checksum != rows.checksum("problem", name):
                raise sqlite3.DatabaseError("the row that says which problem it answers")
        return str(found[0][0]) if found else None

    def lookup(self, keys: Iterable[str]) -> dict[str, rows.Answer | None]:
        """The answers that are known among ``keys``; None for a query that was skipped.

        Raises:
            JournalError: an answer is damaged; none is returned.
        """
        known: dict[str, rows.Answer | None] = {}
        with self._used():
            listed = list(keys)
            for some in (listed[start : start + LOOKUP] for start in range(0, len(listed), LOOKUP)):
                marks = ",".join("?" * len(some))
                for row in self._db.execute(f"SELECT key, loss, checksum FROM answers WHERE key IN ({marks})", some):
                    known[row[0]] = self._unpack(*row)
        return known

    def _unpack(self, key: str, loss: object, checksum: object) -> rows.Answer | None:
        if not isinstance(key, str) or checksum != rows.checksum(key, loss):
            raise sqlite3.DatabaseError(f"the checksum of its row {key!r} is wrong")
        return rows.unpack(loss)

    def record(self, answers: Mapping[str, rows.Answer | None]) -> None:
        """Store answers (finite numbers or arrays; None for skipped) all or none; on return they are on disk."""
        packed = [(key, loss, rows.checksum(key, loss)) for key, loss in rows.packed(answers)]
        if not packed:
            return
        with self._used(), self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", packed)

    @contextmanager
    def _used(self) -> Iterator[None]:
        """One thread at a time, in the process that opened the file."""
        if os.getpid() != self._process:
            raise JournalError(
                f"the journal {self.path} was opened by process {self._process}, and this is process {os.getpid()}, "
                "forked from it; let the parent record the answers, or close the journal before the fork and open it "
                f"in the child with dz.QueryJournal({str(self.path)!r})"
            )
        with self._lock, self._explained():
            yield

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors as what to do about them."""
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(self._advice(error)) from error

    def _advice(self, error: sqlite3.Error) -> str:
        text = " ".join(str(error).split())
        if "locked" in text or "busy" in text:
            return f"the journal {self.path} is in use by another process; wait for it to end, or name another file"
        if isinstance(error, sqlite3.ProgrammingError):
            return (
                f"the journal {self.path} was closed ({text}); open it again with dz.QueryJournal({str(self.path)!r})"
            )
        if isinstance(error, sqlite3.OperationalError) and "no such" not in text and "malformed" not in text:
            return (
                f"the journal {self.path} cannot be used ({text}); every answer recorded so far is kept: "
                "see to the disk (space, permissions), then start the script again"
            )
        return (
            f"the journal {self.path} is damaged or is no journal ({text}); it was left as it is: put back a copy "
            f"(with its {self.path.name}{WAL_SUFFIX}, if there is one), or name another file and pay for its queries "
            "again"
        )

    def __len__(self) -> int:
        with self._used():
            return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Release the file; in a forked child, nothing."""
        if os.getpid() == self._process:
            with self._lock:
                self._db.close()

    def __enter__(self) -> QueryJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked(path: str | Path) -> Path:
    """Accept the name of a file, not what SQLite would take for a database in memory or a URI."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(text, str) or not text or text.startswith((":", "file:")) or "\0" in text:
        raise InvalidInputError(
            f"path must name a file that outlives the process, for example dz.QueryJournal('queries.sqlite'), got "
            f"{path!r}"
        )
    if Path(text).is_dir():
        raise InvalidInputError(
            f"{text} is a folder; name a file in it: dz.QueryJournal({str(Path(text, 'queries.sqlite'))!r})"
        )
    return Path(text)


_open: weakref.WeakSet[Connection] = weakref.WeakSet()
"""Connections that a fork would copy."""


class Connection(sqlite3.Connection):
    """A connection of which copies in forked children are never closed.

    A connection must not cross a fork: if the child closes its copy (at its end, or when it is collected), SQLite
    merges and deletes the log that the parent goes on writing to, and what the parent records is lost. So the child's
    copies live for ever, unused.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _open.add(self)


def _keep_all() -> None:
    """In the child: hold each connection once more than anybody will ever let go of it."""
    for connection in list(_open):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_all)
