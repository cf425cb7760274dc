"""Keeps a forked child's hands off a database that its parent has open.

A connection must not cross a fork: if the child closes its copy (at its end, or when it is collected), SQLite merges
and deletes the log that the parent goes on writing to, and what the parent records is lost. So the child's copies live
for ever, unused.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import weakref
from typing import Any

_open: weakref.WeakSet[Connection] = weakref.WeakSet()


class Connection(sqlite3.Connection):
    """A connection of which copies in forked children are never closed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _open.add(self)


def _keep_all() -> None:
    """In the child: hold each connection once more than anybody will ever let go of it."""
    for connection in list(_open):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_all)
