"""Threads that watch a training from the process of its flow, without getting in its way.

They share the machine with the ranks: they wait for their turn, and have it more and more seldom.
"""

import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_PAUSE_SHARE = 0.1


@contextmanager
def in_background(
    work: Callable[[], object], name: str, ended: threading.Event, patience_s: float | None = None
) -> Iterator[None]:
    """Do `work` on a thread of its own until the block ends; see `background_thread`.

    Args:
        work: What to do. It returns soon after `ended` is set, at once if it was set before.
        name: What the thread is called.
        ended: Is set when the block ends.
        patience_s: How long to wait for the thread then; None: until it has ended.
    """
    thread = background_thread(work, name)
    try:
        thread.start()  # in here, since a signal handler may raise while it waits for the thread
        yield
    finally:
        ended.set()
        if thread.is_alive():  # otherwise, it never began, or is about to and finds its end
            thread.join(patience_s)


def background_thread(work: Callable[[], object], name: str) -> threading.Thread:
    """Return a thread for `work`, to be started by the caller.

    It sees the context of the caller: the listeners of the run, and the settings of Prefect. It is
    a daemon, since a server or a disk that hangs must not keep the process from ending. On Linux
    it waits for its turn rather than interrupt a rank in the middle of a step (``SCHED_BATCH``; see
    sched(7)): a rank that is interrupted holds up all others.

    Args:
        work: What to do.
        name: What the thread is called, in stacks too.
    """
    run = contextvars.copy_context().run

    def run_patiently() -> None:
        with suppress(AttributeError, OSError):  # no such thing here, or it is not allowed
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        run(work)

    return threading.Thread(target=run_patiently, name=name, daemon=True)


def growing_pause_s(age_s: float, first_s: float, last_s: float) -> float:
    """Return how long to wait before something is shown again: a tenth of its age, within limits.

    Who has just started a training watches it closely; in one that goes on for hours, little
    changes within a second.

    Args:
        age_s: How long it has been shown.
        first_s: The pause at the beginning.
        last_s: The longest one.
    """
    return min(max(first_s, age_s * _PAUSE_SHARE), last_s)
