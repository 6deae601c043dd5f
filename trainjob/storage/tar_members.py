"""The members of a tar archive, plain or compressed, for `trainjob.storage.archive_tree`.

tarfile reads the headers: pax, GNU long names and sparse files included. What it lets pass in
silence is found here: a damaged header in the middle, a missing end, something behind the end, and
the checksum of a compression, which stands behind the last byte that tarfile reads.
"""

import gzip
import io
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, cast

import zstandard

from trainjob.storage.archive_members import (
    READ_BYTES,
    BadArchive,
    Member,
    name_fault,
    pieces,
    unreadable_told,
)

_MAX_READ_BYTES = 1 << 20
_MAX_PADDING_BYTES = 16 << 20  # tar fills up to a record, of 10 KiB if not told otherwise


@contextmanager
def tar_members(file: Path, names: str | None) -> Iterator[Iterator[Member]]:
    """Open a tar archive and give its members; each can be read until the next is asked for.

    Args:
        file: The archive: ``.tar``, ``.tar.gz``, ``.tgz`` or ``.tar.zst``.
        names: The encoding of names that are not marked as UTF-8; None: UTF-8.

    Raises:
        BadArchive: If it is none; when the members are gone through as well.
    """
    # Its headers lie far from one another, so that a larger buffer would read the archive twice.
    with file.open("rb") as raw, _decoded(raw, file.name) as stream:
        reader = _Reader(stream, can_seek=stream is raw)
        yield _members(reader, names or "utf-8")


@contextmanager
def _decoded(raw: BinaryIO, name: str) -> Iterator[IO[bytes]]:
    if name.lower().endswith(".tar"):
        yield raw
    elif name.lower().endswith(".zst"):
        # Frames that need more than 128 MiB to be decoded are refused by the library.
        decoder = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        with io.BufferedReader(cast(io.RawIOBase, decoder), READ_BYTES) as stream:
            yield stream
    else:
        with gzip.open(raw) as unzipped:
            yield cast(IO[bytes], unzipped)


class _Reader:
    """A file that gives little at once, and that may be a stream.

    tarfile reads an extended header as a whole, and one of gigabytes compresses to megabytes.
    """

    def __init__(self, file: IO[bytes], *, can_seek: bool) -> None:
        self._file = file
        self._can_seek = can_seek
        self._position = 0
        self.last = b""
        """What was read last."""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if self._can_seek:
            self._file.seek(position)
            self._position = position
        elif position < self._position:
            raise tarfile.StreamError("members in another order than their content")
        while self._position < position:
            if not self.read(min(position - self._position, _MAX_READ_BYTES)):
                raise tarfile.ReadError("unexpected end of data")

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        self.last = self._file.read(size)
        self._position += len(self.last)
        return self.last


def _members(reader: _Reader, names: str) -> Iterator[Member]:
    with unreadable_told():  # what is done with a member is not done in here
        archive = _tar_file(reader, names)
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined] # it would keep them all
            yield _member(archive, reader, info, names)
        _check_end(reader)


def _tar_file(reader: _Reader, names: str) -> tarfile.TarFile:
    # tarfile asks for an IO, and uses no more of it than _Reader has.
    file = cast(IO[bytes], reader)
    return tarfile.open(fileobj=file, mode="r:", encoding=names, errors="surrogateescape")


def _member(archive: tarfile.TarFile, reader: _Reader, info: tarfile.TarInfo, names: str) -> Member:
    if info.size < 0:
        raise BadArchive("a member of less than 0 bytes")
    fault = None
    if info.issym() or info.islnk():
        fault = "is a link"
    elif not (info.isreg() or info.isdir()):
        fault = "is neither a file nor a folder"
    return Member(
        name=info.name,
        size_bytes=info.size if info.isreg() else 0,
        is_folder=info.isdir(),
        is_executable=bool(info.mode & stat.S_IXUSR),
        fault=fault or name_fault(info.name, names),
        content=partial(_content, archive, reader, info),
    )


def _content(archive: tarfile.TarFile, reader: _Reader, info: tarfile.TarInfo) -> Iterator[bytes]:
    if info.issparse():
        source = archive.extractfile(info)
        assert source is not None, "there is none only for links and folders"  # noqa: S101
        yield from pieces(source)
        return
    # Not by tarfile, whose two objects a member take twice as long as a small one's content.
    reader.seek(info.offset_data)
    left = info.size
    while left and (piece := reader.read(min(left, _MAX_READ_BYTES))):
        left -= len(piece)
        yield piece


def _check_end(reader: _Reader) -> None:
    """See that the archive ends where tarfile has stopped, which it does at any odd block."""
    if len(reader.last) < tarfile.BLOCKSIZE:
        raise BadArchive("no mark of its end, so it may be cut off")
    if reader.last.strip(b"\0"):
        raise BadArchive("a damaged header")
    left = _MAX_PADDING_BYTES
    while chunk := reader.read(_MAX_READ_BYTES):
        left -= len(chunk)
        if left < 0 or chunk.strip(b"\0"):
            raise BadArchive("something behind its end, such as a second archive")
