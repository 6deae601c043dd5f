"""Who uses something of the cache: a process that can be told from every other one.

An owner stands in the name of a file or folder, so that a rename hands it over in one step. Its
machine stands beside it there, and not in its text, so that a trainjob that knows owners without a
machine sees who uses something, too: it may work with the same cache.
"""

import hashlib
import os
import re
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from trainjob.launch.processes import read_process

_TOKEN = re.compile(r"([0-9a-f]{8})\.(\d+)\.(\d+)\.(\d+)")
_MACHINE_ID = Path("/etc/machine-id")
_MACHINE_ID_CHARS = 32


@dataclass(frozen=True, slots=True)
class Owner:
    """A process.

    Attributes:
        boot: Start of the id that its kernel drew when the machine started.
        namespace: Number of the namespace that its id belongs to; a container has its own.
        pid: Its id.
        start_ticks: When it began, in clock ticks since the machine did; ids are used again.
        machine: Its machine, see `machine_id`; empty if that is not known.
    """

    boot: str
    namespace: int
    pid: int
    start_ticks: int
    machine: str = ""

    @classmethod
    def this(cls) -> Self:
        """Return this process."""
        pid = os.getpid()
        process = read_process(pid)
        start_ticks = process.start_ticks if process else 0
        return cls(boot_id(), _namespace(), pid, start_ticks, machine_id())

    @classmethod
    def nobody(cls) -> Self:
        """Return who owns what was given up."""
        return cls("0" * 8, 0, 0, 0)

    @classmethod
    def parse(cls, token: str, machine: str = "") -> Self | None:
        """Return the owner that `str` wrote; None if it did not write this."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        return cls(match[1], int(match[2]), int(match[3]), int(match[4]), machine)

    def is_alive(self, seen: Path, patience_s: float) -> bool:
        """Say whether the process may still be there.

        Args:
            seen: A file that it wrote last. A process of another machine or container cannot be
                asked after, and counts as alive while this file is not old.
            patience_s: How old.
        """
        if self.pid == 0:
            return False
        if (self.boot, self.namespace) == (boot_id(), _namespace()):
            process = read_process(self.pid)
            return process is not None and process.start_ticks == self.start_ticks
        if self.machine and self.machine == machine_id() and self.boot != boot_id():
            return False  # of this machine, before it started again
        try:
            return time.time() - seen.stat().st_mtime < patience_s
        except OSError:
            return False

    def __str__(self) -> str:
        """Return text for a file name, without the machine."""
        return f"{self.boot}.{self.namespace}.{self.pid}.{self.start_ticks}"


@cache
def boot_id() -> str:
    """Return text that is another one after the machine started again."""
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


@cache
def machine_id() -> str:
    """Return text that stays when this machine starts again; empty if nothing tells it from others.

    An image may give one id to many machines (machine-id(5) warns of it), and a name may be given
    twice, but hardly both. The id itself is not to be shown, says the same page.
    """
    try:
        drawn = _MACHINE_ID.read_text().strip()
    except (OSError, ValueError):
        return ""
    if len(drawn) != _MACHINE_ID_CHARS:  # "uninitialized", or empty, as in many containers
        return ""
    return hashlib.sha256(f"{drawn} {os.uname().nodename}".encode()).hexdigest()[:8]


def _namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino
