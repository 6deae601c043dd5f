"""Stays beside a flow process and becomes its finisher when the flow is killed, or asks for it.

A worker that is stopped kills its flows at once, by SIGKILL (Prefect 3.8), and so does the kernel
where memory runs out: a flow cannot see to what it leaves by itself. So it starts ``python -I -S
guard.py ROOT LOCK FLOW`` in a session of its own, standard library alone, and tells it on its
standard input, a line each: ``kLENGTH `` and what a finisher has to know by now, ``f`` to finish,
``e`` that the run has ended. The end of the flow without the last two says that it was killed.

What finishes is `flows.finisher`, which this process becomes by execve(2): there is one of them, or
none, whatever signals come, and what it has to hide is in memory alone.
"""

import os
import select
import signal
import sys
from contextlib import suppress

_CHUNK = 65536


def main() -> None:
    """Guard the flow with the process id that is the third argument, until it needs no guard."""
    root, lock, flow = sys.argv[1], sys.argv[2], int(sys.argv[3])
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Those that stop a whole service mean the flow as well. Not ignored: that would be
        # inherited by the finisher, which is to be stopped like any other process.
        signal.signal(signum, _go_on)
    if os.getppid() != flow:  # it died before we began, and its number may be another's
        return
    worker = _parent(flow)
    kept, is_asked = _listen(_ends_of(flow))
    if kept:
        # A worker kills its flows before it ends: one that has ended by now has not.
        is_worker_gone = worker is None or bool(select.select([worker], [], [], 0)[0])
        _become_finisher(root, lock, kept, is_asked, None if is_worker_gone else worker)


def _go_on(*_: object) -> None:
    """Take a signal without a word; what waits goes on waiting (PEP 475)."""


def _listen(flow: int | None) -> tuple[bytes, bool]:
    """Return what is to be finished, nothing if it ended by itself, and whether that was asked."""
    os.set_blocking(0, False)
    kept, said = b"", b""
    while True:
        watched = [0] if flow is None else [0, flow]
        ready, _, _ = select.select(watched, [], [])
        try:
            chunk = os.read(0, _CHUNK)
        except BlockingIOError:
            if flow in ready:  # what it forked may hold the pipe open, and has nothing to say
                return kept, False
            continue
        if not chunk:
            return kept, False
        *lines, said = (said + chunk).split(b"\n")
        for line in lines:
            if line == b"e":
                return b"", False
            if line == b"f":
                return kept, True
            head, _, told = line.partition(b" ")
            if head == b"k%d" % len(told):
                kept = told


def _ends_of(pid: int) -> int | None:
    """Return what is readable once a process has ended, where the kernel can tell (Linux 5.3)."""
    with suppress(AttributeError, OSError):
        return os.pidfd_open(pid)
    return None


def _parent(pid: int) -> int | None:
    """Return what is readable once the parent of a process, which is its worker, has ended."""
    with suppress(OSError):
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib is a megabyte
            parent = int(file.read().rpartition(b")")[2].split()[1])
        return _ends_of(parent)
    return None


def _become_finisher(root: str, lock: str, kept: bytes, is_asked: bool, worker: int | None) -> None:
    logs = f"{root}/logs"
    os.makedirs(logs, exist_ok=True)  # noqa: PTH103 - as above
    log = os.open(f"{logs}/finisher.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    order = os.memfd_create("order")
    while kept:
        kept = kept[os.write(order, kept) :]
    os.lseek(order, 0, os.SEEK_SET)
    os.dup2(order, 0)
    if worker is not None:
        os.set_inheritable(worker, True)
    words = [root, lock, "asked" if is_asked else "killed", str(-1 if worker is None else worker)]
    # The mark is of what is ended with the ranks, and of the guard while nobody needs it.
    environ = {name: value for name, value in os.environ.items() if name not in _MARKS}
    argv = [sys.executable, "-m", "flows.finisher", *words]
    os.execve(sys.executable, argv, environ)  # noqa: S606 - there is no shell, and none is wanted


_MARKS = ("TRAINJOB_RUN_ID", "TRAINJOB_GUARD")

if __name__ == "__main__":
    main()
