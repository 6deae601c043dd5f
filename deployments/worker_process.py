"""A worker of this machine that is to be stopped later: that one, and no other of its number.

Used by `deployments.drain`, which may wait for hours between finding the worker and stopping it.
"""

import os
import select
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trainjob.errors import TrainjobError
from trainjob.launch.processes import read_environment, read_process

_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A process that was seen to be a worker.

    Attributes:
        pid: Its number, which the kernel may give again once it has ended.
        descriptor: Stands for this process alone (pidfd_open(2)).
    """

    pid: int
    descriptor: int

    def stop(self) -> None:
        """Have it stopped and wait for that; one that has ended by itself is as good.

        Raises:
            TrainjobError: If it does not stop, or would not stay so: its service starts it again.
        """
        if command := stop_command(_cgroups_of(self.pid)):
            raise TrainjobError(
                f"asked the worker with the process id {self.pid} to stop, found that its service "
                f"would start it again; nothing runs any more: `{command}` stops it for good"
            )
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGTERM)
        if not select.select([self.descriptor], [], [], _STOP_TIMEOUT_S)[0]:
            raise TrainjobError(
                f"asked the worker with the process id {self.pid} to stop, found it there after "
                f"{_STOP_TIMEOUT_S:g} s; end it by SIGKILL, since nothing runs"
            )


@contextmanager
def worker_of(pools: Collection[str], pid: int) -> Iterator[WorkerProcess]:
    """Give the worker with this number, until the block ends.

    Args:
        pools: Names of the pools that it may be a worker of.
        pid: The number of its process.

    Raises:
        TrainjobError: If it is no worker of these pools, or not ours to stop.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except (OSError, OverflowError) as error:  # in which ways depends on the number
        raise _refusal(pools, pid, "no such process") from error
    try:
        words = _words(pid)
        if not ({"worker", "start"} <= set(words) and _pool(words) in pools):
            found = f"`{' '.join(words)}`" if any(words) else "no such process"
            raise _refusal(pools, pid, found)
        try:
            signal.pidfd_send_signal(descriptor, 0)
        except PermissionError as error:
            raise _refusal(pools, pid, "one of another user") from error
        except ProcessLookupError as error:
            raise _refusal(pools, pid, "no such process") from error
        yield WorkerProcess(pid, descriptor)
    finally:
        os.close(descriptor)


def stop_command(cgroups: str) -> str | None:
    """Return what stops a process for good that a service of systemd keeps running.

    Args:
        cgroups: Those of the process, as in ``/proc/PID/cgroup``.

    Returns:
        The command; None if it belongs to no service, such as one of a terminal.
    """
    for line in cgroups.splitlines():
        names = line.rpartition(":")[2].split("/")
        units = [name for name in names if name.endswith((".service", ".scope"))]
        if units and units[-1].endswith(".service"):
            is_of_user = any(name.startswith("user@") for name in units[:-1])
            return f"systemctl {'--user ' if is_of_user else ''}stop {units[-1]}"
    return None


def _cgroups_of(pid: int) -> str:
    """Return the cgroups of a process that systemd has started itself; empty: it has not.

    What a service has begun, such as cron, has the cgroups of that service, and is none itself.
    """
    with suppress(OSError):
        if _is_of_systemd(pid, read_environment(pid)):
            return Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
    return ""


def _is_of_systemd(pid: int, variables: Mapping[str, str]) -> bool:
    """Tell whether systemd says so to the process itself, as it does since version 248.

    Before, it says only which service the process is of, and is its parent (systemd.exec(5)).
    """
    if (told := variables.get("SYSTEMD_EXEC_PID")) is not None:
        return told == str(pid)
    process = read_process(pid) if "INVOCATION_ID" in variables else None
    return process is not None and Path(f"/proc/{process.parent}/comm").read_text() == "systemd\n"


def _refusal(pools: Collection[str], pid: int, found: str) -> TrainjobError:
    return TrainjobError(
        f"asked to stop the worker with the process id {pid}, found {found}; give the id of a "
        f"`prefect worker start --pool {' or '.join(pools)}` of yours on this machine"
    )


def _words(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    return []


def _pool(words: Sequence[str]) -> str | None:
    """Return the pool that a command line names, in the ways that Prefect reads it."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, is_joined, value = word.partition("=")
        if option in ("--pool", "-p"):
            return value if is_joined else following
    return None
