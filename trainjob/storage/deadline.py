"""A time at which the work on stores has to end, whatever the network does.

Set around a copy by who has only so long to live, such as a run that is cancelled. The stores ask
for it while they wait and while they copy; without one they take the time that they need.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from trainjob.errors import StoreUnavailable
from trainjob.storage.failures import failure


class Deadline:
    """A moment that may be set, and moved, by another thread than the one that works."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.set(seconds)

    def set(self, seconds: float) -> None:
        """Let the work end so many seconds from now."""
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """The seconds that are left; infinite if the moment was not set yet."""
        return self._end - time.monotonic()


_deadline: ContextVar[Deadline | None] = ContextVar("trainjob_deadline", default=None)


@contextmanager
def ending_at(deadline: Deadline) -> Iterator[None]:
    """Break off what stores do in this block when `deadline` is over.

    They raise `StoreUnavailable` then, as for a network that is gone.
    """
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def has_deadline() -> bool:
    """Say whether the work of this context has to end at some time."""
    return _deadline.get() is not None


def check_deadline(place: str) -> None:
    """See that there is time left for what is done at `place`.

    Raises:
        StoreUnavailable: If the time is over.
    """
    deadline = _deadline.get()
    if deadline is not None and deadline.left_s <= 0:
        found = "not finished in the time that was left"
        raise failure(StoreUnavailable, place, found, "try again")
