"""Ends a process when the one that started this is gone: ``python lifeline.py PID``.

The starter holds the other end of standard input, which the kernel closes even after SIGKILL.
Standard library alone; Linux only (pidfd_open(2), so that a reused pid is never hit).
"""

import os
import select
import signal
import sys
from contextlib import suppress

_GRACE_S = 5


def main() -> None:
    """Wait for the end of standard input, then end the process."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(int(sys.argv[1]))
        sys.stdin.buffer.read()
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], _GRACE_S)[0]:
            signal.pidfd_send_signal(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
