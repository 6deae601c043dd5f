"""Hands the last work of a process that is about to be killed to one that survives.

A worker kills a cancelled flow after 30 seconds (Prefect 3.8). Who runs the flow says in
`handing_over_to` how its work is handed on; who is interrupted in the middle of it asks `hand_over`
and leaves the saving to the other when the answer is True.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_start: ContextVar[Callable[[], bool] | None] = ContextVar("trainjob_hand_over", default=None)


@contextmanager
def handing_over_to(start: Callable[[], bool]) -> Iterator[None]:
    """Let `hand_over` call `start` in this block.

    Args:
        start: Starts the other process, once; returns whether there is one.
    """
    token = _start.set(start)
    try:
        yield
    finally:
        _start.reset(token)


def hand_over() -> bool:
    """Return whether another process does what is left to do; False if nobody was named."""
    start = _start.get()
    return start is not None and start()
