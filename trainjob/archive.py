"""Unpacks archives of code: .zip, .tar, .tar.gz and .tgz, within the limits of a code folder.

Whatever the archive holds is examined by `trainjob.storage.archive_tree`. Used by
`trainjob.source`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainjob.code_limits import (
    CodeLimits,
    check_limits,
    refused,
    too_large,
    too_many_entries,
)
from trainjob.storage.archive_members import BadArchive, Member
from trainjob.storage.archive_tree import BadMembers, unpack_tree
from trainjob.storage.listing import Entry, Listing
from trainjob.storage.meter import Meter

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


def is_archive(name: str) -> bool:
    """Say whether a url or path names an archive of code by its ending."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack_archive(file: Path, place: str, target: Path, limits: CodeLimits) -> None:
    """Unpack `file` into the new folder `target`, as a whole or not at all.

    Args:
        file: The archive; its name says its kind.
        place: What messages call it.
        target: A folder that is not there yet.
        limits: How much code is allowed.

    Raises:
        SourceError: If it is corrupt, encrypted or above the limits, or holds members that are
            absolute, lead out of the folder, are there twice, or are no plain file or folder.
        StoreError: If it cannot be read or the folder cannot be written.
    """
    with _told(place):
        unpack_tree(file, place, target, _WhileMembersCome(place, limits), Meter(None, ()))


class _WhileMembersCome:
    """Asks already while members come: what is refused should not be read to its end."""

    def __init__(self, place: str, limits: CodeLimits) -> None:
        self._place = place
        self._limits = limits
        self._files: list[Entry] = []
        self._folders: set[str] = set()
        self._size_bytes = 0

    def admit(self, member: Member) -> None:
        if member.path == ".":
            return
        if member.is_folder:
            self._folders.add(member.path)
        else:
            self._files.append(Entry(member.path, member.size_bytes, ""))
            self._size_bytes += member.size_bytes
        most = self._limits.max_entries
        if len(self._files) + len(self._folders) > most:
            raise too_many_entries(self._place, f"more than {most:,}", self._limits)
        if self._size_bytes > self._limits.max_bytes:
            raise too_large(self._place, self._size_bytes, member.path, self._limits)

    def finish(self) -> None:
        listing = Listing(tuple(self._files), tuple(self._folders))
        check_limits(self._place, listing, self._limits)


@contextmanager
def _told(place: str) -> Iterator[None]:
    try:
        yield
    except BadArchive as error:
        raise refused(
            f"the archive {place!r}",
            f"bytes that cannot be read as one ({error})",
            "make or upload the archive again",
        ) from error
    except BadMembers as error:
        raise refused(
            f"an archive of plain files and folders in {place!r}",
            f"members that are refused: {error}",
            "make the archive again without them",
        ) from error
