"""Threads that watch a training from the process of its flow, without getting in its way."""

import contextvars
import os
import threading
from collections.abc import Callable
from contextlib import suppress


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
