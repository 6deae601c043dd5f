"""One process at a time works in the workspace of a run.

A run that is delivered again may find the process that saves for its predecessor still at work, or
ranks that have not left yet. Two of them in the same folders would mix their files.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from trainjob.errors import TrainjobError
from trainjob.launch.waiting import wait_for_supervisor
from trainjob.workspace import Workspace

_logger = logging.getLogger(__name__)
_POLL_S = 0.2


@contextmanager
def alone_in(workspace: Workspace, *, grace_s: float, timeout_s: float = 900.0) -> Iterator[int]:
    """Hold the workspace of a run until the block ends, once nobody else does and no rank is left.

    Args:
        workspace: The folders of the run.
        grace_s: How long ranks of an earlier process may take to leave.
        timeout_s: How long to wait for a process that saves.

    Yields:
        A file descriptor; a child process that inherits it holds the workspace, too (flock(2)).

    Raises:
        TrainjobError: If another process of the run does not end.
    """
    workspace.root.mkdir(parents=True, exist_ok=True)
    lock = os.open(workspace.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(lock, workspace, timeout_s)
        wait_for_ranks(workspace, grace_s)
        yield lock
    finally:
        os.close(lock)


def wait_for_ranks(workspace: Workspace, timeout_s: float) -> None:
    """Wait until no process of the last attempt is left, or the time is over."""
    last = workspace.attempt_logs(workspace.last_attempt)
    wait_for_supervisor(last / "records", timeout_s)


def _take(lock: int, workspace: Workspace, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    is_told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TrainjobError(
                    f"asked for the workspace {str(workspace.root)!r}, found another process of "
                    "this run at work in it; end that process, or wait and retry the run"
                ) from None
        else:
            return
        if not is_told:
            _logger.info("waiting for another process that saves for this run")
            is_told = True
        time.sleep(_POLL_S)
