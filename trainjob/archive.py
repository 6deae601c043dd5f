"""Unpacks archives of code: .zip, .tar, .tar.gz and .tgz, hostile ones included.

The whole table of contents is examined before anything is written, and nothing but plain files and
folders is ever made, so that no member can end up outside the target. Used by `trainjob.source`.
"""

import errno
import gzip
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from trainjob.code_limits import (
    MAX_CODE_BYTES,
    MAX_ENTRIES,
    check_limits,
    refused,
    too_large,
    too_many_entries,
)
from trainjob.errors import SourceError
from trainjob.storage.failures import local_failures
from trainjob.storage.listing import Entry, Listing

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")

_MAX_NAMED = 10
_MAX_PART_BYTES = 255  # NAME_MAX of Linux file systems
_MAX_READ_BYTES = 1 << 20
_ENCRYPTED = 0x1  # general purpose bit 0, APPNOTE.TXT 4.4.4
_CORRUPT = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    LZMAError,
    EOFError,
    struct.error,
    ValueError,
    NotImplementedError,
    RecursionError,
)
"""What the standard library raises for bytes that are no archive, or not one that it knows."""


@dataclass(frozen=True, slots=True)
class _Member:
    """One line of a table of contents; `fault` says why it is refused."""

    name: str
    size_bytes: int
    is_folder: bool
    is_executable: bool
    fault: str | None
    open: Callable[[], IO[bytes] | None]

    @property
    def path(self) -> str:
        """The name without ``./`` and doubled or trailing slashes; ``.`` is the root."""
        return str(PurePosixPath(self.name))


def is_archive(name: str) -> bool:
    """Say whether a url or path names an archive by its ending."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack_archive(file: Path, place: str, target: Path) -> None:
    """Unpack `file` into the new folder `target`. Of the modes, only executable or not is kept.

    Args:
        file: The archive; its name says its kind.
        place: What messages call it.
        target: A folder that is not there yet.

    Raises:
        SourceError: If it is corrupt, encrypted or above the limits, or holds members that are
            absolute, lead out of the folder, are there twice, or are no plain file or folder.
        StoreError: If it cannot be read or the folder cannot be written.
    """
    with local_failures(place), _corruption_told(place), _opened(file) as members:
        contents = _table_of_contents(members, place)
        with local_failures(str(target)), _corruption_told(place):
            target.mkdir()
            for member in contents:
                _unpack(member, place, target / member.path)


@contextmanager
def _opened(file: Path) -> Iterator[Iterable[_Member]]:
    if file.name.lower().endswith(".zip"):
        with zipfile.ZipFile(file) as archive:
            yield (_zip_member(archive, info) for info in archive.infolist())
        return
    is_plain = file.name.lower().endswith(".tar")
    with file.open("rb") if is_plain else gzip.open(file) as raw:
        # The ignore: tarfile asks for an IO, and uses no more of it than _SmallReads has.
        reader = _SmallReads(raw)
        with tarfile.open(fileobj=reader, mode="r:") as archive:  # type: ignore[call-overload]
            yield _tar_members(archive, reader)


class _SmallReads:
    """A file that refuses to give much at once.

    tarfile reads an extended header as a whole, and one of gigabytes compresses to megabytes.
    """

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    mode = info.external_attr >> 16
    fault = None
    if info.flag_bits & _ENCRYPTED:
        fault = "is encrypted"
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = "is a link" if stat.S_ISLNK(mode) else "is neither a file nor a folder"
    return _Member(
        # filename ends at a NUL, which would hide it.
        name=info.orig_filename,
        size_bytes=info.file_size,
        is_folder=info.orig_filename.endswith("/"),
        is_executable=bool(mode & stat.S_IXUSR),
        fault=fault or _name_fault(info.orig_filename),
        open=partial(archive.open, info),
    )


def _tar_members(archive: tarfile.TarFile, reader: _SmallReads) -> Iterator[_Member]:
    for info in archive:
        yield _tar_member(archive, info)
    # tarfile takes a damaged header for the end of the archive and keeps quiet.
    reader.seek(archive.offset)
    if reader.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError("a damaged header")


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    if info.size < 0:
        raise tarfile.ReadError("a member of less than 0 bytes")
    fault = None
    if info.issym() or info.islnk():
        fault = "is a link"
    elif not (info.isreg() or info.isdir()):
        fault = "is neither a file nor a folder"
    return _Member(
        name=info.name,
        size_bytes=info.size if info.isreg() else 0,
        is_folder=info.isdir(),
        is_executable=bool(info.mode & stat.S_IXUSR),
        fault=fault or _name_fault(info.name),
        open=partial(archive.extractfile, info),
    )


def _name_fault(name: str) -> str | None:
    if "\0" in name:
        return "holds a NUL"
    if "\\" in name:
        return "holds a backslash"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is absolute"
    parts = name.split("/")
    if ".." in parts:
        return "holds .."
    try:
        is_long = any(len(part.encode()) > _MAX_PART_BYTES for part in parts)
    except UnicodeEncodeError:
        return "is not UTF-8"
    return f"has a part of more than {_MAX_PART_BYTES} bytes" if is_long else None


def _table_of_contents(members: Iterable[_Member], place: str) -> list[_Member]:
    """Return the members in order, all of them fit to be unpacked."""
    contents: dict[str, _Member] = {}
    faults: list[str] = []
    size_bytes = 0
    for member in members:
        known = contents.get(member.path)
        if member.fault:
            faults.append(f"{member.name!r} {member.fault}")
        elif known is not None and not (known.is_folder and member.is_folder):
            faults.append(f"{member.name!r} is there twice")
        elif member.path == "." and not member.is_folder:
            faults.append(f"{member.name!r} has no name")
        elif member.path != ".":
            contents[member.path] = member
            size_bytes += member.size_bytes
        # Asked here already: what is refused should not be decompressed to its end.
        if len(contents) > MAX_ENTRIES:
            raise too_many_entries(place, f"more than {MAX_ENTRIES:,}")
        if size_bytes > MAX_CODE_BYTES:
            raise too_large(place, size_bytes, member.path)
    faults += _files_used_as_folders(contents)
    if faults:
        raise _refused_members(place, faults)
    check_limits(place, _listing(contents))
    return list(contents.values())


def _files_used_as_folders(contents: dict[str, _Member]) -> list[str]:
    parents = {str(parent) for path in contents for parent in PurePosixPath(path).parents}
    return [
        f"{member.name!r} is both a file and a folder"
        for path, member in contents.items()
        if path in parents and not member.is_folder
    ]


def _refused_members(place: str, faults: list[str]) -> SourceError:
    named = ", ".join(faults[:_MAX_NAMED])
    more = f" and {len(faults) - _MAX_NAMED:,} more" if len(faults) > _MAX_NAMED else ""
    return refused(
        f"an archive of plain files and folders in {place!r}",
        f"members that are refused: {named}{more}",
        "make the archive again without them",
    )


def _listing(contents: dict[str, _Member]) -> Listing:
    return Listing(
        tuple(Entry(p, m.size_bytes, "") for p, m in contents.items() if not m.is_folder),
        tuple(path for path, member in contents.items() if member.is_folder),
    )


def _unpack(member: _Member, place: str, path: Path) -> None:
    if member.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    assert source is not None, "extractfile gives None only for links and folders"  # noqa: S101
    written = 0
    with source, path.open("xb") as copy:
        while chunk := source.read(_MAX_READ_BYTES):
            written += len(chunk)
            if written > member.size_bytes:
                break
            copy.write(chunk)
    if written != member.size_bytes:
        raise _corrupt(place, f"{member.name!r} has another size than the archive says")
    if member.is_executable:
        mode = path.stat().st_mode
        path.chmod(mode | (mode & 0o444) >> 2)


@contextmanager
def _corruption_told(place: str) -> Iterator[None]:
    try:
        yield
    except _CORRUPT as error:
        raise _corrupt(place, str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _corrupt(place, "a position before its start") from error


def _corrupt(place: str, reason: str) -> SourceError:
    return refused(
        f"the archive {place!r}",
        f"bytes that cannot be read as one ({reason})",
        "make or upload the archive again",
    )
