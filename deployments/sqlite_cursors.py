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
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, Pool

_IS_OURS = "deployments.sqlite_cursors"


def close_failed_cursors() -> None:
    """Have this process close every cursor of its connections to SQLite that fails.

    Connections that are pooled by now are replaced when they are asked for: the server has made one
    before it loads what its settings name.
    """
    for target in LISTENERS:
        event.listen(*target)


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
    dialect: Dialect, record: ConnectionPoolEntry, _args: list[Any], options: dict[str, Any]
) -> None:
    if dialect.driver == "aiosqlite":
        options["factory"] = _Connection
        record.info[_IS_OURS] = True


def _replace_others(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    if not isinstance(connection, AsyncAdapt_aiosqlite_connection) or _IS_OURS in record.info:
        return
    cursor = connection.cursor()
    cursor.execute("PRAGMA database_list")
    _, _, file = cursor.fetchall()[0]
    if file:  # a database in memory ends with its connection
        raise DisconnectionError
    record.info[_IS_OURS] = False


LISTENERS = (
    (Engine, "do_connect", _choose_connection),
    (Pool, "checkout", _replace_others),
)
