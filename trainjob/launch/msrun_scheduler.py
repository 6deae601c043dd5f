"""The process by which the ranks of MindSpore find one another, which ends after them.

msrun starts one more process of its program for that. `bootstrap` becomes this instead, as
``msrun_scheduler.py ORDER_FILE PARENT``: it runs nothing of the user's, which would train a second
time before it came to ``init``, and leaves no record. Run by path; but for the scheduler itself
standard library alone.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

_SCHEDULER = "from mindspore.communication import init; init()"
_POLL_S = 0.2
_GRACE_S = 3.0
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run the scheduler until it or all ranks have ended, and return the exit code."""
    order_file, parent = Path(sys.argv[1]), int(sys.argv[2])
    num_ranks = json.loads(order_file.read_text(encoding="utf-8"))["world_size"]
    own_pid = os.getpid()
    child = os.fork()
    if not child:
        _die_with(own_pid)
        words = [sys.executable, "-P", "-u", "-c", _SCHEDULER]
        os.execv(sys.executable, words)  # noqa: S606 - no shell is wanted
    _die_with(parent)
    ends = [order_file.parent / f"exit-{rank}.json" for rank in range(num_ranks)]
    kill_at = None
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if kill_at is None and all(end.exists() for end in ends):
            kill_at = time.monotonic() + _GRACE_S  # of ranks that never called init it waits on
        if kill_at is not None and time.monotonic() > kill_at:
            os.kill(child, signal.SIGKILL)
            return 0
        time.sleep(_POLL_S)
    return 0 if kill_at is not None else abs(os.waitstatus_to_exitcode(ended[1]))


def _die_with(parent: int) -> None:
    """Have the kernel kill us when our parent dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
