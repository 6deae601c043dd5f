"""What the kernel says: how often it killed for want of memory, limit and peak, a full disk.

A process that the kernel kills cannot say why, and its parent sees only SIGKILL. The counters of
the cgroup can tell, compared before and after; `trainjob.launch.failure` quotes them.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainjob.launch.machine import memory_bytes
from trainjob.values import format_size

_MOUNT = Path("/sys/fs/cgroup")
_VMSTAT = Path("/proc/vmstat")
_KERNEL_LOG = Path("/dev/kmsg")
_KILLED = re.compile(r"Killed process \d+ \(")
_MAX_LINES = 3
_MAX_LINE_CHARS = 200
_MAX_RECORD_BYTES = 8192  # the kernel gives one record a read, and none that is longer
_FULL_BYTES = 2**18
_CLOCK_SLACK_S = 1.0  # the kernel's log has a clock of its own


@dataclass(frozen=True, slots=True)
class MemoryEvents:
    """The kernel's account of memory at one moment.

    Attributes:
        oom_kills: How many processes it has killed for want of memory; None if it does not tell.
        of_machine: Whether the count is that of the whole machine, not of our cgroup.
        peak_bytes: The most memory that our cgroup ever used.
        limit_bytes: The most that it may use.
        at_s: When, on the monotonic clock.
        group: The cgroup that was asked; None: that of this process.
    """

    oom_kills: int | None
    of_machine: bool
    peak_bytes: int | None
    limit_bytes: int
    at_s: float
    group: Path | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What can be quoted, and whether the kernel killed for want of memory."""

    lines: tuple[str, ...] = ()
    oom_killed: bool = False


def memory_events(mount: Path = _MOUNT, group: Path | None = None) -> MemoryEvents:
    """Return the kernel's account of memory for a cgroup, to compare with a later one.

    Args:
        mount: Where the cgroups are.
        group: That of the ranks alone; None: our own, in which they are too.
    """
    folder = group or _cgroup(mount)
    kills, limit, peak = None, memory_bytes(), None
    if folder is not None:
        # Version 2 of cgroups, then version 1.
        kills = _field(folder / "memory.events", "oom_kill")
        if kills is None:
            kills = _field(folder / "memory.oom_control", "oom_kill")
        old_limit = _field(folder / "memory.stat", "hierarchical_memory_limit")
        limit = min(limit, old_limit or limit, _number(folder / "memory.max") or limit)
        peak = _number(folder / "memory.peak") or _number(folder / "memory.max_usage_in_bytes")
    of_machine = kills is None
    if of_machine:
        kills = _field(_VMSTAT, "oom_kill")
    return MemoryEvents(kills, of_machine, peak, limit, time.monotonic(), group)


def memory_evidence(before: MemoryEvents | None, *, was_killed: bool) -> Evidence:
    """Return what the kernel says about memory since `before`.

    Args:
        before: Its account from before the attempt; None if nobody asked.
        was_killed: Whether a process died by SIGKILL, so that "none" is worth saying.
    """
    if before is None:
        return Evidence()
    now = memory_events(group=before.group)
    if before.oom_kills is None or now.oom_kills is None:
        return Evidence()
    kills = now.oom_kills - before.oom_kills
    if not kills and not was_killed:
        return Evidence()
    number = "1 process" if kills == 1 else f"{kills or 'no'} processes"
    where = "on this machine" if now.of_machine else "in the cgroup of the run"
    quoted = [f"kernel: {line}" for line in _kernel_lines(before.at_s)] if kills else []
    peak = "" if now.peak_bytes is None else f", peak {format_size(now.peak_bytes)}"
    lines = (
        f"out-of-memory killer: {number} killed {where} during the attempt",
        *quoted,
        f"memory: limit {format_size(now.limit_bytes)}{peak}",
    )
    return Evidence(lines, oom_killed=kills > 0)


def disk_evidence(folder: Path) -> str | None:
    """Return that the disk of `folder` is full, or None; on a full disk no rank can say why."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    # Some file systems keep a share for root.
    free_bytes = disk.f_frsize * (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail)
    if free_bytes >= _FULL_BYTES:
        return None
    size_bytes = disk.f_frsize * disk.f_blocks
    sizes = f"{format_size(free_bytes)} free of {format_size(size_bytes)}"
    return f"disk: No space left on device of {folder}: {sizes}"


def _cgroup(mount: Path) -> Path | None:
    """Return the folder of our memory cgroup; in a container, the mount itself may be it."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if "memory" in controllers.split(","):
            top = mount / "memory"
        elif not controllers:
            top = mount
        else:
            continue
        for folder in (top / own.lstrip("/"), top):
            if (folder / "memory.events").exists() or (folder / "memory.oom_control").exists():
                return folder
    return None


def _field(file: Path, name: str) -> int | None:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _kernel_lines(since_s: float) -> list[str]:
    """Return what the kernel's log says of processes that it killed for want of memory.

    Not filtered by process: in a container, the ids in the kernel's log are not ours.
    """
    said = [
        text[:_MAX_LINE_CHARS]
        for at_s, text in _kernel_log()
        if at_s >= since_s - _CLOCK_SLACK_S and _KILLED.search(text)
    ]
    return said[-_MAX_LINES:]


def _kernel_log() -> Iterator[tuple[float, str]]:
    """Yield seconds and text of every record of the kernel's log, if we may read it."""
    try:
        log = os.open(_KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        while True:
            try:
                record = os.read(log, _MAX_RECORD_BYTES).decode("utf-8", "replace")
            except BrokenPipeError:
                continue  # this record was overwritten meanwhile
            if not record:
                return
            head, _, text = record.partition(";")
            yield int(head.split(",")[2]) / 1e6, text.partition("\n")[0]
    except OSError:  # there is no more
        return
    finally:
        os.close(log)
