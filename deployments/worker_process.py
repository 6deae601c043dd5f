"""Which process of this machine is a worker, and one that is to be stopped later.

That one, and no other of its number: `deployments.drain` may wait for hours between finding a
worker and stopping it. `deployments.leave` asks which processes are workers.
"""

import os
import re
import select
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from trainjob.errors import TrainjobError
from trainjob.launch.processes import read_environment, read_process

_STOP_TIMEOUT_S = 60.0
_OPTION = re.compile("-([bBdEhiIOPqRsSuvVx?]*)([cmWX]?)(.*)")
"""Letters that have no value, one that has, and that value if it is joined (python --help)."""


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
        words = command_line(pid)
        if not ({"worker", "start"} <= set(words) and _pool(words) in pools):
            found = f"`{' '.join(words)}`" if words else "no such process"
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


def is_worker(pid: int) -> bool:
    """Tell whether a process is itself a worker, and not only what has begun one."""
    return starts_worker(command_line(pid))


def starts_worker(words: Sequence[str]) -> bool:
    """Tell whether a command line is that of a worker: Python that runs ``prefect worker start``.

    Those of sudo, timeout, a shell or the init of a container that have begun one have the same
    words. The child of these is the worker, and none of its runs.
    """
    if not words or not Path(words[0]).name.startswith("python"):
        return False
    program, *arguments = _program_of(words[1:])
    is_prefect = program == "-m prefect" or Path(program).name == "prefect"
    return is_prefect and ("worker", "start") in pairwise(arguments)


def command_line(pid: int) -> list[str]:
    """Return the words that a process was begun with; none if there is no such process."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0")
        return text.split("\0") if text else []
    return []


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


def _program_of(words: Sequence[str]) -> list[str]:
    """Return what an interpreter with these arguments runs, and the arguments of that.

    It is a path, or a module after ``-m ``; empty if it is neither.
    """
    rest = iter(words)
    for word in rest:
        option = _OPTION.fullmatch(word)
        if option is None:
            return [word, *rest]
        kind, value = option[2], option[3] or (next(rest, "") if option[2] else "")
        if kind == "m":
            return [f"-m {value}", *rest]
        if kind == "c":
            break
    return [""]


def _pool(words: Sequence[str]) -> str | None:
    """Return the pool that a command line names, in the ways that Prefect reads it."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, is_joined, value = word.partition("=")
        if option in ("--pool", "-p"):
            return value if is_joined else following
    return None
