"""Files of ours in folders that ranks write into as well: logs and records.

A rank runs other people's code, in a sandbox perhaps, and may put a link in the place of a file:
followed on this side, it would lead to what the rank cannot see itself. So neither such a file nor
its folder may be a link, and a pipe keeps nobody waiting. Standard library alone.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

UNREADABLE = (ValueError, LookupError, TypeError, OverflowError, RecursionError)
"""What JSON that others have written leads to: other types, infinite numbers, endless depth."""


def open_rank_file(file: Path) -> BinaryIO:
    """Open a file to read; who calls closes it.

    Raises:
        FileNotFoundError: There is none, or it or its folder is not what it was made as.
        OSError: It cannot be opened.
    """
    return os.fdopen(_open(file, os.O_RDONLY), "rb")


def empty_rank_file(file: Path) -> None:
    """Cut a file down to nothing.

    Raises:
        FileNotFoundError: There is none, or it or its folder is not what it was made as.
        OSError: It cannot be written.
    """
    descriptor = _open(file, os.O_WRONLY)
    try:
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def write_rank_file(file: Path, content: str) -> None:
    """Write a file, complete or not at all, in the place of whatever has its name.

    Raises:
        OSError: It cannot be written.
    """
    # A name that nobody can know beforehand, and never a file that is there already.
    name = f"{os.urandom(8).hex()}.tmp"
    with _folder_of(file) as folder:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
                opened.write(content)
            os.replace(name, file.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
            raise


def _open(file: Path, flags: int) -> int:
    with _folder_of(file) as folder, _told(file):
        # Without O_NONBLOCK, a pipe would be waited for.
        descriptor = os.open(file.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _replaced(file)
    return descriptor


@contextmanager
def _folder_of(file: Path) -> Iterator[int]:
    """Hold the folder of a file open."""
    with _told(file):
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield folder
    finally:
        os.close(folder)


@contextmanager
def _told(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):  # what open(2) says of links
            raise _replaced(file) from error
        raise


def _replaced(file: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{str(file)!r} is no regular file, or its folder is a link")
