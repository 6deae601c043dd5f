"""Does the same for many items in a few threads, and leaves none of them working when it ends."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import TypeVar

from trainjob.errors import StoreUnavailable
from trainjob.storage.deadline import check_deadline
from trainjob.storage.failures import failure

T = TypeVar("T")
R = TypeVar("R")

_LOOK_S = 0.2
_END_TIMEOUT_S = 5


class Stop:
    """Asked by the work on an item, again and again, whether it should end."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._asked = threading.Event()

    def ask(self) -> None:
        """Let all work end."""
        self._asked.set()

    def check(self) -> None:
        """See that the work should go on.

        Raises:
            StoreUnavailable: If it should not; nobody hears of it.
        """
        if self._asked.is_set():
            raise failure(StoreUnavailable, self._place, "the work was broken off", "try again")
        check_deadline(self._place)

    def pause(self, seconds: float) -> None:
        """Wait so long, or until the work should end."""
        self._asked.wait(seconds)
        self.check()


def each(items: Sequence[T], work: Callable[[T, Stop], R], num_workers: int, place: str) -> list[R]:
    """Do `work` for all items, some at a time, and return the results in order.

    The first error ends the rest and is raised. Work that is stuck in a call of another package
    when this is interrupted is waited for for a few seconds only; it ends when the call returns.

    Args:
        items: The items.
        work: Called with an item, in the caller's context, and with what tells it to stop.
        num_workers: How many at a time.
        place: The url that the work is on; for the message.
    """
    stop = Stop(place)
    pool = ThreadPoolExecutor(num_workers, "trainjob-store")
    futures: list[Future[R]] = []
    try:
        futures += [pool.submit(copy_context().run, work, item, stop) for item in items]
        pending = set(futures)
        while pending:
            check_deadline(place)
            done, pending = wait(pending, _LOOK_S, FIRST_EXCEPTION)
            for future in done:
                future.result()
        return [future.result() for future in futures]
    finally:
        stop.ask()
        pool.shutdown(wait=False, cancel_futures=True)
        wait(futures, _END_TIMEOUT_S)
