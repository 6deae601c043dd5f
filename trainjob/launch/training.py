"""Run one attempt of a training to its end: the one call that tasks make.

It may be called from any thread, and leaves no process behind however it ends.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from trainjob.errors import LaunchError
from trainjob.events import Noted, emit
from trainjob.launch.applied_limits import applied_limits
from trainjob.launch.card_usage import signing_card_activity
from trainjob.launch.command import launcher_argv
from trainjob.launch.environment import rank_environment, search_path
from trainjob.launch.evidence import memory_events
from trainjob.launch.failure import Explained, training_error
from trainjob.launch.first_failure import first_failure, was_told_to_leave
from trainjob.launch.launch import Launch
from trainjob.launch.liveness import CARDS_SIGN
from trainjob.launch.memory_group import memory_group
from trainjob.launch.mounts import mounted
from trainjob.launch.mpi import Mpirun, NoMpirun, find_mpirun
from trainjob.launch.numa import cores_of_ranks, told_cores
from trainjob.launch.output import following_output
from trainjob.launch.over_memory import read_over_memory
from trainjob.launch.records import RankRecords, read_records
from trainjob.launch.sandbox import sandbox_of
from trainjob.launch.supervision import Control, supervise

__all__ = ["Control", "TrainingResult", "run_training"]

StopReason = Literal["finished", "auto_stop", "target"]
_KILLED = (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS)
# Below the range from which the kernel takes ports for outgoing connections.
_PORTS = range(20000, 32000)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a training ended that did not fail.

    Attributes:
        reason: ``finished``: every rank left with 0; ``auto_stop``: stopped by its time limit;
            ``target``: stopped by `Control.stop`, since its target was reached.
        seconds: Wall clock from the start of the supervisor to the end of the last process.
    """

    reason: StopReason
    seconds: float


def run_training(
    launch: Launch,
    control: Control | None = None,
    credentials: Mapping[str, str] | None = None,
) -> TrainingResult:
    """Start all ranks, emit what they write, and wait until every process has ended.

    Emits `RankOutput` and `StepReported` to the listeners of this context; all of it was delivered
    when the call returns. An exception in this thread (KeyboardInterrupt, Prefect's termination)
    stops the ranks within the grace of the launch and is raised again; a second one kills them.

    Args:
        launch: What to start.
        control: Stops the training from elsewhere, and hears of such an exception.
        credentials: Variables for the environment of the ranks and for nothing else, above all not
            for the disk.

    Raises:
        RankFailed: A rank failed; the message is what a person needs to see.
        TrainingFailed: The training stood still, or launcher or supervisor died under the ranks.
        LaunchError: The ranks could not be started.
    """
    if not launch.code_dir.is_dir():
        raise LaunchError(f"asked to run in {str(launch.code_dir)!r}, found no such folder")
    with memory_group(launch.memory_bytes, launch.run_id) as group:
        near = cores_of_ranks(launch, os.environ)
        limited = replace(launch, memory_group=group, rank_cores=near)
        if applied := applied_limits(limited):
            emit(Noted(applied))
        if near:
            emit(Noted(told_cores(near)))
        return _run_limited(limited, control or Control(), credentials or {})


def _run_limited(
    launch: Launch, control: Control, credentials: Mapping[str, str]
) -> TrainingResult:
    port = _free_port()
    argv = launcher_argv(launch, _mpirun_of(launch), port)
    environment = rank_environment(launch, os.environ, port) | dict(credentials)
    memory = memory_events(group=launch.memory_group)
    started = time.monotonic()
    with _view(launch) as showing:
        _write_order(launch, [*showing, *argv])
        with following_output(launch), _signing_cards(launch):
            finished = supervise(launch, environment, control)
    seconds = time.monotonic() - started
    if finished is not None and finished.reason != "memory":
        _tell_of_memory(launch)
    ranks = read_records(launch.records_dir, launch.world_size)
    error = training_error(launch, ranks, finished, memory)
    reason: StopReason = "finished"
    if finished is not None and finished.reason in ("auto_stop", "target"):
        reason = finished.reason
    if error is not None:
        first = first_failure(ranks)
        if reason == "finished" or _could_not_save(first, error):
            raise error
        if first is not None and not _ended_as_asked(first, error):
            emit(Noted(f"while the training was stopped, {error.failure.headline}"))
    return TrainingResult(reason, seconds)


def _tell_of_memory(launch: Launch) -> None:
    """Say of a training that was ending for another reason that it could not save for memory."""
    if over := read_over_memory(launch.records_dir):
        emit(Noted(f"{over.headline}; they were ended while they were stopping"))


@contextmanager
def _view(launch: Launch) -> Iterator[list[str]]:
    """Yield the words before the command of a launch that show its ranks what they are to see."""
    path = search_path(os.environ)
    if launch.is_sandboxed:
        yield sandbox_of(launch, path)
        return
    with mounted(launch.mounts, path) as words:
        yield words


def _signing_cards(launch: Launch) -> AbstractContextManager[None]:
    lease = launch.lease if launch.stall_s else None
    return signing_card_activity(launch.device, lease, launch.records_dir / CARDS_SIGN)


def _could_not_save(rank: RankRecords | None, error: Explained) -> bool:
    """Tell whether a rank failed by itself before SIGTERM, while it was to save and to leave.

    What ranks get from each other's leaving is no failure: an exception that another attempt would
    not have, or an abort of native code.
    """
    if rank is None or rank.exit is None or was_told_to_leave(rank):
        return False
    if rank.error is None:
        return rank.exit.code in _KILLED
    return not error.restart


def _ended_as_asked(rank: RankRecords, error: Explained) -> bool:
    """Tell whether a rank ended as SIGTERM, and SIGKILL after it, make one end."""
    if not was_told_to_leave(rank):
        return False
    if rank.error is not None:
        return rank.error.type in ("SystemExit", "KeyboardInterrupt")
    rule = error.failure.rule
    was_short_of_memory = rule is not None and rule.oom_killed
    code = rank.exit.code if rank.exit else -signal.SIGKILL
    return not was_short_of_memory and (code > 0 or code in (-signal.SIGTERM, -signal.SIGKILL))


def _mpirun_of(launch: Launch) -> Mpirun | None:
    if launch.launcher != "mpi":
        return None
    mpirun = find_mpirun()
    if isinstance(mpirun, NoMpirun):
        raise LaunchError(f"asked for mpirun, found {mpirun.found}; {mpirun.do}")
    return mpirun


def _write_order(launch: Launch, argv: list[str]) -> None:
    """Write what supervisor and ranks have to do. It holds no secret: nothing of an environment."""
    launch.records_dir.mkdir(parents=True)
    order = {
        "argv": argv,
        "launcher": launch.launcher,
        "world_size": launch.world_size,
        "program": launch.program,
        "is_script": launch.is_script,
        "log_dir": str(launch.log_dir.absolute()),
        "auto_stop_s": launch.auto_stop_s,
        "grace_s": launch.grace_s,
        "is_restartable": launch.is_restartable,
        "stall_s": launch.stall_s,
        "watched_dirs": [str(folder.absolute()) for folder in launch.watched_dirs],
        "device": launch.device,
        "stop_file": str(launch.stop_file.absolute()),
        "claims": launch.claims,
        "cores": launch.core_lease.cores if launch.core_lease else None,
        "rank_cores": launch.rank_cores,
        "memory_bytes": launch.memory_bytes,
        "memory_group": str(launch.memory_group) if launch.memory_group else None,
    }
    launch.order_file.write_text(json.dumps(order), encoding="utf-8")


def _free_port() -> int:
    """Return a port that is free on loopback, different ones for runs that start together."""
    start = (os.getpid() * 7919 + time.monotonic_ns() // 1000) % len(_PORTS)
    for i in range(len(_PORTS)):
        port = _PORTS[(start + i) % len(_PORTS)]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise LaunchError(f"asked for a free port in {_PORTS.start}-{_PORTS.stop - 1}, found none")
