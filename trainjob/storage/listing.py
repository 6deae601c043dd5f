"""What a store says that it holds: the files and folders below one url."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MD5 = re.compile(r'"?([0-9a-f]{32})"?', re.IGNORECASE)  # OSS writes it in capitals


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a listing.

    Attributes:
        path: Where it is below the url, with ``/`` between the parts.
        size_bytes: Its size.
        version: Text that changes whenever the content does (an ETag, or size and times of a local
            file); empty if the store has none.
    """

    path: str
    size_bytes: int
    version: str


def is_version(etag: str, entry: Entry) -> bool:
    """Say whether an answer with this ETag is about the version of an entry, if that has one.

    Some stores put it in quotes in the one and not in the other.
    """
    listed = entry.version
    return not listed or etag == listed or etag.strip('"') == listed.strip('"')


def md5_in(etag: str) -> str:
    """Return the MD5 that an ETag is; empty if it is something else, as for several parts."""
    match = _MD5.fullmatch(etag)
    return match[1].lower() if match else ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files below a url, and the folders that exist without a file of their own."""

    files: tuple[Entry, ...]
    folders: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return total_size(self.files)


def total_size(files: Sequence[Entry]) -> int:
    """Return the size in bytes of all `files` together."""
    return sum(file.size_bytes for file in files)
