"""The query journal: every answer of a black box is on disk before it is used, so none is paid for twice."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType

from deepzero.errors import JournalError

MAGIC = 0x647A6A31
"""SQLite's ``application_id`` of a journal: ``dzj1``."""
SCHEMA = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, loss REAL) WITHOUT ROWID"
WAL_SUFFIX = "-wal"
LOOKUP = 500
"""Keys in one SQL statement."""


class QueryJournal:
    """Answers of a black box by content key, in one SQLite file (write-ahead log, every commit synced to disk).

    A script that was killed is simply started again: up to the point where it died its queries are answered from the
    journal, at no cost, and with the same bits. Keep one journal for one black box: a key says what was asked, not who
    was.
    Only text keys and numbers are stored; nothing is ever unpickled.

    Args:
        path: the file; made if it is not there. While it is open no other process can use it.

    Raises:
        JournalError: the file is damaged, is no journal, or is in use; it is left as it is.

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

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._explained():
            self._inspect()
            self._db = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _inspect(self) -> None:
        """Read an existing file through, without changing it."""
        if not self.path.exists() or not (self.path.stat().st_size or self._log_size()):
            return
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=0)) as db:
            found = [row[0] for row in db.execute("PRAGMA quick_check(3)")]
            if found != ["ok"]:
                raise sqlite3.DatabaseError("; ".join(found))
            if db.execute("PRAGMA application_id").fetchone()[0] != MAGIC:
                raise JournalError(
                    f"{self.path} is an SQLite file but no query journal, and was left as it is; name another file"
                )

    def _log_size(self) -> int:
        log = self.path.with_name(self.path.name + WAL_SUFFIX)
        return log.stat().st_size if log.exists() else 0

    def _prepare(self) -> None:
        """Take the file for this process alone, and set it up; the table is there before the log is."""
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA synchronous=FULL")
        with self._transaction():
            self._db.execute(f"PRAGMA application_id={MAGIC}")
            self._db.execute(SCHEMA)
        self._db.execute("PRAGMA journal_mode=WAL")

    def lookup(self, keys: Iterable[str]) -> dict[str, float | None]:
        """The answers that are known among ``keys``; None for a query that was skipped."""
        known: dict[str, float | None] = {}
        with self._explained():
            asked = list(keys)
            for some in (asked[start : start + LOOKUP] for start in range(0, len(asked), LOOKUP)):
                marks = ",".join("?" * len(some))
                known.update(self._db.execute(f"SELECT key, loss FROM answers WHERE key IN ({marks})", some))
        return known

    def record(self, answers: Mapping[str, float | None]) -> None:
        """Store answers (finite losses; None for skipped) all or none; on return they are on disk."""
        if not answers:
            return
        with self._explained(), self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", answers.items())

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
        if isinstance(error, sqlite3.OperationalError):
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
        with self._explained():
            return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def __enter__(self) -> QueryJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
