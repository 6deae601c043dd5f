"""What processes use of the machine, read from /proc (proc_pid_stat(5), proc_pid_status(5))."""

import os
import statistics
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LOOK_S = 1.0


@dataclass
class Usage:
    """What the processes of runs used, by what they are.

    Attributes:
        shares: Of a core, a value a run.
        peaks_mb: The most memory that one of them had at once (VmHWM), in MB, a value a run.
    """

    shares: dict[str, list[float]] = field(default_factory=dict)
    peaks_mb: dict[str, list[float]] = field(default_factory=dict)

    def watch(self, process: subprocess.Popen[bytes], begun: Path, done: Path) -> None:
        """Add what a run and its descendants use between two files that its script makes.

        Raises:
            RuntimeError: If the run ends before.
        """
        _wait_for(begun, process)
        first_s, first = time.monotonic(), _look(process.pid)
        last_s, last = first_s, first
        while not done.exists():
            time.sleep(_LOOK_S)
            _refuse_end(process, done)
            if not done.exists():
                last_s, last = time.monotonic(), _look(process.pid)
        for name in sorted({seen.name for seen in last.values()}):
            pids = [pid for pid, seen in last.items() if seen.name == name]
            used_s = sum(last[pid].cpu_s - first[pid].cpu_s for pid in pids if pid in first)
            self.shares.setdefault(name, []).append(used_s / max(last_s - first_s, _LOOK_S))
            self.peaks_mb.setdefault(name, []).append(max(last[pid].peak_mb for pid in pids))

    def rows(self) -> list[tuple[str, str, str]]:
        """Return a row for each kind of process: medians of shares, the highest memory."""
        return [
            (name, f"{100 * statistics.median(shares):.1f} %", f"{max(self.peaks_mb[name]):.0f} MB")
            for name, shares in self.shares.items()
        ]


@dataclass(frozen=True, slots=True)
class _Seen:
    name: str
    cpu_s: float
    peak_mb: float


def _wait_for(begun: Path, process: subprocess.Popen[bytes]) -> None:
    while not begun.exists():
        _refuse_end(process, begun)
        time.sleep(0.01)


def _refuse_end(process: subprocess.Popen[bytes], awaited: Path) -> None:
    if process.poll() is not None and not awaited.exists():
        raise RuntimeError(f"the run ended with {process.returncode} before it made {awaited}")


def _look(pid: int) -> dict[int, _Seen]:
    """Return what a process and its descendants have used so far."""
    found = {pid: _Seen("flow process", cpu_s(pid), _peak_mb(pid))}
    names = {pid: "flow process"}
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for child in _children(parent):
            names[child] = _name(child, names[parent])
            found[child] = _Seen(names[child], cpu_s(child), _peak_mb(child))
            waiting.append(child)
    return found


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


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used; 0 if it is gone."""
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
