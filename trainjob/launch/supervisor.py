"""The process above the launcher: it decides when a run ends and leaves nothing behind.

Started by `supervision` as ``python -I -S supervisor.py ORDER_FILE`` in a session of its own,
standard library alone. Its standard input is the lifeline to the flow process: ``s`` asks for a
stop, ``k`` for one without delay, its end means that the flow process died. To its standard output
it writes one JSON line an event; why the run ended is what it decided, never an exit code.

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
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05
_FAILED_GRACE_S = 10.0
"""How long other ranks may go on after one failed: what they save together cannot be complete."""
_ORPHANED_GRACE_S = 2.0
_LAUNCHER_GRACE_S = 5.0
_LEFTOVER_GRACE_S = 1.0
_KILL_TIMEOUT_S = 10.0


def main() -> None:
    """Run the launcher of the order and everything below it to its end."""
    order_file = Path(sys.argv[1])
    order = json.loads(order_file.read_text(encoding="utf-8"))
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervisor = Supervisor(order, order_file.parent)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: supervisor.stop("stopped", order["grace_s"]))
    supervisor.run(_start(order["argv"]))


def _start(argv: list[str]) -> int:
    """Start the launcher so that it dies with us, and return its pid."""
    own_pid = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != own_pid:
            os._exit(1)
        _become(argv)
    except OSError as error:
        sys.stderr.write(f"{argv[0]!r} cannot be started: {error.strerror}\n")
    finally:
        os._exit(127)


def _become(argv: list[str]) -> NoReturn:
    for signum in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted


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
        self._kill_at: float | None = None
        self._asked_to_leave: set[int] = set()
        self._began: dict[int, int] = {}
        self._ended: set[int] = set()
        self._dismissed: set[int] = set()

    def run(self, launcher: int) -> None:
        """Watch over `launcher` until it and everything below it has ended."""
        _tell(event="started", pid=launcher)
        auto_stop_s = self._order["auto_stop_s"]
        auto_stop_at = None if auto_stop_s is None else time.monotonic() + auto_stop_s
        while (status := _reap(launcher)) is None:
            self._listen()
            self._look_at_ranks()
            self._dismiss_ranks()
            now = time.monotonic()
            if auto_stop_at is not None and now >= auto_stop_at and self._kill_at is None:
                self.stop("auto_stop", self._order["grace_s"])
            if self._kill_at is not None:
                self._ask_to_leave(launcher)
                if now >= self._kill_at:
                    _signal_all(_descendants(), signal.SIGKILL)
        self._end_leftovers()
        code = os.waitstatus_to_exitcode(status)
        _tell(event="finished", reason=self.reason or "finished", code=code)

    def stop(self, reason: str, grace_s: float) -> None:
        """End the run for `reason`; the first one counts, the shortest grace too."""
        if self.reason is None:
            self.reason = reason
            _tell(event="stopping", reason=reason)
        self._end_within(grace_s)

    def _end_within(self, grace_s: float) -> None:
        kill_at = time.monotonic() + grace_s
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    def _listen(self) -> None:
        """Wait a moment for a command of the flow process, or its death."""
        if not self._lifeline:
            time.sleep(_POLL_S)
            return
        ready, _, _ = select.select(self._lifeline, [], [], _POLL_S)
        commands = os.read(0, 64) if ready else None
        # A process that the flow process forked may hold the lifeline open after its death.
        if commands == b"" or os.getppid() != self._flow_pid:
            self._lifeline = []
            self.stop("orphaned", min(self._order["grace_s"], _ORPHANED_GRACE_S))
        elif commands:
            self.stop("stopped", 0.0 if b"k" in commands else self._order["grace_s"])

    def _look_at_ranks(self) -> None:
        """Notice ranks that began, and end the run when one has failed."""
        for rank in range(self._order["world_size"]):
            if rank in self._ended:
                continue
            if rank not in self._began:
                begin = _read_json(self._records_dir / f"begin-{rank}.json")
                if begin is None:
                    continue
                self._began[rank] = begin["pid"]
            # In this order: the stub records the end before it ends itself.
            is_there = Path(f"/proc/{self._began[rank]}").exists()
            ended = _read_json(self._records_dir / f"exit-{rank}.json")
            if ended is None and is_there:
                continue
            self._ended.add(rank)
            if (ended is None or ended["code"] != 0) and self._kill_at is None:
                self._end_within(min(self._order["grace_s"], _FAILED_GRACE_S))

    def _dismiss_ranks(self) -> None:
        """Let the stubs of ranks that failed or were asked to leave go, once all have ended."""
        waiting = {pid for rank, pid in self._began.items() if rank in self._ended}
        waiting -= self._dismissed
        if self._kill_at is None or not waiting or self._began.keys() - self._ended:
            return
        self._dismissed |= waiting
        _signal_all(waiting, signal.SIGHUP)
        self._end_within(_LAUNCHER_GRACE_S)

    def _ask_to_leave(self, launcher: int) -> None:
        """Send SIGTERM once to every rank, or to the launcher as long as there is none.

        Not through the launcher: torchrun would kill the ranks after 30 s, whatever the grace.
        """
        running = {pid for rank, pid in self._began.items() if rank not in self._ended}
        targets = running if self._began else {launcher}
        _signal_all(targets - self._asked_to_leave, signal.SIGTERM)
        self._asked_to_leave |= targets

    def _end_leftovers(self) -> None:
        """End what outlives the launcher: first asked, then killed until none is there."""
        if not _descendants():
            return
        now = time.monotonic()
        kill_at = now + _LEFTOVER_GRACE_S if self._kill_at is None else self._kill_at
        _signal_all(_descendants() - self._asked_to_leave, signal.SIGTERM)
        while (left := _descendants()) and time.monotonic() < max(now, kill_at) + _KILL_TIMEOUT_S:
            if time.monotonic() >= kill_at:
                _signal_all(left, signal.SIGKILL)
            time.sleep(_POLL_S / 5)
            _reap()
        _reap()


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


def _descendants() -> set[int]:
    """Return all living processes below this one."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # The name before the last bracket may hold anything.
            state, parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                children.setdefault(int(parent), []).append(int(folder.name))
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def _signal_all(pids: set[int], signum: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or a script has written into it
        return None


def _tell(**event: Any) -> None:
    """Write an event for the flow process, if it still lives."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    main()
