"""Shows that this process still uses something of the cache, however long it is busy with it.

A process of another machine or container cannot be asked after. The others believe in it while the
files that carry its name are not old, see `trainjob.storage.cache.owner.Owner.is_alive`.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainjob.background import in_background

INTERVAL_S = 60.0
SILENCE_S = 600.0
"""Who has not touched for so long what it touches is gone."""


@contextmanager
def touching(files: Callable[[], Iterable[Path]]) -> Iterator[None]:
    """Touch files every minute until the block ends; one that is not there is none of them.

    Args:
        files: Returns the files; called on another thread.
    """
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(INTERVAL_S):
            for file in files():
                with suppress(OSError):
                    os.utime(file)

    with in_background(work, "trainjob-cache", ended):
        yield
