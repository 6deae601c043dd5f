"""The log of a run as Prefect's server has it, read once or followed to the end of the run."""

import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.client.schemas.objects import FlowRun, Log
from prefect.client.schemas.sorting import LogSort

from flows.runs import is_over

Say = Callable[[str], None]

_PAGE = 200  # more, the server does not give at once
_POLL_S = 1.0
_OVERLAP = timedelta(seconds=10)
"""A line may arrive so much later than one with a later time: flow and tasks send their own."""
_SETTLE_S = 3.0
"""So long after the end, lines may still arrive, and a crashed run may be held for a restart."""
_LATEST_S = 30.0
"""After this, nothing is expected any more of a process that ended its run but has not said so."""
_LAST_LINE = "Finished in state "
"""So begins what Prefect's engine says last, unless the process is killed (`flow_engine`, 3.8)."""
_PATIENCE_S = 60.0


class LogTail:
    """The lines of a run that were not read yet.

    Args:
        client: How to reach the server.
        run_id: The run.

    Attributes:
        has_last_line: Whether the process of the run has said that it finished.
    """

    def __init__(self, client: SyncPrefectClient, run_id: UUID) -> None:
        self._client = client
        self._run_id = run_id
        self.has_last_line = False
        self._newest: datetime | None = None
        self._seen: dict[UUID, datetime] = {}

    def new(self) -> Iterator[Log]:
        """Yield what has arrived since the last call, in the order of its time."""
        since = self._newest - _OVERLAP if self._newest else None
        self._seen = {key: at for key, at in self._seen.items() if since is None or at >= since}
        where = LogFilter(
            flow_run_id=LogFilterFlowRunId(any_=[self._run_id]),
            timestamp=LogFilterTimestamp(after_=since),
        )
        offset = 0
        while page := self._page(where, offset):
            for log in page:
                if log.id not in self._seen:
                    self._seen[log.id] = log.timestamp
                    self._newest = max(self._newest or log.timestamp, log.timestamp)
                    if log.task_run_id is None and log.message.startswith(_LAST_LINE):
                        self.has_last_line = True
                    yield log
            offset += len(page)
            if len(page) < _PAGE:
                return

    def _page(self, where: LogFilter, offset: int) -> list[Log]:
        return self._client.read_logs(where, limit=_PAGE, offset=offset, sort=LogSort.TIMESTAMP_ASC)


def follow(client: SyncPrefectClient, run_id: UUID, say: Say) -> FlowRun:
    """Say every line of a run until it has ended, and return it. A short absence is waited for.

    Raises:
        httpx.TransportError: If the server is away for more than a minute.
    """
    tail = LogTail(client, run_id)
    ended_at, heard_at = None, time.monotonic()
    while True:
        try:
            run = client.read_flow_run(run_id)
            tail.has_last_line &= is_over(run)  # otherwise an earlier process has said it
            for log in tail.new():
                say(log_line(log))
            heard_at = time.monotonic()
        except httpx.TransportError:
            if time.monotonic() - heard_at > _PATIENCE_S:
                raise
            time.sleep(_POLL_S)
            continue
        if not is_over(run):
            ended_at = None
        elif ended_at is None:
            ended_at = heard_at
        elif heard_at - ended_at > (_SETTLE_S if _is_settled(run, tail) else _LATEST_S):
            return run
        time.sleep(_POLL_S)


def _is_settled(run: FlowRun, tail: LogTail) -> bool:
    """Tell whether no line is missing: a busy server takes them in long after the state."""
    ended_itself = run.state is not None and (run.state.is_completed() or run.state.is_failed())
    return tail.has_last_line or not ended_itself


def log_line(log: Log) -> str:
    """Return a record as lines of a terminal: local time, level if it matters, message."""
    level = f"{logging.getLevelName(log.level)} " if log.level >= logging.WARNING else ""
    return f"{log.timestamp.astimezone():%H:%M:%S} {level}{log.message}"
