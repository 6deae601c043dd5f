"""How far the copies of a run are and how fast they go, gathered from their events.

For whoever shows it: the terminal and the artifacts in Prefect. Decides nothing.
"""

import time
from collections.abc import Callable
from datetime import timedelta

from trainjob.events import Transferred
from trainjob.values import format_duration, format_size

_MIN_SPEED_S = 1.0  # over less, a speed says little


class CopyStatus:
    """What is known of the copies of a stage. Not thread-safe: its owner has the lock.

    Attributes:
        latest: What was said last of each copy, by its label; the last one was heard of last.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.latest: dict[str, Transferred] = {}
        self._clock = clock
        self._first: dict[str, tuple[float, int]] = {}

    def note(self, event: Transferred) -> None:
        """Take in one event."""
        self.latest.pop(event.label, None)
        self.latest[event.label] = event
        self._first.setdefault(event.label, (self._clock(), event.size_bytes))

    def text(self, event: Transferred, *, with_eta: bool = True) -> str:
        """Say of a copy that was noted how far it is, how fast, and how long it still takes."""
        text = f"{event.num_files} files, {format_size(event.size_bytes)}"
        if event.total_bytes is not None:
            files = f"{event.num_files}/{event.total_files} files"
            text = f"{files}, {format_size(event.size_bytes)} of {format_size(event.total_bytes)}"
        return text + self._speed_text(event, with_eta=with_eta)

    def _speed_text(self, event: Transferred, *, with_eta: bool) -> str:
        now = self._clock()
        since, before_bytes = self._first[event.label]
        if now - since < _MIN_SPEED_S or event.size_bytes <= before_bytes:
            return ""
        bytes_a_s = (event.size_bytes - before_bytes) / (now - since)
        left_bytes = max((event.total_bytes or 0) - event.size_bytes, 0)
        left = timedelta(seconds=round(left_bytes / bytes_a_s))
        eta = f", ETA {format_duration(left)}" if with_eta and left else ""
        return f", {format_size(bytes_a_s)}/s{eta}"
