"""The datasets that `examples/make_dataset.py` makes, which several test processes share."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / ".demo" / "datasets" / "digits"
"""The one that the example names, in a folder of the checkout."""


@contextmanager
def making_digits() -> Iterator[bool]:
    """Be the only test process that makes the dataset; give whether it is missing."""
    DIGITS.parent.mkdir(parents=True, exist_ok=True)
    with (ROOT / ".demo" / "digits.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not DIGITS.exists()


@pytest.fixture(scope="session")
def digits_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a form, such as ``zip``, to a folder for tests that only read it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(form: str) -> Path:
        folder, unfinished = shared / f"digits-{form}", shared / f"digits-{form}.unfinished"
        with (shared / "digits.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                make = [sys.executable, str(ROOT / "examples" / "make_dataset.py")]
                command = [*make, str(unfinished), "--as", form]
                subprocess.run(command, check=True, capture_output=True)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def digits_dataset(digits_in: Callable[[str], Path]) -> Path:
    """The four IDX files, for tests that only read them."""
    return digits_in("idx")
