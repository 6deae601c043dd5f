"""Run one attempt of a training to its end: the one call that tasks make.

It may be called from any thread, and leaves no process behind however it ends.
"""

import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Literal

from trainjob.errors import LaunchError
from trainjob.launch.command import launcher_argv
from trainjob.launch.environment import rank_environment
from trainjob.launch.failure import training_error
from trainjob.launch.launch import Launch
from trainjob.launch.mpi import Mpirun, NoMpirun, find_mpirun
from trainjob.launch.output import following_output
from trainjob.launch.records import read_records
from trainjob.launch.supervision import supervise

# Below the range from which the kernel takes ports for outgoing connections.
_PORTS = range(20000, 32000)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a training ended that did not fail.

    Attributes:
        reason: ``finished``: every rank left with 0; ``auto_stop``: stopped by its time limit.
        seconds: Wall clock from the start of the supervisor to the end of the last process.
    """

    reason: Literal["finished", "auto_stop"]
    seconds: float


def run_training(launch: Launch) -> TrainingResult:
    """Start all ranks, emit what they write, and wait until every process has ended.

    Emits `RankOutput` and `StepReported` to the listeners of this context; all of it was delivered
    when the call returns. An exception in this thread (KeyboardInterrupt, Prefect's termination)
    stops the ranks within the grace of the launch and is raised again; a second one kills them.

    Raises:
        RankFailed: A rank failed; the message is what a person needs to see.
        TrainingFailed: Launcher or supervisor died under the ranks.
        LaunchError: The ranks could not be started.
    """
    if not launch.code_dir.is_dir():
        raise LaunchError(f"asked to run in {str(launch.code_dir)!r}, found no such folder")
    _write_order(launch, launcher_argv(launch, _mpirun_of(launch)))
    environment = rank_environment(launch, os.environ, _free_port())
    started = time.monotonic()
    with following_output(launch):
        finished = supervise(launch, environment)
    seconds = time.monotonic() - started
    if finished is not None and finished.reason == "auto_stop":
        return TrainingResult("auto_stop", seconds)
    error = training_error(launch, read_records(launch.records_dir, launch.world_size), finished)
    if error is not None:
        raise error
    return TrainingResult("finished", seconds)


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
