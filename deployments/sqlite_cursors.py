"""Keeps a server with SQLite from standing still for the minute that a writer may wait.

A cursor of Python's sqlite3 whose statement failed, such as by "database is locked", keeps it until
it is collected, and then waits for its connection (CPython 3.11, ``stmt_reset``). SQLAlchemy leaves
such cursors to the collector, which may run in the thread of the server's event loop while that
connection waits for another writer. Then the loop waits, too, so that the writer it waits for
cannot commit: everything stands until SQLite gives up, 60 s in Prefect 3.8.8. Here a cursor that
failed lets go of its statement at once, in the thread that used it.
"""

import sqlite3
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Dialect, Engine

__all__ = ["close_failed_cursors"]


def close_failed_cursors() -> None:
    """Have this process close every cursor of a later connection to SQLite that fails."""
    event.listen(Engine, "do_connect", _choose_connection)


class _Cursor(sqlite3.Cursor):
    def execute(self, *args: Any) -> "_Cursor":
        try:
            return super().execute(*args)
        except BaseException:
            self.close()
            raise

    def executemany(self, *args: Any) -> "_Cursor":
        try:
            return super().executemany(*args)
        except BaseException:
            self.close()
            raise


class _Connection(sqlite3.Connection):
    def cursor(self, *_: Any) -> _Cursor:  # type: ignore[override]  # no other one is asked for
        return super().cursor(_Cursor)


def _choose_connection(
    dialect: Dialect, _record: object, _args: list[Any], options: dict[str, Any]
) -> None:
    if dialect.driver == "aiosqlite":
        options["factory"] = _Connection
