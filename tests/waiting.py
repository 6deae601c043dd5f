"""Waiting for what a test expects: long enough for a slow machine, and not for ever."""

import time
from collections.abc import Callable

PATIENCE_S = 300.0
"""What takes longer hangs."""


def wait_until(
    condition: Callable[[], object],
    timeout_s: float = PATIENCE_S,
    said: Callable[[], object] = lambda: "the condition did not come true in time",
) -> None:
    """Wait for a condition; fail with what `said` tells when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.01)  # the pause between two looks at the condition
