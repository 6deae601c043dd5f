"""Replaces a folder of this machine by a new one, all at once or not at all.

The new folder is built beside the old one, so that the last step is a rename on one file system.
"""

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
        target: A folder that belongs to the run. It need not exist.

    Raises:
        StoreError: For what the operating system says, of the block as well.
    """
    with local_failures(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        try:
            partial.mkdir()
            yield partial
            _swap_in(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_space(folder: Path, size_bytes: int) -> None:
    """See that files of this size fit on the disk of `folder`.

    Raises:
        StoreError: If they do not.
    """
    free = shutil.disk_usage(folder).free
    if size_bytes > free:
        found = f"{format_size(free)} free for {format_size(size_bytes)} of files"
        raise failure(StoreError, str(folder), found, "make space or set TRAINJOB_WORKDIR")


def _remove_leftovers(target: Path) -> None:
    """Remove what an earlier process that was killed left beside `target`."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}\.(?:partial|old)")
    for path in target.parent.iterdir():
        if ours.fullmatch(path.name):
            shutil.rmtree(path)


def _swap_in(partial: Path, target: Path) -> None:
    """Give `partial` the name `target`; a folder cannot be renamed over one with files."""
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
    had_one = target.exists()
    if had_one:
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if had_one:
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
