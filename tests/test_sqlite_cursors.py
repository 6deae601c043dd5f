"""A server with SQLite goes on while a statement waits, whatever failed on that connection before.

The stack of a server that stood still for 60.9 s showed the collector in the thread of its loop,
below a line that reads no database, and one connection that waited in ``BEGIN IMMEDIATE``.
"""

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import StaticPool

from deployments.sqlite_cursors import LISTENERS, close_failed_cursors

LOOP_STANDS_S = 60.0
"""What is waited for by who fails alone; longer than a busy machine stands still."""

FAILING: dict[str, Callable[[AsyncConnection], Any]] = {
    "one row": lambda connection: connection.exec_driver_sql("INSERT INTO t VALUES (1)"),
    "many rows": lambda connection: connection.exec_driver_sql(
        "INSERT INTO t VALUES (?)", [(1,), (2,)]
    ),
}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Have engines of this process as they are before somebody imports the broker."""

    def remove() -> None:
        for target in LISTENERS:
            if event.contains(*target):
                event.remove(*target)

    remove()
    yield
    remove()


@pytest.mark.parametrize("is_pooled", [False, True], ids=["later", "pooled before"])
@pytest.mark.parametrize("fail", FAILING.values(), ids=FAILING)
def test_what_a_failed_statement_left_never_holds_the_loop(
    tmp_path: Path, fail: Callable[[AsyncConnection], Any], is_pooled: bool
) -> None:
    is_in_statement, loop_goes_on = threading.Event(), threading.Event()

    def waits() -> bool:
        is_in_statement.set()
        return loop_goes_on.wait(LOOP_STANDS_S)

    async def story() -> bool:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/db", isolation_level="AUTOCOMMIT"
        )
        if is_pooled:
            async with engine.connect(), engine.connect():
                pass
        close_failed_cursors()
        async with engine.connect() as writer, engine.connect() as other:
            await writer.exec_driver_sql("CREATE TABLE t (x)")
            await writer.exec_driver_sql("BEGIN IMMEDIATE")
            await other.exec_driver_sql("PRAGMA busy_timeout = 0")
            raw = await other.get_raw_connection()
            await raw.driver_connection.create_function("waits", 0, waits)  # type: ignore[union-attr]
            with pytest.raises(OperationalError, match="database is locked") as failed:
                await fail(other)
            garbage: list[Any] = [failed]
            garbage.append(garbage)
            statement = asyncio.create_task(other.exec_driver_sql("SELECT waits()"))
            await asyncio.to_thread(is_in_statement.wait)
            del garbage, failed
            gc.collect()
            loop_goes_on.set()
            has_gone_on = bool((await statement).scalar())
        await engine.dispose()
        return has_gone_on

    assert asyncio.run(story())


def test_a_database_in_memory_stays() -> None:
    async def story() -> int:
        engine = create_async_engine("sqlite+aiosqlite:///:memory:", poolclass=StaticPool)
        async with engine.connect() as connection:
            await connection.exec_driver_sql("CREATE TABLE t (x)")
        close_failed_cursors()
        async with engine.connect() as connection:
            found = await connection.exec_driver_sql("SELECT count(*) FROM t")
            count = int(found.scalar_one())
        await engine.dispose()
        return count

    assert asyncio.run(story()) == 0
