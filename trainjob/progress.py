"""For user scripts: say how far the training is, and ask whether to stop. Standard library alone.

::

    from trainjob.progress import report, should_stop

    for step in range(num_steps):
        ...
        report(step + 1, total=num_steps, epoch=epoch, loss=loss.item())
        if should_stop():
            save(...)
            break

Both are cheap enough for every step. Outside of a run they do nothing, so a script works the same
without us.
"""

import atexit
import json
import operator
import os
import sys
import time
from contextlib import suppress
from typing import Any, SupportsFloat

_INTERVAL_S = 0.1  # nobody reads faster, and the file of a long training stays small
_MAX_KINDS = 100
_WHOLE_NUMBERS = ("time_ns", "step", "total", "epoch")
_last_written: dict[tuple[str, ...], float] = {}
"""When metrics of these names were last written: rare ones are not lost behind frequent ones."""
_held_back: dict[tuple[str, ...], dict[str, Any]] = {}
"""What was said last of them and not written, for it came too soon; written when Python ends."""

_child_that_writes = 0
"""The process of multiprocessing that has been told to write it at its end; a fork has not."""

_RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "RANK_ID", "SLURM_PROCID")
"""What torchrun, Open MPI, MPICH, MindSpore and Slurm tell the ranks that they start."""

_MACHINE_VARIABLES = ("GROUP_RANK", "CROSS_RANK")
"""In which torchrun and DeepSpeed tell them which of several machines this one is."""

_look_at = 0.0
_is_asked_to_stop = False


def report(
    step: int, total: int | None = None, epoch: int | None = None, **metrics: SupportsFloat
) -> None:
    """Say that this rank has finished a step. Of rank 0, the last one said is shown.

    Of calls with the same metrics that follow faster than ten a second some are left out, but never
    the last one. Where the program of a rank starts ranks of its own, as a startup command with
    torchrun does, the one of the same number speaks for it, and the others say nothing.

    Args:
        step: How many steps are done, all epochs together.
        total: How many there will be.
        epoch: The epoch, counted as the script likes.
        metrics: Numbers, such as ``loss=0.3``; a tensor of one element is a number too.

    Raises:
        TypeError: If a metric is not a number.
    """
    path = os.environ.get("TRAINJOB_PROGRESS_FILE")
    if path is None or _is_another_rank():
        return
    _keep_step(path, step)
    now, kind = time.monotonic(), tuple(metrics)
    said = {"time_ns": time.time_ns(), "step": step, "total": total, "epoch": epoch}
    if now - _last_written.get(kind, -_INTERVAL_S) < _INTERVAL_S and step != total:
        # A tensor stays one: asking for its number would make the script wait for its device.
        _held_back[kind] = said | {"metrics": {name: _alone(metrics[name]) for name in metrics}}
        _write_at_end_of_child()
        return
    if len(_last_written) >= _MAX_KINDS:
        _write_held_back()
        _last_written.clear()
    _last_written[kind] = now
    _held_back.pop(kind, None)
    _write(path, said | {"metrics": metrics})


def should_stop() -> bool:
    """Tell whether this run was asked to stop: save, and leave with exit code 0.

    Ranks may hear of it at different steps: those that work together agree on one first, as
    `trainjob.checkpoint.should_stop` does. A script that calls this at every step is given most of
    ``limits.grace`` to save; one that never does is sent SIGTERM at once.
    """
    global _look_at, _is_asked_to_stop  # noqa: PLW0603 - one state a process, as of a signal
    now = time.monotonic()
    if now < _look_at or _is_asked_to_stop:
        return _is_asked_to_stop
    stop_file = os.environ.get("TRAINJOB_STOP_FILE")
    if stop_file is None:
        return False
    if not _look_at:
        _say_that_we_listen()
    _look_at = now + _INTERVAL_S
    _is_asked_to_stop = os.access(stop_file, os.F_OK)
    return _is_asked_to_stop


def _is_another_rank() -> bool:
    """Tell whether this process is a rank that the program of our rank has started beside others.

    All of them inherit the file of our rank. The process that we started is never another one,
    whatever number a training over several machines gives it.
    """
    ours = os.environ.get("TRAINJOB_RANK", "")
    if not ours.isdecimal() or os.environ.get("TRAINJOB_RANK_PID") == str(os.getpid()):
        return False
    # What is no number, such as the -1 of scripts that are alone, is no rank.
    said = [value for value in _said_ranks() if value.isdecimal()]
    return any(int(value) != int(ours) for value in said)


def _said_ranks() -> list[str]:
    """Return the numbers that launchers have given this process, and torch.distributed has."""
    said = [os.environ.get(name, "") for name in _RANK_VARIABLES]
    number_in_group = _number_in_group()
    if number_in_group is not None and number_in_group != said[0]:
        said.append(number_in_group)  # as of mp.spawn, whose processes inherit RANK
    if any(os.environ.get(name, "0") != "0" for name in _MACHINE_VARIABLES):
        # Of a training over several machines, this one: its first rank is not the first of all.
        said[0] = os.environ.get("LOCAL_RANK", "")
    return said


def _number_in_group() -> str | None:
    """Return the rank that torch.distributed knows, if this process uses it."""
    distributed = sys.modules.get("torch.distributed")
    # The name is not there in a torch without it, and while another thread imports it.
    is_initialized = getattr(distributed, "is_initialized", None)
    if distributed is None or is_initialized is None or not is_initialized():
        return None
    return str(distributed.get_rank())


def _keep_step(path: str, step: int) -> None:
    """Write the step beside the progress, every time: it names the rank that is behind.

    Opened every time, since a script may close or replace any file that it did not open.
    """
    with suppress(OSError):
        file = os.open(f"{path}.step", os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(file, b"%20d" % int(step), 0)
        finally:
            os.close(file)


@atexit.register
def _write_held_back() -> None:
    """Write what would be lost otherwise."""
    path = os.environ.get("TRAINJOB_PROGRESS_FILE")
    held_back = sorted(_held_back.values(), key=operator.itemgetter("time_ns"))
    _held_back.clear()
    for said in held_back:
        if path is not None:
            with suppress(TypeError):  # not raised when it was said, so not now either
                _write(path, said)


os.register_at_fork(after_in_child=_held_back.clear)  # the parent writes it


def _write_at_end_of_child() -> None:
    """Have it written also by a process of multiprocessing, which may leave without atexit.

    One that is forked leaves by os._exit after what it registered here (CPython 3.11).
    """
    global _child_that_writes  # noqa: PLW0603 - one state a process
    util = sys.modules.get("multiprocessing.util")
    if util is None or _child_that_writes == os.getpid():
        return
    if sys.modules["multiprocessing.process"].parent_process() is not None:
        util.Finalize(None, _write_held_back, exitpriority=0)
        _child_that_writes = os.getpid()


def _write(path: str, said: dict[str, Any]) -> None:
    whole = {key: None if said[key] is None else int(said[key]) for key in _WHOLE_NUMBERS}
    metrics = {name: _number(name, value) for name, value in said["metrics"].items()}
    line = json.dumps(whole | {"metrics": metrics})
    # A full disk must not end a training over its progress.
    with suppress(OSError):
        _append(path, f"{line}\n".encode())


def _alone(value: Any) -> Any:
    """Return a tensor or an array as it is now: a script goes on with it, as with a sum of losses.

    Without the computation that led to a tensor, which would stay in memory.
    """
    if hasattr(value, "detach"):
        value = value.detach()
        return value.clone() if hasattr(value, "clone") else value
    return value.copy() if hasattr(value, "dtype") and hasattr(value, "copy") else value


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


def _say_that_we_listen() -> None:
    """Leave the mark by which the supervisor knows that asking this rank is no waste of time."""
    mark = os.environ.get("TRAINJOB_LISTENS_FILE")
    if mark is not None:
        with suppress(OSError):
            os.close(os.open(mark, os.O_WRONLY | os.O_CREAT, 0o644))
