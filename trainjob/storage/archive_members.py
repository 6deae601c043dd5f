"""One member of an archive, whatever its format, and what can be wrong with it by itself.

Made by `trainjob.storage.zip_members` and `trainjob.storage.tar_members`; whether the members can
stand together is asked by `trainjob.storage.archive_tree`.
"""

import errno
import gzip
import posixpath
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from typing import IO

import zstandard

READ_BYTES = 1 << 17
"""How much of an archive is read at once: many small members, and few bytes for nothing."""

_PIECE_BYTES = 1 << 20

_MAX_PART_BYTES = 255  # NAME_MAX of Linux file systems
_MAX_PATH_BYTES = 3072  # PATH_MAX is 4096, of which the folder takes its part
_UNREADABLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    zstandard.ZstdError,
    LZMAError,
    EOFError,
    struct.error,
    ValueError,
    NotImplementedError,
    RecursionError,
    OSError,
)
"""What reading bytes raises that are no archive, or not one that the standard library knows."""


class BadArchive(Exception):
    """Bytes that cannot be read as an archive; the message says why."""


@dataclass(frozen=True, slots=True)
class Member:
    """One line of a table of contents.

    Attributes:
        name: As the archive has it.
        size_bytes: The size that the archive declares.
        is_folder: Whether it is a folder, else a file.
        is_executable: Whether its owner may execute it.
        fault: Why it is refused; None if nothing is wrong with it by itself.
        content: Reads the content, piece by piece; of a stream only until the next member is asked
            for.
    """

    name: str
    size_bytes: int
    is_folder: bool
    is_executable: bool
    fault: str | None
    content: Callable[[], Iterator[bytes]]

    @property
    def path(self) -> str:
        """The name without ``./`` and doubled or trailing slashes; ``.`` is the root."""
        return posixpath.normpath(self.name)


def pieces(source: IO[bytes]) -> Iterator[bytes]:
    """Read all that a file of an archive holds, and close it."""
    with source:
        while piece := source.read(_PIECE_BYTES):
            yield piece


@contextmanager
def unreadable_told(name: str | None = None) -> Iterator[None]:
    """Raise what reading bytes raises as a `BadArchive`, except that there is no file.

    Args:
        name: Of which member the bytes are; None: of the archive.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except _UNREADABLE as error:
        of = "" if name is None else f"{name!r}: "
        raise BadArchive(of + _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        return "a position before its start"
    text = error.strerror if isinstance(error, OSError) else None
    return text or str(error) or type(error).__name__


def name_fault(name: str, names: str) -> str | None:
    """Say why a member of this name cannot be unpacked; None if it can.

    Args:
        name: What bytes are no text in the encoding of names stands as surrogates in it.
        names: That encoding.
    """
    if "\0" in name:
        return "holds a NUL"
    if "\\" in name:
        return "holds a backslash"
    if name.startswith("/") or re.match(r"[A-Za-z]:/", name):
        return "is absolute"
    parts = name.split("/")
    if ".." in parts:
        return "holds .."
    if name.isascii() and len(name) <= _MAX_PART_BYTES:
        return None
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return f"is not {names.upper()}"
    if max(sizes) > _MAX_PART_BYTES:
        return f"has a part of more than {_MAX_PART_BYTES} bytes"
    is_long = sum(sizes) + len(sizes) > _MAX_PATH_BYTES
    return f"is a path of more than {_MAX_PATH_BYTES:,} bytes" if is_long else None
