"""The members of a zip archive, for `trainjob.storage.archive_tree`.

The table of contents at the end of the file says everything, and nothing else is believed: what a
member says of itself is compared with it by `zipfile` when it is read.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from trainjob.storage.archive_members import (
    READ_BYTES,
    BadArchive,
    Member,
    name_fault,
    pieces,
    unreadable_told,
)

_ENCRYPTED = 0x1  # general purpose bit 0, APPNOTE.TXT 4.4.4
_IS_UTF_8 = 0x800  # bit 11
_UNICODE_PATH = 0x7075  # extra field of Info-ZIP and WinRAR, APPNOTE.TXT 4.6.9
_METHODS = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
)
_OTHER_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd"}  # APPNOTE.TXT 4.4.5


@contextmanager
def zip_members(file: Path, names: str | None) -> Iterator[Iterator[Member]]:
    """Open a zip archive and give its members.

    Args:
        file: The archive.
        names: The encoding of names that are not marked as UTF-8; None: cp437, as the
            specification says.

    Raises:
        BadArchive: If it is none; when the members are gone through as well.
    """
    with file.open("rb", buffering=READ_BYTES) as raw:
        with unreadable_told():
            archive = zipfile.ZipFile(raw)
        yield _members(archive, names or "cp437")


def _members(archive: zipfile.ZipFile, names: str) -> Iterator[Member]:
    for info in archive.infolist():
        name = _name(info, names)
        mode = info.external_attr >> 16
        yield Member(
            name=name,
            size_bytes=info.file_size,
            is_folder=name.endswith("/"),
            is_executable=bool(mode & stat.S_IXUSR),
            fault=_fault(info, mode) or name_fault(name, names),
            content=partial(_content, archive, info),
        )


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    return pieces(archive.open(info))


def _fault(info: zipfile.ZipInfo, mode: int) -> str | None:
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link" if stat.S_ISLNK(mode) else "is neither a file nor a folder"
    if info.compress_type not in _METHODS:
        name = _OTHER_METHODS.get(info.compress_type)
        method = f"{info.compress_type} ({name})" if name else f"{info.compress_type}"
        return f"is compressed by method {method}, which is not known"
    return None


def _name(info: zipfile.ZipInfo, names: str) -> str:
    """Return the whole name; `filename` ends at a NUL, which would hide it."""
    name = info.orig_filename
    if info.flag_bits & _IS_UTF_8 or name.isascii():
        return name
    raw = name.encode("cp437")  # zipfile has decoded it so, which loses nothing
    return _unicode_path(info.extra, raw) or raw.decode(names, "surrogateescape")


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name in UTF-8 that stands beside the other one, if it is of that one."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and len(field) > 5 and field[0] == 1:
            (checksum,) = struct.unpack_from("<L", field, 1)
            if checksum == zlib.crc32(raw):
                try:
                    return field[5:].decode()
                except UnicodeDecodeError as error:
                    raise BadArchive("a name that is marked as UTF-8 and is not") from error
    return None
