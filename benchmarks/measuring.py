"""What the benchmarks share: statistics, verdicts, and tables in markdown."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version


def tenth_percentile(values: Sequence[float]) -> float:
    """Return the value that a tenth of the values is below.

    Of the steps of a training, it is one that nothing else on the machine disturbed.
    """
    return statistics.quantiles(values, n=10)[0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One promise: what was measured, the limit, and whether it is kept."""

    promise: str
    measured: str
    limit: str
    is_kept: bool

    @classmethod
    def at_most(cls, promise: str, value: float, limit: float, form: str) -> "Verdict":
        """Return the verdict on a value that may be `limit` at most, written as `form` says."""
        return cls(promise, form.format(value), f"<= {form.format(limit)}", value <= limit)


def print_verdicts(verdicts: Iterable[Verdict]) -> None:
    """Print promises, one a row."""
    rows = [
        (one.promise, one.measured, one.limit, "yes" if one.is_kept else "NO") for one in verdicts
    ]
    print_markdown(("promise", "measured", "limit", "kept"), rows)


def print_markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table in markdown."""
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")
    print()


def machine() -> str:
    """Return in one line where and with what was measured."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        f"{len(os.sched_getaffinity(0))} cores",
        f"{gib:.0f} GiB",
        platform.machine(),
        f"Python {platform.python_version()}",
        f"torch {version('torch')}",
        f"Prefect {version('prefect')}",
        f"load {os.getloadavg()[0]:.1f}",
    ]
    return ", ".join(parts)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> float:
    """Wait for a condition and return when it was seen, as seconds since 1970.

    Raises:
        TimeoutError: It did not come.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(0.01)
    return time.time()
