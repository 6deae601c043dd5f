"""Let pools become idle before a worker or a machine is stopped: ``python -m deployments.drain``.

A worker of Prefect 3.8 that is stopped kills its runs. So a pool is paused, which no run notices
that has begun; the rest waits in the pool for ``--resume``.
"""

import argparse
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus

from deployments.finishing import finishers_of
from deployments.worker_process import worker_of
from flows.server_client import configured_server
from trainjob.errors import TrainjobError
from trainjob.values import counted

Say = Callable[[str], None]

_HAS_PROCESS = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_POLL_S = 2.0
_MAX_NAMES = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Drain or resume pools and return the exit code: 1 if something still runs."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.resume and not arguments.pools:
        # Not all: one may be paused for another reason, and by somebody else.
        parser.error("--resume needs the names of the pools that are to take runs again")
    try:
        return _drain_or_resume(arguments)
    except TrainjobError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        _complain("stopped waiting; the pools stay paused until `--resume POOL ...`")
        return 130


def drain(
    client: SyncPrefectClient,
    pools: Sequence[str],
    say: Say,
    *,
    timeout_s: float | None = None,
    poll_s: float = _POLL_S,
    workers: Collection[int] = (),
) -> bool:
    """Pause pools and wait until none of their runs has a process.

    Args:
        client: The server to tell and to ask.
        pools: Names of pools that exist.
        say: Is told what happens, a line each time that it changes.
        timeout_s: How long to wait; absent, until nothing runs.
        poll_s: The time between two looks.
        workers: Process ids of workers of this machine; it waits also for what still saves the
            results of runs in their workspaces.

    Returns:
        Whether nothing runs any more. The pools stay paused in either case.
    """
    for pool in pools:
        client.update_work_pool(pool, WorkPoolUpdate(is_paused=True))
        say(f"{pool}: takes no new runs")
    busy = partial(_busy_text, client, pools, workers)
    if not _wait_until_idle(busy, say, timeout_s, poll_s):
        say(f"still running after {timeout_s:g} s; the pools stay paused until `--resume POOL ...`")
        return False
    for pool in pools:
        say(f"{pool}: nothing runs; {_left_text(client, pool)}")
    return True


def resume(client: SyncPrefectClient, pools: Sequence[str], say: Say) -> None:
    """Let pools take runs again.

    Args:
        client: The server to tell.
        pools: Names of pools that exist.
        say: Is told what was done.
    """
    for pool in pools:
        client.update_work_pool(pool, WorkPoolUpdate(is_paused=False))
        workers = _online_workers(client, pool)
        by = f"by {', '.join(workers)}" if workers else "but no worker of it is online"
        say(f"{pool}: takes runs again, {by}")


def _drain_or_resume(arguments: argparse.Namespace) -> int:
    with ExitStack() as held:
        client = held.enter_context(configured_server())
        pools = _known(client, arguments.pools)
        if arguments.resume:
            resume(client, pools, _say)
            return 0
        worker = None
        if arguments.stop is not None:
            worker = held.enter_context(worker_of(pools, arguments.stop))
        workers = [] if worker is None else [worker.pid]
        timeout_s = arguments.timeout
        if not drain(client, pools, _say, timeout_s=timeout_s, poll_s=_POLL_S, workers=workers):
            return 1
        if worker is not None:
            worker.stop()
            _say(f"worker {worker.pid} has stopped")
    return 0


def _wait_until_idle(
    busy: Callable[[], str], say: Say, timeout_s: float | None, poll_s: float
) -> bool:
    """Wait until twice in a row there is nothing to say of what is busy."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    said = ""
    num_idle_looks = 0
    # Twice, since a worker may have taken a run just before the pause and not told its state yet.
    while num_idle_looks < 2:
        line = busy()
        num_idle_looks = 0 if line else num_idle_looks + 1
        if line not in ("", said):
            said = line
            say(line)
        if line and deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(poll_s)
    return True


def _known(client: SyncPrefectClient, wanted: Sequence[str]) -> list[str]:
    """Return the pools that were asked for, all for none."""
    known = [pool.name for pool in client.read_work_pools()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not known:
        found = f"only {', '.join(sorted(known))}" if known else "no pool on the server"
        raise TrainjobError(
            f"asked for the pool {', '.join(unknown) or 'of any name'}, found {found}; "
            "name one of these, or run `python -m deployments.register`"
        )
    return list(wanted) or sorted(known)


def _runs(
    client: SyncPrefectClient, pools: Sequence[str], states: list[StateType]
) -> list[FlowRun]:
    return client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=list(pools))),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states))
        ),
    )


def _busy_text(client: SyncPrefectClient, pools: Sequence[str], workers: Collection[int]) -> str:
    """Say what is waited for; nothing if it is nothing."""
    if running := _runs(client, pools, _HAS_PROCESS):
        return _waiting_text([f"{run.name} ({run.state_name})" for run in running])
    if saving := finishers_of(workers).values():
        return _waiting_text([f"{run_id} (its results are being saved)" for run_id in saving])
    return ""


def _waiting_text(running: Sequence[str]) -> str:
    names = sorted(running)
    more = "" if len(names) <= _MAX_NAMES else f" and {len(names) - _MAX_NAMES} more"
    return f"waits for {counted(len(running), 'run')}: {', '.join(names[:_MAX_NAMES])}{more}"


def _left_text(client: SyncPrefectClient, pool: str) -> str:
    due = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=datetime.now(UTC)),
    )
    waiting = client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])), flow_run_filter=due
    )
    kept = f"left for --resume: {counted(len(waiting), 'run')}; " if waiting else ""
    workers = _online_workers(client, pool)
    return f"{kept}{'online: ' + ', '.join(workers) if workers else 'no worker is online'}"


def _online_workers(client: SyncPrefectClient, pool: str) -> list[str]:
    workers = client.read_workers_for_work_pool(pool)
    return sorted(worker.name for worker in workers if worker.status == WorkerStatus.ONLINE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.drain",
        description="Pause pools and wait until nothing of them runs.",
    )
    parser.add_argument(
        "pools", nargs="*", metavar="POOL", help="name of a pool; none: all are drained"
    )
    parser.add_argument("--resume", action="store_true", help="let these pools take runs again")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="how long to wait")
    parser.add_argument(
        "--stop", type=int, metavar="PID", help="then stop this worker of one of the pools"
    )
    return parser


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
