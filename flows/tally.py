"""What the next process of a run has to know of this one, counted while it trains.

The server keeps it as labels of the run, since the next process may be on another machine. They are
written by `flows.delivery`: who counts is the thread of the ranks, which waits for no server.
"""

import threading
import time
from collections.abc import Callable

from trainjob.attempts import Earlier
from trainjob.events import AttemptEnded, AttemptStarted, Event

RESTARTS_LABEL = "trainjob.restarts"
"""Label of a run with the number of restarts of its training since a person had it started."""

ATTEMPTS_LABEL = "trainjob.attempts"
"""Label with the number of all its attempts: those of two machines must not share their logs."""

TRAINED_LABEL = "trainjob.trained_s"
"""Label with the seconds that it has trained since a person had it started."""

SINCE_LABEL = "trainjob.since_attempt"
"""Label with the number of its first attempt since a person had it started, counted from 0."""

_TELL_EVERY_S = 120
"""How much of the time of an attempt that goes on may be lost with its machine."""


class Tally:
    """Counts on from what earlier processes of the run did; safe to read in any thread.

    Args:
        earlier: What they did.
        clock: Seconds that pass evenly.

    Attributes:
        num_restarts: How often the training was started again since a person had it started.
        changed: Set when something was counted; to be cleared by who has read it.
    """

    def __init__(self, earlier: Earlier, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_restarts = earlier.num_restarts
        self.changed = threading.Event()
        self._clock = clock
        self._num_attempts = earlier.num_attempts
        self._trained_s = earlier.trained_s
        self._since_attempt = earlier.since_attempt
        self._began_at: float | None = None

    def note(self, event: Event) -> None:
        """Count an attempt that begins or ends."""
        match event:
            case AttemptStarted():
                self._num_attempts = event.attempt + 1
                self._began_at = self._clock()
            case AttemptEnded():
                self.num_restarts += event.will_restart
                self._trained_s += event.seconds
                self._began_at = None
            case _:
                return
        self.changed.set()

    def labels(self) -> dict[str, int]:
        """Return what the server is to keep; an attempt that goes on counts by two minutes."""
        began_at, trained_s = self._began_at, self._trained_s
        if began_at is not None:
            trained_s += (self._clock() - began_at) // _TELL_EVERY_S * _TELL_EVERY_S
        return {
            RESTARTS_LABEL: self.num_restarts,
            ATTEMPTS_LABEL: self._num_attempts,
            TRAINED_LABEL: round(trained_s),
            SINCE_LABEL: self._since_attempt,
        }


def earlier_of(labels: dict[str, object], *, num_processes: int, is_redelivered: bool) -> Earlier:
    """Return what the processes of a run did before the one that starts now.

    Args:
        labels: The labels of the run.
        num_processes: How many there were.
        is_redelivered: Whether this one follows a process that was killed, which counts as a
            restart; a person's retry has all restarts and all time again.
    """
    restarts, attempts, trained_s, since_attempt = (
        int(str(labels.get(label, 0)))
        for label in (RESTARTS_LABEL, ATTEMPTS_LABEL, TRAINED_LABEL, SINCE_LABEL)
    )
    if not is_redelivered:
        return Earlier(num_processes, attempts, since_attempt=attempts)
    return Earlier(num_processes, attempts, restarts + 1, trained_s, since_attempt)
