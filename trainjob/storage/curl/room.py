"""How many requests are under way at one time: as many as keep this process busy."""

import time
from collections.abc import Callable

FIRST_REQUESTS = 64
MAX_REQUESTS = 256
_MIN_REQUESTS = 8
_WINDOW_S = 0.2
_IDLE_SHARE = 0.5


class Room:
    """A limit that follows what the store and the way to it can take.

    A store that is near answers 64 requests at a time as fast as they can be sent. With a store
    that is far away this process would mostly wait, so more are sent, until it does not. One that
    says that it is asked too much gets half as many, and then slowly more.

    Attributes:
        limit: How many requests may be under way.

    Args:
        clock: The time, in seconds from anywhen on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = FIRST_REQUESTS
        self._clock = clock
        self._was_ever_busy = False
        self._busy_until = 0.0
        self._since = clock()
        self._waited_s = 0.0
        self._was_full = False

    def note_wait(self, seconds: float, num_requests: int) -> None:
        """Take in that nothing came for `seconds` while so many requests were under way."""
        self._waited_s += seconds
        self._was_full = self._was_full or num_requests >= self.limit
        now = self._clock()
        if now - self._since < _WINDOW_S:
            return
        is_idle = self._waited_s > _IDLE_SHARE * (now - self._since)
        if is_idle and self._was_full:
            more = 1 if self._was_ever_busy else self.limit // 2
            self.limit = min(self.limit + more, MAX_REQUESTS)
        self._since, self._waited_s, self._was_full = now, 0.0, False

    def note_busy(self) -> None:
        """Take in that the store wants to be asked less; many answers at once say it once."""
        now = self._clock()
        if now >= self._busy_until:
            self._was_ever_busy = True
            self._busy_until = now + _WINDOW_S
            self.limit = max(self.limit // 2, min(self.limit, _MIN_REQUESTS))
