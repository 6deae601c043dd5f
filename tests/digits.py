"""The dataset that the example names, in a folder of the checkout that all test processes share."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / ".demo" / "datasets" / "digits"


@contextmanager
def making_digits() -> Iterator[bool]:
    """Be the only test process that makes the dataset; give whether it is missing."""
    DIGITS.parent.mkdir(parents=True, exist_ok=True)
    with (ROOT / ".demo" / "digits.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not DIGITS.exists()
