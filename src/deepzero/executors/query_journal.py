"""The query journal: every answer of a black box is on disk before it is used, so none is paid for twice."""

from __future__ import annotations

import ctypes
import os
import shlex
import sqlite3
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any

from deepzero.errors import InvalidInputError, JournalError
from deepzero.executors import journal_file
from deepzero.executors import journal_rows as rows

LOOKUP = 500
"""Keys in one SQL statement."""


class QueryJournal:
    """Answers of a black box by content key, in one SQLite file (write-ahead log, every commit synced to disk).

    A script that was killed is simply started again: up to the point where it died its queries are answered from the
    journal, at no cost, and with the same bits. Only text keys, numbers and times are stored, each row with a
    checksum; nothing is ever unpickled. ``deepzero journal FILE`` tells what a journal holds.

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
        with journal_file.explained(self.path):
            self._inspect(problem)
            self._db = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False, factory=Connection
            )
            self._db.text_factory = journal_file.readable
            try:
                self._prepare()
                self._count = journal_file.AnswerCount(self.path, self._rows())
                self.problem = journal_file.problem_in(self._db)
                if problem is not None:
                    self._require(problem)
            except BaseException:
                self._db.close()
                raise

    def _inspect(self, problem: str | None) -> None:
        """Read an existing file through, every row of it, without changing it, but for what a kill left unfinished."""
        journal_file.undo_unfinished(self.path)
        if not self.path.exists() or not (self.path.stat().st_size or journal_file.log_size(self.path)):
            journal_file.require_none_missing(self.path, 0)
            return
        with journal_file.reading(self.path) as (db, form):
            if form != journal_file.CURRENT:
                raise JournalError(
                    f"the journal {self.path} was written by an earlier version of deepzero, and was left as it is; "
                    f"type deepzero journal {shlex.quote(str(self.path))} --upgrade, which keeps the old file, too"
                )
            for _ in journal_file.answers(db, form, self.path):
                pass
            self.problem = journal_file.problem_in(db)
            if problem is not None and self.problem is not None:
                self._require(problem)

    def _prepare(self) -> None:
        """Take the file for this process alone, and set it up; the tables are there before the log is."""
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA synchronous=FULL")
        with self._transaction():
            self._db.execute(f"PRAGMA application_id={journal_file.MAGIC[journal_file.CURRENT]}")
            for statement in journal_file.SCHEMA:
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
                chosen = f"SELECT key, loss, at, checksum FROM answers WHERE key IN ({marks})"
                for row in self._db.execute(chosen, some):
                    known[row[0]] = journal_file.checked(*row)
        return known

    def record(self, answers: Mapping[str, rows.Answer | None]) -> None:
        """Store answers (finite numbers or arrays; None for skipped) all or none; on return they are on disk."""
        at = time.time()
        packed = [(key, loss, at, rows.checksum(key, loss, at)) for key, loss in rows.packed(answers)]
        if not packed:
            return
        with self._used():
            more = len(packed) - len(self.lookup(row[0] for row in packed))
            with self._transaction():
                self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", packed)
            self._count.add(more)

    @contextmanager
    def _used(self) -> Iterator[None]:
        """One thread at a time, in the process that opened the file."""
        if os.getpid() != self._process:
            raise JournalError(
                f"the journal {self.path} was opened by process {self._process}, and this is process {os.getpid()}, "
                "forked from it; let the parent record the answers, or close the journal before the fork and open it "
                f"in the child with dz.QueryJournal({str(self.path)!r})"
            )
        with self._lock, journal_file.explained(self.path):
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

    def __len__(self) -> int:
        with self._used():
            return self._rows()

    def _rows(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Release the file; in a forked child, nothing."""
        if os.getpid() == self._process:
            with self._lock:
                self._db.close()
                self._count.close(remove=not journal_file.log_size(self.path))

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
