"""Tells that a training stands still, and which rank the others wait for (``limits.stall``).

Signs of life are, at any rank: output, a report of progress, growth of the watched folders, and
computing: at least 5 % of a core over the quiet time, since less is idle threads. Of a rank whose
main thread is seen in two places, 0.5 % is enough: it goes from step to step and mostly waits. A
rank that spins in a collective does not compute: its stacks show it in one and the same call from
the middle of the quiet time to its end, however often one looks. A command that is no Python script
has no stacks, so its CPU time counts as it is. That a card computes is a sign that the flow process
gives, which can ask its driver.

Used by `supervisor`, on a thread of its own, since a file system that hangs would hold it up;
standard library alone.
"""

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from trainjob.launch.folder_growth import FolderGrowth
from trainjob.launch.processes import Process, descendants, read_process
from trainjob.launch.rank_files import open_rank_file, write_rank_file
from trainjob.launch.stacks import (
    DEVICE_CALLS,
    HAS_ENDED,
    LEAVING_CALLS,
    Stack,
    take_stacks,
    waiting_call,
    waits_for_loader,
    waits_in_backward,
)

CARDS_SIGN = "cards-compute"
"""File beside the records of the ranks that changes while their cards compute (`card_usage`)."""

_LOOKS_A_WINDOW = 20
_MAX_LOOK_S = 10.0
_COMPUTING = 0.05
_COMPUTING_A_LITTLE = 0.005
_DOUBT_SHARE = 0.25
_MAX_DOUBT_S = 20.0
_STUCK = {"D": "is stuck in the kernel (disk or driver)", "T": "was stopped by a signal"}


class _Rank(NamedTuple):
    """A rank as it is now; without `begun` it has not been started yet."""

    number: int
    begun: bool
    stub: int
    program: int
    is_there: bool


class _Cpu(NamedTuple):
    """Seconds of CPU time, of a rank's program itself and of all processes below it."""

    own_s: float = 0.0
    below_s: float = 0.0


class _Quiet:
    """A time without output or progress.

    Attributes:
        since: When it began, on the monotonic clock.
        processes: All processes when it began.
        sample_at: When to take stacks next.
        waiting: Stacks of ranks that wait in a call of communication.
        moving: Ranks that were seen elsewhere, or in two different calls.
        stacks: The stack of each rank's main thread when it was first looked at.
        changed: Ranks whose main thread had another stack later.
        busy: Ranks that used their core, as of the last time that this was asked.
    """

    def __init__(self, since: float, processes: dict[int, Process], sample_at: float) -> None:
        self.since = since
        self.processes = processes
        self.sample_at = sample_at
        self.waiting: dict[int, str] = {}
        self.moving: set[int] = set()
        self.stacks: dict[int, str] = {}
        self.changed: set[int] = set()
        self.busy: set[int | None] = set()


class Liveness:
    """Watches the ranks of one attempt.

    Args:
        order: What is run; see `trainjob.launch.training`.
        records_dir: Where the ranks record what happens to them.
        launcher: The process of the launcher.

    Attributes:
        stalled: Set when the training stands still; then ``stall.json`` is in `records_dir`.
    """

    def __init__(self, order: dict[str, Any], records_dir: Path, launcher: int) -> None:
        self.stalled = threading.Event()
        self._stall_s: float = order["stall_s"]
        self._look_s = min(_MAX_LOOK_S, self._stall_s / _LOOKS_A_WINDOW)
        self._has_device: bool = order["device"] != "cpu"
        self._is_script: bool = order["is_script"]
        self._world_size: int = order["world_size"]
        self._records_dir = records_dir
        self._launcher = launcher
        self._growth = FolderGrowth([Path(folder) for folder in order["watched_dirs"]])
        logs = Path(order["log_dir"])
        self._files = [logs / "launcher.log", records_dir / CARDS_SIGN]
        for rank in range(self._world_size):
            records = [f"progress-{rank}.jsonl", _step_name(rank)]
            records += [f"begin-{rank}.json", f"exit-{rank}.json"]
            self._files += [logs / f"rank-{rank}.log", *(records_dir / name for name in records)]

    def start(self) -> None:
        """Watch until the training stands still or this process ends."""
        threading.Thread(target=self._run, name="liveness", daemon=True).start()

    def _run(self) -> None:
        signs, looked_at = self._signs(), time.monotonic()
        quiet: _Quiet | None = self._quiet(looked_at)
        while not self.stalled.is_set():
            time.sleep(self._look_s)
            now, before = time.monotonic(), signs
            signs = self._signs()
            # Whoever stopped this process, or its whole machine, stopped the ranks too.
            was_stopped = now - looked_at > self._look_s + self._stall_s / 2
            if signs != before or was_stopped:
                quiet = None
            elif quiet is None:
                quiet = self._quiet(looked_at)
            elif self._shows_life(quiet, now):
                quiet = self._quiet(now)
            elif now - quiet.since >= self._stall_s and self._signs() == signs:
                self._say_stalled(quiet, now)
            looked_at = time.monotonic()

    def _signs(self) -> list[tuple[int, int]]:
        return [_size_and_time(file) for file in self._files]

    def _quiet(self, since: float) -> _Quiet:
        self._growth.look(self._stall_s)
        return _Quiet(since, descendants(os.getpid()), since + self._stall_s / 2)

    def _shows_life(self, quiet: _Quiet, now: float) -> bool:
        """Look for the signs that cost more than a glance at a few files."""
        is_over = now - quiet.since >= self._stall_s
        if self._growth.look(self._stall_s, at_once=is_over):
            return True
        if now >= quiet.sample_at or is_over:
            quiet.sample_at = now + self._stall_s / _LOOKS_A_WINDOW
            self._look_at_stacks(quiet, self._ranks())
        return is_over and self._computes(quiet, now)

    def _look_at_stacks(self, quiet: _Quiet, ranks: list[_Rank]) -> None:
        stacks = self._stacks(ranks)
        for rank in ranks:
            stack = stacks.get(rank.number)
            if stack and quiet.stacks.setdefault(rank.number, stack.main) != stack.main:
                quiet.changed.add(rank.number)
            call = stack and waiting_call(stack, has_device=self._has_device)
            seen = quiet.waiting.setdefault(rank.number, stack.main) if stack and call else None
            if stack is None or seen != stack.main:
                quiet.moving.add(rank.number)

    def _stacks(self, ranks: list[_Rank]) -> dict[int, Stack]:
        stubs = {rank.number: rank.stub for rank in ranks if rank.is_there and self._is_script}
        return take_stacks(stubs, self._records_dir)

    def _computes(self, quiet: _Quiet, now: float) -> bool:
        """Tell whether anything below computes: what uses its core and does not only wait.

        Ranks that call a collective a thousand times a second are found in it nearly always, so
        before they are said to be in one call, they are looked at very often.
        """
        enough_s = _COMPUTING * (now - quiet.since)
        used = self._used(quiet, self._ranks())
        if any(cpu.below_s >= enough_s for cpu in used.values()):
            return True
        little_s = _COMPUTING_A_LITTLE * (now - quiet.since)
        if any(sum(used.get(number, _Cpu())) >= little_s for number in quiet.changed):
            return True
        # Before the many looks below: they cost a rank more than a little, which is not its work.
        busy = quiet.busy = {number for number, cpu in used.items() if sum(cpu) >= enough_s}
        doubt_until = time.monotonic() + min(_MAX_DOUBT_S, self._stall_s * _DOUBT_SHARE)
        while busy <= quiet.waiting.keys() - quiet.moving:
            if not busy or time.monotonic() >= doubt_until:
                return False
            still = [rank for rank in self._ranks() if rank.number not in quiet.moving]
            self._look_at_stacks(quiet, still)
        return True

    def _used(self, quiet: _Quiet, ranks: list[_Rank]) -> dict[int | None, _Cpu]:
        """Return what every rank used since the quiet began.

        None stands for what belongs to no rank: daemons, and until a rank begins the launcher. A
        launcher that only waits for its ranks says nothing of them.
        """
        below = descendants(os.getpid())
        owners: dict[int, int | None] = {rank.stub: rank.number for rank in ranks if rank.begun}
        programs = {rank.program for rank in ranks if rank.begun}
        # Without torchrun or mpirun, the only rank's stub is the launcher.
        is_above = bool(owners) and self._launcher not in owners
        used: dict[int | None, _Cpu] = {}
        for process in below.values():
            top = process
            while top.pid not in owners and top.parent in below:
                top = below[top.parent]
            if is_above and top.pid == self._launcher:
                continue
            number, so_far = owners.get(top.pid), used.get(owners.get(top.pid), _Cpu())
            own_s, waited_s = _cpu_since(quiet.processes.get(process.pid), process)
            is_program = process.pid in programs
            used[number] = _Cpu(
                so_far.own_s + (own_s if is_program else 0.0),
                so_far.below_s + waited_s + (0.0 if is_program else own_s),
            )
        return used

    def _ranks(self) -> list[_Rank]:
        return [self._rank(number) for number in range(self._world_size)]

    def _rank(self, number: int) -> _Rank:
        try:
            begin = json.loads(self._read(f"begin-{number}.json"))
        except (OSError, ValueError):
            return _Rank(number, begun=False, stub=0, program=0, is_there=False)
        has_ended = (self._records_dir / f"exit-{number}.json").exists()
        return _Rank(number, True, begin["pid"], begin["program_pid"], is_there=not has_ended)

    def _say_stalled(self, quiet: _Quiet, now: float) -> None:
        """Record what every rank was doing."""
        ranks = self._ranks()
        stacks = self._stacks(ranks)
        said = [
            self._say_rank(rank, stacks.get(rank.number), computes=rank.number in quiet.busy)
            for rank in ranks
        ]
        told = {"quiet_s": now - quiet.since, "behind": rank_behind(said), "ranks": said}
        with suppress(OSError):  # a full disk may be why nothing goes on
            write_rank_file(self._records_dir / "stall.json", json.dumps(told))
        self.stalled.set()

    def _say_rank(self, rank: _Rank, stack: Stack | None, *, computes: bool) -> dict[str, Any]:
        process = read_process(rank.program) if rank.is_there else None
        call = waiting_call(stack, has_device=self._has_device) if stack else None
        if stack and not call and not computes and waits_in_backward(stack):
            call = "backward"
        return {
            "rank": rank.number,
            "last_step": self._last_step(rank.number),
            "waits_in": call,
            "state": _state(rank, process, stack, call, computes=computes),
            "cpu_s": process.own_cpu_s + process.waited_cpu_s if process else 0.0,
            "stack": stack.text if stack else "",
        }

    def _last_step(self, number: int) -> int | None:
        try:
            return int(self._read(_step_name(number)))
        except (OSError, ValueError):
            return None

    def _read(self, name: str) -> bytes:
        with open_rank_file(self._records_dir / name) as record:
            return record.read()


def rank_behind(ranks: list[dict[str, Any]]) -> int | None:
    """Return the rank that the others wait for, or None if that cannot be told.

    Args:
        ranks: What ``stall.json`` says of each.
    """
    candidates = ranks
    steps = [rank["last_step"] for rank in ranks]
    if None not in steps:  # often only rank 0 reports: that says nothing of the others
        candidates = [rank for rank in ranks if rank["last_step"] == min(steps)]
    free = [rank for rank in candidates if rank["waits_in"] in (None, *LEAVING_CALLS)]
    if len(candidates) > 1 and any(rank["waits_in"] for rank in ranks):
        candidates = free
    return candidates[0]["rank"] if len(candidates) == 1 else None


def _state(
    rank: _Rank, process: Process | None, stack: Stack | None, call: str | None, *, computes: bool
) -> str:
    if not rank.is_there or process is None:
        return HAS_ENDED if rank.begun else "has not begun"
    if call in DEVICE_CALLS:
        return "waits for the device"
    if call in LEAVING_CALLS:
        return "has left and waits for the others to leave"
    if call:
        return "waits in a collective"
    if process.state in _STUCK:
        return _STUCK[process.state]
    if stack and waits_for_loader(stack):
        return "waits for its data loader"
    return "computes" if computes else "is idle"


def _cpu_since(before: Process | None, now: Process) -> tuple[float, float]:
    """Return the CPU time that a process and its ended children used since `before`."""
    if before is None or before.start_ticks != now.start_ticks:
        return now.own_cpu_s, now.waited_cpu_s
    return now.own_cpu_s - before.own_cpu_s, now.waited_cpu_s - before.waited_cpu_s


def _step_name(rank: int) -> str:
    return f"progress-{rank}.jsonl.step"


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
