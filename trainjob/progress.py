"""For user scripts: say how far the training is. Standard library alone, and cheap.

::

    from trainjob.progress import report

    for step in range(num_steps):
        ...
        report(step + 1, total=num_steps, epoch=epoch, loss=loss.item())

Outside of a run it does nothing, so a script works the same without us.
"""

import json
import os
import time
from contextlib import suppress
from typing import SupportsFloat

_INTERVAL_S = 0.1  # nobody reads faster, and the file of a long training stays small
_last_written = -_INTERVAL_S


def report(
    step: int, total: int | None = None, epoch: int | None = None, **metrics: SupportsFloat
) -> None:
    """Say that this rank has finished a step. Of rank 0, the last one said is shown.

    Of calls that follow faster than ten a second some are left out, but never that of the last
    step.

    Args:
        step: How many steps are done, all epochs together.
        total: How many there will be.
        epoch: The epoch, counted as the script likes.
        metrics: Numbers, such as ``loss=0.3``; a tensor of one element is a number too.

    Raises:
        TypeError: If a metric is not a number.
    """
    global _last_written  # noqa: PLW0603 - one clock a process, kept by a plain function
    path = os.environ.get("TRAINJOB_PROGRESS_FILE")
    now = time.monotonic()
    if path is None or (now - _last_written < _INTERVAL_S and step != total):
        return
    _last_written = now
    line = json.dumps(
        {
            "time_ns": time.time_ns(),
            "step": int(step),
            "total": None if total is None else int(total),
            "epoch": None if epoch is None else int(epoch),
            "metrics": {name: _number(name, value) for name, value in metrics.items()},
        }
    )
    # A full disk must not end a training over its progress.
    with suppress(OSError):
        _append(path, f"{line}\n".encode())


def _number(name: str, value: SupportsFloat) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the metric {name!r} must be a number, found {value!r}") from error


def _append(path: str, line: bytes) -> None:
    # One write to a file opened for appending: lines of several processes do not mix.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, line)
    finally:
        os.close(file)
