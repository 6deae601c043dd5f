"""Which of the requests that are under way get on so slowly that they would hardly end.

A connection may go on with a few bytes a second for a day. It is given up as one that stalled, and
its request tried again. But the link may be slow for all, so a request has to move its share only
of what all of them move together at least.
"""

import time
from collections.abc import Callable

MIN_BYTES_A_S = 1024
"""What all requests that are under way move together at least."""


class Pace:
    """Counts what each of the requests under way has to move, as time goes by.

    Attributes:
        seconds: How much time has gone by.
        due_bytes: What a request has to have moved that was there from the beginning on.

    Args:
        clock: The time, in seconds from anywhen on.
        longest_step_s: What counts at most between two calls of `go_on`: more is a process that was
            stopped, or waited for its disk.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, longest_step_s: float = 1.0
    ) -> None:
        self.seconds = 0.0
        self.due_bytes = 0.0
        self._clock = clock
        self._longest_step_s = longest_step_s
        self._last = clock()

    def go_on(self, num_requests: int) -> None:
        """Take in that so many requests were under way since the last call."""
        now = self._clock()
        step_s = min(now - self._last, self._longest_step_s)
        self._last = now
        self.seconds += step_s
        self.due_bytes += step_s * MIN_BYTES_A_S / max(num_requests, 1)


class Window:
    """What one request moves within so many seconds, and then within the next ones.

    Args:
        pace: Of the requests among which it is.
        seconds: After how many of them it is looked at.
        moved_bytes: What it has moved by now.
    """

    def __init__(self, pace: Pace, seconds: float, moved_bytes: int = 0) -> None:
        self._pace = pace
        self._seconds = seconds
        self._begin(moved_bytes)

    def is_too_slow(self, moved_bytes: int) -> bool:
        """Say whether a request that has moved so many bytes by now is to be given up."""
        if self._pace.seconds - self._since_s < self._seconds:
            return False
        is_behind = moved_bytes - self._moved_before < self._pace.due_bytes - self._due_before
        self._begin(moved_bytes)
        return is_behind

    def _begin(self, moved_bytes: int) -> None:
        self._since_s = self._pace.seconds
        self._due_before = self._pace.due_bytes
        self._moved_before = moved_bytes
