"""Starts the launcher below the supervisor: in the cores and the cgroup of its job, to die with it.

Used by `supervisor`; standard library alone.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_NO_GROUP = b"n"


def start(order: dict[str, Any]) -> int:
    """Start the launcher of an order so that it dies with us, and return its pid.

    If its cgroup cannot be joined, ``memory_group`` of the order is None afterwards.
    """
    own_pid = os.getpid()
    # What comes before the child has our handlers no more would be lost on it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    ended, told = os.pipe()
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(told)
        if os.read(ended, 1) == _NO_GROUP:
            order["memory_group"] = None
        os.close(ended)
        return pid
    argv = order["argv"]
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != own_pid:
            os._exit(1)
        if not _has_joined(order["memory_group"]):
            os.write(told, _NO_GROUP)
        os.close(told)
        _choose_cores(order["cores"])
        _become(argv, mask)
    except OSError as error:
        sys.stderr.write(f"{argv[0]!r} cannot be started: {error.strerror}\n")
    finally:
        os._exit(127)


def _has_joined(group: str | None) -> bool:
    """Have this process, and all that it starts, in a cgroup; tell if that is not possible."""
    try:
        if group is not None:
            Path(group, "cgroup.procs").write_text("0", encoding="utf-8")
    except OSError as error:
        why = f"cannot be joined: {error.strerror}; memory is watched instead"
        sys.stderr.write(f"the cgroup {group!r} {why}\n")
        return False
    return True


def _choose_cores(cores: list[int] | None) -> None:
    """Have this process, and all that it starts, on some cores; without them ranks run as well."""
    try:
        if cores is not None:
            os.sched_setaffinity(0, cores)
    except OSError as error:  # switched off, or taken from the container, since they were chosen
        why = f"{error.strerror}; they compute on any core"
        sys.stderr.write(f"the ranks cannot be held to the cores {cores}: {why}\n")


def _become(argv: list[str], mask: set[int]) -> NoReturn:
    for signum in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted
