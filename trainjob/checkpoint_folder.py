"""Checkpoints on disk: a folder a step, complete or absent. Standard library alone.

::

    <folder>/step-00000120/      state.pt, or the files of torch.distributed.checkpoint
                    COMPLETE     the marker: JSON with step, metrics and the size of every file
             step-….aside/       complete, but the training went on from an earlier step since
             step-….broken-1/    was in the way of a checkpoint and is none
             .tmp-…/             being written, or on its way out; never looked at
             .lock               held by the one process that writes or removes folders

What the files hold is the matter of `trainjob.checkpoint`, which calls this. It knows no torch, so
that a process that only wants to know the last complete step may read the folder, too.
"""

import ctypes
import fcntl
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal, SupportsFloat

from trainjob.errors import Problem, TrainjobError

MARKER = "COMPLETE"
"""The file that is written last; a folder without it is not a checkpoint."""

_NAME = re.compile(r"step-\d{8,}")
_ASIDE = re.compile(r"step-\d{8,}\.aside")
_MAX_BROKEN = 9
_TEMPORARY = ".tmp-"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # renameat2(2)

Format = Literal["plain", "sharded"]
Best = tuple[str, Literal["max", "min"]]


class CheckpointError(TrainjobError):
    """A checkpoint could not be written, or what should be read is not one."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What the file ``COMPLETE`` says of a checkpoint.

    Attributes:
        step: How many steps were done.
        format: ``plain``: one ``state.pt``; ``sharded``: torch.distributed.checkpoint.
        files: Size in bytes of every other file, by its path in the folder.
        metrics: Values at that step; None for one that was no finite number.
        world_size: Number of ranks that trained.
        run_id: The run that saved it, if it was a run of ours.
        torch: The version that wrote the files.
        version: Of this layout.
    """

    step: int
    format: Format
    files: dict[str, int]
    metrics: dict[str, float | None]
    world_size: int
    run_id: str | None
    torch: str
    version: int = 1


@dataclass(frozen=True, slots=True)
class Saved:
    """A complete checkpoint in its folder."""

    path: Path
    marker: Marker


def read_checkpoint(path: Path) -> Saved:
    """Return the checkpoint in the folder `path`, after comparing its files with its marker.

    Raises:
        CheckpointError: If it is not a checkpoint, or a file of it is missing, cut off or grown.
    """
    asked = f"a checkpoint in {str(path)!r}"
    try:
        marker = Marker(**json.loads((path / MARKER).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        found = f"no file {MARKER} there" if path.is_dir() else "no such folder"
        do = "give the path that latest() returns"
        raise CheckpointError(str(Problem("checkpoint", asked, found, do))) from None
    except (OSError, ValueError, TypeError) as error:
        found = f"a file {MARKER} that cannot be read: {error}"
        raise CheckpointError(_damaged(asked, found)) from error
    for name, size in marker.files.items():
        size_now = _size_of(path / name)
        if size_now != size:
            found = f"{name} " + ("missing" if size_now is None else f"of {size_now} bytes")
            raise CheckpointError(_damaged(asked, f"{found} instead of {size} bytes"))
    return Saved(path, marker)


def _size_of(file: Path) -> int | None:
    """Return the size of a file; None if it is none, such as one that is being removed now."""
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _damaged(asked: str, found: str) -> str:
    return str(Problem("checkpoint", asked, found, "it is damaged: use an earlier one"))


def complete_checkpoints(folder: Path) -> tuple[list[Saved], list[CheckpointError]]:
    """Return the complete checkpoints of `folder` from old to new, and what is wrong with others.

    A folder that is not there holds none.
    """
    return _checkpoints(folder, _NAME)


def _checkpoints(folder: Path, name: re.Pattern[str]) -> tuple[list[Saved], list[CheckpointError]]:
    complete, damaged = [], []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if name.fullmatch(path.name):
            try:
                complete.append(read_checkpoint(path))
            except CheckpointError as error:
                damaged.append(error)
    return sorted(complete, key=lambda saved: saved.marker.step), damaged


def best_of(checkpoints: list[Saved], best: Best) -> Saved | None:
    """Return the checkpoint with the best value of a metric; of equal ones, the earliest."""
    metric, direction = best
    sign = 1 if direction == "max" else -1
    found: tuple[float, Saved] | None = None
    for saved in checkpoints:
        value = saved.marker.metrics.get(metric)
        if value is not None and (found is None or sign * value > found[0]):
            found = sign * value, saved
    return found[1] if found else None


def finite(metrics: Mapping[str, SupportsFloat]) -> dict[str, float | None]:
    """Return the metrics as JSON can hold them."""
    numbers = {name: float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


class Draft:
    """A checkpoint that is being written, in a folder that nobody takes for one.

    While it is open no other process writes to or removes from the same folder; whatever
    temporary folder is found then belongs to a process that died, and is removed.

    Args:
        folder: Where the checkpoints are; it is made if it is not there.
        step: How many steps are done.

    Raises:
        CheckpointError: If this thread has one open there already, and so would wait for itself.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._step = step
        self._writer = os.getpid(), threading.get_ident(), folder.resolve()
        _check_alone(self._writer, step)
        _writers.add(self._writer)
        self._lock: IO[bytes] | None = None
        try:
            self._lock = _locked(folder)
            if self._lock is not None:
                for stale in folder.glob(f"{_TEMPORARY}*"):
                    shutil.rmtree(stale, ignore_errors=True)
            self.path = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}step-{step}-", dir=folder))
            with suppress(PermissionError):  # of disks without permissions, as shares of Windows
                self.path.chmod(folder.stat().st_mode & 0o777)  # mkdtemp lets only the owner in
        except BaseException:
            self._unlock()
            raise

    def complete(self, marker: Marker, keep_last: int | None, best: Best | None) -> None:
        """Make the checkpoint visible, as a whole and for good, and remove those not kept."""
        file = self.path / MARKER
        file.write_text(json.dumps(asdict(marker), indent=2) + "\n", encoding="utf-8")
        for written in [*self.path.rglob("*"), self.path]:
            _flush(written)
        new = self._folder / f"step-{self._step:08d}"
        self._set_later_ones_aside()
        self._publish(new)
        _flush(self._folder)
        self._remove_old(new, keep_last, best)

    def close(self) -> None:
        """Drop the draft if it was not completed, and let others write."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            # To close it is not enough: a process that was forked meanwhile has it open, too.
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()
        _writers.discard(self._writer)

    def _set_later_ones_aside(self) -> None:
        # They are of a training that this one has left, and nobody may go on from a mixture. Before
        # the new one appears: killed in between, the training goes on from what it came from.
        checkpoints, _ = complete_checkpoints(self._folder)
        later = [saved.path for saved in checkpoints if saved.marker.step > self._step]
        for path in reversed(later):
            aside = path.with_name(f"{path.name}.aside")
            self._make_way(aside)
            path.rename(aside)
        if later:
            newest = checkpoints[-1].marker.step
            say_once(
                f"checkpoint: step {self._step} was saved after step {newest} in {self._folder}: "
                "the training went on from an earlier one; to go on from a later one after all, "
                f"rename {later[-1].name}.aside to {later[-1].name}"
            )

    def _publish(self, new: Path) -> None:
        if not (new / MARKER).exists() or not _exchanged(self.path, new):
            # Where the file system cannot exchange, the step is absent for a moment.
            self._make_way(new)
            self.path.rename(new)

    def _remove_old(self, new: Path, keep_last: int | None, best: Best | None) -> None:
        for name in (_NAME, _ASIDE):
            checkpoints, _ = _checkpoints(self._folder, name)
            kept = checkpoints if keep_last is None else checkpoints[-keep_last:]
            top = best_of(checkpoints, best) if best else None
            names = {new, *(saved.path for saved in kept), *([top.path] if top else [])}
            for saved in checkpoints:
                if saved.path not in names:
                    self._remove(saved.path)

    def _make_way(self, path: Path) -> None:
        """Remove the checkpoint at `path`, if any; what is none is moved and kept."""
        if (path / MARKER).exists():
            self._remove(path)
        elif path.exists():
            names = (f"{path.name}.broken-{number}" for number in range(1, _MAX_BROKEN + 1))
            free = [name for name in names if not (self._folder / name).exists()]
            if not free:
                raise FileExistsError(f"{str(path)!r}, which holds something that is no checkpoint")
            path.rename(self._folder / free[0])
            say_once(
                f"checkpoint: {path} holds something that is no complete checkpoint; it was "
                f"moved to {free[0]}: delete that if you do not need it"
            )

    def _remove(self, checkpoint: Path) -> None:
        # Renamed first: a half removed checkpoint must not look like a damaged one.
        gone = self._folder / f"{_TEMPORARY}old-{checkpoint.name}-{os.getpid()}"
        try:
            checkpoint.rename(gone)
        except OSError as error:
            say_once(f"checkpoint: {checkpoint} is not needed but cannot be removed: {error}")
        shutil.rmtree(gone, ignore_errors=True)


_Writer = tuple[int, int, Path]
"""A process, a thread of it, and the folder that it writes to."""

_writers: set[_Writer] = set()


def _check_alone(writer: _Writer, step: int) -> None:
    """Refuse a save in a signal handler that has interrupted one: the lock would never be free."""
    if writer in _writers:
        asked = f"a new one in {str(writer[2])!r}"
        found = "a save of this thread that a signal handler has interrupted"
        do = "save in the loop once should_stop() is true, or set a flag in the handler"
        raise CheckpointError(str(Problem(f"checkpoint of step {step}", asked, found, do)))


_told: set[str] = set()


def say_once(message: str) -> None:
    """Write a line to stderr, unless it was written before."""
    if message not in _told:
        _told.add(message)
        sys.stderr.write(f"{message}\n")


def _locked(folder: Path) -> IO[bytes] | None:
    """Return the open file whose lock we hold, or None where files cannot be locked."""
    lock = (folder / ".lock").open("ab")
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say_once(f"checkpoint: waiting for another process that saves to {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # a network file system without locks; then nothing stale is removed
        lock.close()
        return None
    return lock


def _exchanged(first: Path, second: Path) -> bool:
    """Let two folders change their names in one step; False where the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux alone
    if renameat2 is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
