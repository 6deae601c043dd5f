"""Have the jobs of a worker save and leave, before it is stopped: ``python -m deployments.leave``.

A worker of Prefect 3.8 that is stopped kills its flow processes without asking, and reports
nothing. For machines that cannot wait until their jobs are done; `deployments.drain` is for those
that can.
"""

import argparse
import signal
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from deployments.finishing import finishers_of
from deployments.worker_process import command_line, is_worker
from trainjob.launch.processes import descendants, signal_all

LEAVE_TIMEOUT_S = 150.0
"""How long jobs may take to leave: the default of `limits.grace`, then uploads and the report."""

_POLL_S = 0.1
_HINT = "name a worker by its process id: `pgrep -af 'worker start'` shows those of this machine\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Have the jobs of the given workers leave; return 1 if some are there, or were not found."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments.leave",
        description="Send SIGTERM to the jobs of workers and wait until they have left.",
    )
    parser.add_argument(
        "workers", type=int, nargs="*", metavar="PID", help="ids of worker processes"
    )
    parser.add_argument(
        "--timeout", type=float, default=LEAVE_TIMEOUT_S, metavar="SECONDS", help="how long to wait"
    )
    arguments = parser.parse_args(argv)
    if not arguments.workers:  # no success: whoever calls this goes on to stop a worker
        sys.stderr.write(
            "asked the jobs of workers to leave, found the id of none, so nobody was asked; "
            f"{_HINT}"
        )
        return 1
    workers, is_refused = _workers_among(arguments.workers)
    try:
        left = let_jobs_leave(workers, arguments.timeout) if workers else set()
    except PermissionError:
        sys.stderr.write(
            "asked jobs of another user to leave, found that only that user and root may; call "
            "this as the user of the worker\n"
        )
        return 1
    if left:
        pids = ", ".join(map(str, sorted(left)))
        sys.stderr.write(f"still there after {arguments.timeout:g} s: processes {pids}\n")
    return 1 if left or is_refused else 0


def let_jobs_leave(workers: Collection[int], timeout_s: float = LEAVE_TIMEOUT_S) -> set[int]:
    """Ask the flow processes that workers have now to leave, and wait until all is saved.

    What a worker starts meanwhile, such as in the places that become free below its limit, is left
    alone: asked so early, it would be Crashed before it could ask for a restart.

    Args:
        workers: Process ids of workers of this machine.
        timeout_s: How long to wait.

    Returns:
        Those that are still there.
    """
    deadline = time.monotonic() + timeout_s
    asked = _children(workers)
    signal_all(asked, signal.SIGTERM)
    while (left := asked & _children(workers)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    # What began after the flow had ended, or was at work before, saves what these had.
    while (saving := finishers_of(workers)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return left | saving.keys()


def _workers_among(pids: Sequence[int]) -> tuple[list[int], bool]:
    """Return the workers that are named, and whether another one was asked for; say which.

    What has only begun a worker is found by a `pgrep` for it, too: it is passed over, unless no
    worker is named beside it.
    """
    workers = [pid for pid in pids if is_worker(pid)]
    is_refused = False
    for pid in pids:
        if pid in workers:
            continue
        words = command_line(pid)
        # Its name alone: the line may hold what is not for a log.
        name = Path(words[0]).name if words else "no such process"
        if workers and "worker start" in " ".join(words):
            sys.stderr.write(f"passed over the process {pid}: {name}, which is no worker itself\n")
            continue
        is_refused = True
        found = f"{name}, which is no worker itself" if words else name
        sys.stderr.write(f"asked the jobs of the worker {pid} to leave, found {found}; {_HINT}")
    return workers, is_refused


def _children(workers: Collection[int]) -> set[int]:
    """Return the jobs of workers.

    A child that is a worker itself is one whose program has not begun yet, after fork(2): it would
    be killed before it could ask for a restart.
    """
    below = descendants(*workers).values()
    return {found.pid for found in below if found.parent in workers and not is_worker(found.pid)}


if __name__ == "__main__":
    sys.exit(main())
