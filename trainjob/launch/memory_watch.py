"""Ends a training whose processes take more memory together than their job has, by looking.

For machines that let us make no cgroup (`trainjob.launch.memory_group`). Counted is what belongs to
processes, each page once: their own memory and what they share, but no files that they read, which
the kernel gives back by itself. No rlimit says that: RLIMIT_AS counts the addresses that a driver
reserves, RLIMIT_DATA stacks that are never used, and both count one process alone.

Used by `supervisor`, on a thread of its own; standard library alone.
"""

import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainjob.launch.processes import Process, descendants
from trainjob.launch.rank_files import UNREADABLE, open_rank_file, write_rank_file

_GROWTH_BYTES_S = 2 * 2**30
"""What processes may take in a second: the further the limit, the later the next look."""
_MIN_PAUSE_S = 0.1
_MAX_PAUSE_S = 1.0
_LOOKING_SHARE = 0.02
"""Of one core, what looking is to take, as far as `_MAX_COSTLY_PAUSE_S` allows."""
_MAX_COSTLY_PAUSE_S = 2.0
"""Where many share much, exact counting takes seconds; the limit has to hold there too."""
_SECOND_LOOK_S = 0.2
_MEMORY = {"RssAnon:", "RssShmem:"}
_MEMORY_SHARED_OUT = {"Pss_Anon:", "Pss_Shmem:"}
_SHARED_MEMORY = ("/dev/shm/", "/memfd:", "/SYSV", "/dev/zero")  # noqa: S108 - names, not opened
"""How the names of mappings begin that look like files and are memory."""


class MemoryWatch:
    """Watches the memory of everything below this process.

    Args:
        order: What is run; see `trainjob.launch.training`.
        records_dir: Where the ranks record their processes.

    Attributes:
        exceeded: Set when it is too much; then ``memory.json`` is in `records_dir`.
        wake: A file descriptor that ends when `exceeded` is set.
    """

    def __init__(self, order: dict[str, Any], records_dir: Path) -> None:
        self.exceeded = threading.Event()
        self.wake, self._waker = os.pipe()
        self._limit_bytes: int = order["memory_bytes"]
        self._world_size: int = order["world_size"]
        self._records_dir = records_dir

    def start(self) -> None:
        """Watch until it is too much or this process ends."""
        threading.Thread(target=self._run, name="memory-watch", daemon=True).start()

    def _run(self) -> None:
        while True:
            begun = time.monotonic()
            processes = descendants(os.getpid())
            used_bytes = sum(self._used_by(processes).values())
            if used_bytes > self._limit_bytes and self._is_still_over(processes):
                return
            left_bytes = self._limit_bytes - used_bytes
            time.sleep(pause_s(left_bytes, time.monotonic() - begun))

    def _is_still_over(self, before: Mapping[int, Process]) -> bool:
        """Look again after a moment at processes that were there before; tell if it is too much.

        Between vfork(2) and exec(2) a process has all memory of its parent, as one that is being
        started by posix_spawn(3) or `subprocess`: what both have would count twice.
        """
        time.sleep(_SECOND_LOOK_S)
        processes = descendants(os.getpid())
        used = self._used_by({pid: found for pid, found in processes.items() if pid in before})
        if sum(used.values()) <= self._limit_bytes:
            return False
        try:
            self._record(processes, used)
        finally:
            self.exceeded.set()
            os.close(self._waker)
        return True

    def _used_by(self, processes: Iterable[int]) -> dict[int, int]:
        """Return how much each process uses; exactly only if it may be too much together."""
        used = {pid: memory_of(pid) for pid in processes}
        if sum(used.values()) <= self._limit_bytes:
            return used
        # What processes share was counted for each of them; this takes longer, but counts once.
        return {pid: memory_of(pid, shared_out=True) for pid in used}

    def _record(self, processes: Mapping[int, Process], used: Mapping[int, int]) -> None:
        """Write down by whom it is too much."""
        ranks, used_bytes = self._by_rank(processes, used), sum(used.values())
        record = {"limit_bytes": self._limit_bytes, "used_bytes": used_bytes, "ranks": ranks}
        with suppress(OSError):  # a full disk
            write_rank_file(self._records_dir / "memory.json", json.dumps(record))

    def _by_rank(
        self, processes: Mapping[int, Process], used: Mapping[int, int]
    ) -> list[tuple[int, int]]:
        """Return ranks and what all processes of each use; the launcher has no rank."""
        stubs = {stub: rank for rank, stub in self._stubs()}
        by_rank = dict.fromkeys(stubs.values(), 0)
        for pid, used_bytes in used.items():
            above: int | None = pid
            while above is not None and above not in stubs:
                above = processes[above].parent if above in processes else None
            if above is not None:
                by_rank[stubs[above]] += used_bytes
        return sorted(by_rank.items())

    def _stubs(self) -> Iterable[tuple[int, int]]:
        for rank in range(self._world_size):
            record = self._records_dir / f"begin-{rank}.json"
            with (
                suppress(OSError, *UNREADABLE),  # not yet, or written into
                open_rank_file(record) as opened,
            ):
                yield rank, int(json.loads(opened.read())["pid"])


def pause_s(left_bytes: int, took_s: float) -> float:
    """Return how long to wait until the next look.

    Args:
        left_bytes: What may still be taken.
        took_s: How long the last look took.
    """
    until_full_s = min(max(left_bytes / _GROWTH_BYTES_S, _MIN_PAUSE_S), _MAX_PAUSE_S)
    return max(until_full_s, min(took_s / _LOOKING_SHARE, _MAX_COSTLY_PAUSE_S))


def memory_of(pid: int, *, shared_out: bool = False) -> int:
    """Return the memory of a process in bytes, without files that it has mapped; 0 if it ended.

    Args:
        pid: The process.
        shared_out: Count of a page only this process's share. The kernel looks at every page, and
            shows it of processes of our own user alone; of others all pages count.
    """
    if shared_out:
        with suppress(OSError):
            found = _fields(f"/proc/{pid}/smaps_rollup", _MEMORY_SHARED_OUT)
            if len(found) == len(_MEMORY_SHARED_OUT):
                return sum(found)
        with suppress(OSError):
            return _sum_of_mappings(pid)
    with suppress(OSError):
        return sum(_fields(f"/proc/{pid}/status", _MEMORY))
    return 0


def _sum_of_mappings(pid: int) -> int:
    """Return the shares of a process in its pages by its mappings, for kernels before 5.3.

    Raises:
        OSError: It has ended, or may not be looked at.
    """
    total_kib = share_kib = 0
    is_file = False
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as opened:  # noqa: PTH123
        for line in opened:
            words = line.split(maxsplit=5)
            if not words[0].endswith(":"):  # addresses, rights, offset, device, inode, name
                is_file = words[4] != "0" and not words[5].startswith(_SHARED_MEMORY)
            elif words[0] == "Pss:":
                share_kib = int(words[1])
                total_kib += 0 if is_file else share_kib
            elif words[0] == "Anonymous:" and is_file:  # own pages in place of the file's
                total_kib += min(share_kib, int(words[1]))
    return total_kib * 1024


def _fields(file: str, names: set[str]) -> list[int]:
    """Return what the kernel says under some names, which is in KiB, in bytes."""
    with open(file, encoding="utf-8", errors="replace") as opened:  # noqa: PTH123 - is half as fast
        lines = (line.split() for line in opened)
        return [int(words[1]) * 1024 for words in lines if words and words[0] in names]
