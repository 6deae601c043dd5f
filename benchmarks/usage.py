"""What processes use of the machine, read from /proc (proc_pid_stat(5), proc_pid_status(5))."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Used:
    """What a process has used since it began.

    Attributes:
        name: What it is: ``flow process``, ``supervisor``, ``torchrun``, ``ranks``, …
        cpu_s: CPU time.
        peak_mb: The most memory that it had at once (VmHWM), in MB.
    """

    name: str
    cpu_s: float
    peak_mb: float


def used_by(pid: int) -> dict[int, Used]:
    """Return what a flow process and its descendants have used so far, by pid."""
    found = {pid: Used("flow process", _cpu_s(pid), _peak_mb(pid))}
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for child in _children(parent):
            found[child] = Used(_name(child, found[parent].name), _cpu_s(child), _peak_mb(child))
            waiting.append(child)
    return found


def use_of(pid: int, name: str) -> Used:
    """Return what one process has used so far."""
    return Used(name, _cpu_s(pid), _peak_mb(pid))


def usage_rows(
    first: dict[int, Used], last: dict[int, Used], seconds: float
) -> list[tuple[str, str, str]]:
    """Return a row for each kind of process: its name, share of a core, and most memory.

    Args:
        first: What they had used before.
        last: What they had used after.
        seconds: The time from the one to the other.
    """
    rows = []
    for name in sorted({used.name for used in last.values()}):
        pids = [pid for pid, used in last.items() if used.name == name and pid in first]
        share = sum(last[pid].cpu_s - first[pid].cpu_s for pid in pids) / seconds
        rows.append((name, f"{100 * share:.1f} %", f"{peak_mb(last, name):.0f} MB"))
    return rows


def peak_mb(used: dict[int, Used], name: str) -> float:
    """Return the most memory that a process of this kind had at once, in MB."""
    return max(one.peak_mb for one in used.values() if one.name == name)


def _name(pid: int, parent: str) -> str:
    """Return what a process is, by its command line and what its parent is."""
    words = ""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    if "supervisor.py" in words:
        return "supervisor"
    if "torch.distributed.run" in words:
        return "torchrun"
    if "bootstrap.py" in words:
        # The rank is a fork of its stub.
        return "stubs of the ranks" if parent == "torchrun" else "ranks"
    return "other"


def _cpu_s(pid: int) -> float:
    with suppress(OSError):
        # The name before the last bracket may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S
    return 0.0


def _peak_mb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def is_marked(run_id: str) -> bool:
    """Tell whether any process carries the mark of a run."""
    mark = f"TRAINJOB_RUN_ID={run_id}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                return True
    return False
