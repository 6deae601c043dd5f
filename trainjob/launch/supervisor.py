"""The process above the launcher: it decides when a run ends and leaves nothing behind.

Started by `supervision` as ``python -I -S supervisor.py ORDER_FILE`` in a session of its own,
standard library alone. Its standard input is the lifeline to the flow process: ``s`` asks for a
stop, ``t`` for one because the target is reached, ``k`` for one without delay, its end means that
the flow process died. To its standard output it writes one JSON line an event; why the run ended is
what it decided, never an exit code. For those who come after the flow process, it records itself in
``supervisor.json`` and the end in ``outcome.json``.

Every descendant stays below it (PR_SET_CHILD_SUBREAPER), daemons included, so that all can be
found; and when it is killed itself, the kernel kills the launcher, and that the ranks.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

# Run by path, it does not find this package by itself. Last, to hide nothing of Python's.
sys.path.append(str(Path(__file__).parents[2]))

from trainjob.launch.liveness import Liveness
from trainjob.launch.memory_watch import MemoryWatch
from trainjob.launch.processes import descendants, read_process, signal_all
from trainjob.launch.rank_files import open_rank_file, write_rank_file
from trainjob.launch.start import start

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05
_CALM_POLL_S = 0.5
"""While all ranks run: their end, that of the launcher, and a command wake us before that."""
_NEVER = float("inf")
_REQUEST_SHARE = 2 / 3
"""Of the grace, what ranks that listen to a request have to save before they get SIGTERM."""
_FAILED_GRACE_S = 10.0
"""How long other ranks may go on after one failed: what they save together cannot be complete."""
_ORPHANED_GRACE_S = 10.0
"""Time to save what a new process of the run goes on from, which starts after 20 s at least."""
_LAUNCHER_GRACE_S = 5.0
_LEFTOVER_GRACE_S = 1.0
_KILL_TIMEOUT_S = 10.0


def main() -> None:
    """Run the launcher of the order and everything below it to its end."""
    order_file = Path(sys.argv[1])
    order = json.loads(order_file.read_text(encoding="utf-8"))
    for claim in order["claims"]:  # ours to keep open, and of nobody who outlives us
        os.set_inheritable(claim, False)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervisor = Supervisor(order, order_file.parent)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, supervisor.note_signal)
    supervisor.run(start(order))


class Supervisor:
    """The state of one run.

    Attributes:
        reason: Why the run is being ended; None while it ends by itself.
    """

    def __init__(self, order: dict[str, Any], records_dir: Path) -> None:
        self.reason: str | None = None
        self._order = order
        self._records_dir = records_dir
        self._flow_pid = os.getppid()
        self._lifeline: list[int] = [0]
        self._ends: list[int] = []
        self._looks_often = False
        self._got_signal = False
        self._is_asked = False
        self._terminate_at = _NEVER
        self._kill_at = _NEVER
        self._leave_s = _NEVER
        self._asked_to_leave: set[int] = set()
        self._began: dict[int, dict[str, Any]] = {}
        self._ended: set[int] = set()
        self._dismissed: set[int] = set()

    def run(self, launcher: int) -> None:
        """Watch over `launcher` until it and everything below it has ended."""
        _tell(event="started", pid=launcher)
        self._wake_at_end_of(launcher)
        own = read_process(os.getpid())
        self._record("supervisor", pid=os.getpid(), start_ticks=own.start_ticks if own else 0)
        auto_stop_s, liveness = self._order["auto_stop_s"], None
        auto_stop_at = None if auto_stop_s is None else time.monotonic() + auto_stop_s
        if self._order["stall_s"] is not None:
            liveness = Liveness(self._order, self._records_dir, launcher)
            liveness.start()
        memory = self._watch_memory()
        while (status := _reap(launcher)) is None:
            self._listen()
            self._look_at_ranks()
            self._dismiss_ranks()
            if memory is not None and memory.exceeded.is_set():
                self._end_over_memory()
            if self._kill_at == _NEVER:
                if auto_stop_at is not None and time.monotonic() >= auto_stop_at:
                    self.stop("auto_stop", self._order["grace_s"])
                elif liveness is not None and liveness.stalled.is_set():
                    # Who hangs cannot save, and the others wait for it: no use in asking.
                    self._decide("stalled")
                    self._end_within(min(self._order["grace_s"], _FAILED_GRACE_S))
            self._climb(launcher)
        self._end_leftovers()
        outcome = {
            "reason": self.reason or "finished",
            "code": os.waitstatus_to_exitcode(status),
        }
        self._record("outcome", **outcome)
        _tell(event="finished", **outcome)

    def note_signal(self, *_: object) -> None:
        """Remember that a signal asked for a stop, to act on it at a time that suits."""
        self._got_signal = True

    def stop(self, reason: str, grace_s: float) -> None:
        """End the run for `reason`; the first one counts, the shortest grace too.

        Ranks that listen to a request are asked to save and leave, and have most of the grace.
        """
        self._look_at_ranks()  # one may have begun this moment, or failed, or ended
        if reason == "target" and self._kill_at != _NEVER:  # it must not hide that one has failed
            return
        if reason != "stopped" or len(self._ended) < self._order["world_size"]:
            self._decide(reason)
        running = self._running()
        is_heard = any(map(self._listens, running))
        if self._kill_at == _NEVER and is_heard:
            with contextlib.suppress(OSError):
                write_rank_file(Path(self._order["stop_file"]), "")
            # Stubs keep it from those that do not handle it.
            signal_all((self._began[rank]["pid"] for rank in running), signal.SIGUSR1)
        self._end_within(grace_s, ask_s=grace_s * _REQUEST_SHARE if is_heard else 0.0)

    def _watch_memory(self) -> MemoryWatch | None:
        """Watch what the ranks take, if they may take so much only and no cgroup sees to it."""
        if self._order["memory_bytes"] is None or self._order["memory_group"] is not None:
            return None
        watch = MemoryWatch(self._order, self._records_dir)
        self._ends.append(watch.wake)
        watch.start()
        return watch

    def _end_over_memory(self) -> None:
        """Kill all, as the kernel would: who saves now takes still more."""
        if self._kill_at == _NEVER:  # otherwise it ends for another reason, and only sooner
            self._decide("memory")
        self._end_within(0.0)

    def _decide(self, reason: str) -> None:
        if reason in ("stopped", "target"):
            self._is_asked = True
        if self.reason is None:
            self.reason = reason
            _tell(event="stopping", reason=reason)

    def _end_within(self, grace_s: float, ask_s: float = 0.0) -> None:
        """Send SIGTERM after `ask_s`, SIGKILL after `grace_s` seconds, or sooner if so decided."""
        now = time.monotonic()
        self._terminate_at = min(self._terminate_at, now + ask_s)
        self._kill_at = min(self._kill_at, now + grace_s)
        self._leave_s = min(self._leave_s, grace_s - ask_s)

    def _listen(self) -> None:
        """Wait a moment for a command of the flow process, its death, or a signal."""
        if self._got_signal:
            self._got_signal = False
            self.stop("stopped", self._order["grace_s"])
        ready = self._wait()
        if not self._lifeline:
            return
        commands = os.read(0, 64) if 0 in ready else None
        # A process that the flow process forked may hold the lifeline open after its death.
        if commands == b"" or os.getppid() != self._flow_pid:
            self._lifeline = []
            if not self._is_asked:  # otherwise another process may wait for the ranks to save
                most_s = _ORPHANED_GRACE_S if self._order["is_restartable"] else _NEVER
                self.stop("orphaned", min(self._order["grace_s"], most_s))
        for command in commands or b"":
            reason = "target" if command == ord("t") else "stopped"
            self.stop(reason, 0.0 if command == ord("k") else self._order["grace_s"])

    def _wait(self) -> list[int]:
        """Wait a moment for a command or the end of a process; return what there is to read."""
        # Until all ranks have begun, and once something has ended or is to end, time counts.
        is_calm = (
            not self._looks_often
            and self._kill_at == _NEVER
            and len(self._began) == self._order["world_size"]
        )
        pause_s = _CALM_POLL_S if is_calm else _POLL_S
        ready, _, _ = select.select([*self._lifeline, *self._ends], [], [], pause_s)
        for end in set(ready).intersection(self._ends):
            self._looks_often = True
            self._ends.remove(end)
            os.close(end)
        return ready

    def _wake_at_end_of(self, pid: int) -> None:
        """Have the end of a process seen at once, where kernel and Python can tell (Linux 5.3)."""
        try:
            self._ends.append(os.pidfd_open(pid))
        except (AttributeError, OSError):  # they cannot, or it has ended: looking often sees it too
            self._looks_often = True

    def _look_at_ranks(self) -> None:
        """Notice ranks that began, and end the run when one has failed."""
        for rank in range(self._order["world_size"]):
            if rank in self._ended:
                continue
            if rank not in self._began:
                begin = _read_json(f"{self._records_dir}/begin-{rank}.json")
                if begin is None:
                    continue
                self._began[rank] = begin
                self._wake_at_end_of(begin["program_pid"])
            # In this order: the stub records the end before it ends itself.
            is_there = os.access(f"/proc/{self._began[rank]['pid']}", os.F_OK)
            ended = _read_json(f"{self._records_dir}/exit-{rank}.json")
            if ended is None and is_there:
                continue
            self._ended.add(rank)
            # Who fails after it was sent SIGTERM takes nothing from those that still save.
            if time.monotonic() < self._terminate_at:
                if ended is None or ended["code"] != 0:
                    self._end_within(min(self._order["grace_s"], _FAILED_GRACE_S))
                elif ended["terminated_ns"] is not None:  # by somebody else, perhaps with others
                    self._end_within(self._order["grace_s"])

    def _dismiss_ranks(self) -> None:
        """Let the stubs of ranks that failed or were asked to leave go, once all have ended."""
        if self._kill_at == _NEVER or self._began.keys() - self._ended:
            return
        waiting = {self._began[rank]["pid"] for rank in self._ended} - self._dismissed
        if waiting:
            self._dismissed |= waiting
            # The others' numbers may belong to anybody by now.
            signal_all(waiting & descendants(os.getpid()).keys(), signal.SIGHUP)
            self._end_within(_LAUNCHER_GRACE_S)

    def _climb(self, launcher: int) -> None:
        """Send what it is time for: SIGTERM once to every rank, SIGKILL to all that is left.

        SIGTERM goes to the launcher as long as there is no rank. Never through the launcher:
        torchrun would kill the ranks after 30 s, whatever the grace.
        """
        now = time.monotonic()
        if now >= self._terminate_at:
            # This may be late: we, or the whole machine, may have stood still for a while.
            self._kill_at = max(self._kill_at, now + self._leave_s)
            self._leave_s = 0.0
            running = {self._began[rank]["pid"] for rank in self._running()}
            targets = running if self._began else {launcher}
            signal_all(targets - self._asked_to_leave, signal.SIGTERM)
            self._asked_to_leave |= targets
        if now >= self._kill_at:
            signal_all(descendants(os.getpid()), signal.SIGKILL)

    def _running(self) -> list[int]:
        return [rank for rank in self._began if rank not in self._ended]

    def _listens(self, rank: int) -> bool:
        """Tell whether a rank asks for requests to stop, or handles the signal of one.

        Of a script, `user_script` knows; the kernel would also show a handler of MPICH.
        """
        if (self._records_dir / f"listens-{rank}").exists():
            return True
        return not self._order["is_script"] and _catches_request(self._began[rank]["program_pid"])

    def _end_leftovers(self) -> None:
        """End what outlives the launcher: first asked, then killed until none is there."""
        if not descendants(os.getpid()):
            return
        now = time.monotonic()
        kill_at = now + _LEFTOVER_GRACE_S if self._kill_at == _NEVER else self._kill_at
        signal_all(descendants(os.getpid()).keys() - self._asked_to_leave, signal.SIGTERM)
        while (left := descendants(os.getpid())) and (
            time.monotonic() < max(now, kill_at) + _KILL_TIMEOUT_S
        ):
            if time.monotonic() >= kill_at:
                signal_all(left, signal.SIGKILL)
            time.sleep(_POLL_S / 5)
            _reap()
        _reap()

    def _record(self, event: str, **fields: Any) -> None:
        """Write a record, complete or not at all."""
        file = self._records_dir / f"{event}.json"
        with contextlib.suppress(OSError):  # a full disk must not keep us from our work
            write_rank_file(file, json.dumps(fields))


def _reap(launcher: int | None = None) -> int | None:
    """Collect ended children, which orphans become; return the status of `launcher` if ended."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == launcher:
                found = status
    return found


def _catches_request(pid: int) -> bool:
    """Tell whether a process has a handler for SIGUSR1."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def _read_json(file: str) -> Any:
    if not os.access(file, os.F_OK):  # a tenth of the time of Path, at every look at every rank
        return None
    try:
        with open_rank_file(Path(file)) as opened:
            return json.loads(opened.read())
    except (OSError, ValueError):  # a script has written into it
        return None


def _tell(**event: Any) -> None:
    """Write an event for the flow process, if it still lives."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    main()
