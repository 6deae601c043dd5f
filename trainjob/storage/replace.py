"""Replaces a folder of this machine by a new one, or by a link, all at once or not at all.

What takes the place is built beside the old one, so that the last step is a rename on one file
system.
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainjob.errors import StoreError
from trainjob.storage.failures import failure, local_failures
from trainjob.values import format_size


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `target` when the block ends well.

    Args:
        target: A folder that belongs to the run, or a link to one. It need not exist.

    Raises:
        StoreError: For what the operating system says, of the block as well.
    """
    with local_failures(str(target)):
        _prepare(target)
        partial = _beside(target, "partial")
        try:
            partial.mkdir()
            yield partial
            _swap_in(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def replace_by_link(target: Path, place: Path) -> None:
    """Let `target` be a link to the folder `place`, which stays whoever removes the link.

    Args:
        target: A folder that belongs to the run, or a link. It need not exist.
        place: An absolute path.

    Raises:
        StoreError: For what the operating system says.
    """
    with local_failures(str(target)):
        _prepare(target)
        partial = _beside(target, "partial")
        partial.symlink_to(place, target_is_directory=True)
        try:
            _swap_in(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def check_space(folder: Path, size_bytes: int) -> None:
    """See that files of this size fit on the disk of `folder`.

    Raises:
        StoreError: If they do not.
    """
    free = shutil.disk_usage(folder).free
    if size_bytes > free:
        found = f"{format_size(free)} free for {format_size(size_bytes)} of files"
        raise failure(StoreError, str(folder), found, "make space or set TRAINJOB_WORKDIR")


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.{kind}")


def _prepare(target: Path) -> None:
    """Make the folder above `target`, without what a process that was killed left there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}\.(?:partial|old)")
    for path in target.parent.iterdir():
        if ours.fullmatch(path.name):
            _remove(path)


def _swap_in(partial: Path, target: Path) -> None:
    """Give `partial` the name `target`; a folder cannot be renamed over one with files."""
    old = _beside(target, "old")
    had_one = os.path.lexists(target)
    if had_one:
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if had_one:
            old.rename(target)
        raise
    if had_one:
        _remove(old)


def _remove(path: Path) -> None:
    """Remove a folder as far as that can be done, and of a link nothing but the link."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
