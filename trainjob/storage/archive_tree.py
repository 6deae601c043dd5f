"""Unpacks an archive into a folder: hostile ones are refused, and nothing of them stays.

Nothing but plain files and folders is ever made, and no path is used that was not examined, so
that no member can end up outside the target. Of zip and plain tar archives the whole table of
contents is examined before the first byte is written; a compressed tar is examined member by
member while it is unpacked, since reading it twice would cost twice. Either way the target is there
as a whole or not at all. What may be in the archive of a code or a dataset is said by `Rules`.
"""

import hashlib
import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from trainjob.storage.archive_members import BadArchive, Member, unreadable_told
from trainjob.storage.deadline import check_deadline
from trainjob.storage.failures import local_failures
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.tar_members import tar_members
from trainjob.storage.zip_members import zip_members

_MAX_NAMED = 10


class Fault(NamedTuple):
    """A member that is refused, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        """Return both as a part of a sentence."""
        return f"{self.name!r} {self.reason}"


class BadMembers(Exception):
    """Members that cannot be unpacked; the message names ten of them."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = faults
        named = ", ".join(map(str, faults[:_MAX_NAMED]))
        more = len(faults) - _MAX_NAMED
        super().__init__(named + (f" and {more:,} more" if more > 0 else ""))


class Rules(Protocol):
    """What an archive may hold. The methods raise what stops the unpacking."""

    def admit(self, member: Member) -> None:
        """Hear of a member with nothing wrong, before it is unpacked."""

    def finish(self) -> None:
        """Hear that there are no more; of a zip or plain tar before anything is unpacked."""


def unpack_tree(
    file: Path, place: str, target: Path, rules: Rules, meter: Meter, names: str | None = None
) -> list[FileRecord]:
    """Unpack `file` into the new folder `target`. Of the modes, only executable or not is kept.

    Args:
        file: The archive; its name says its kind.
        place: What messages call it.
        target: A folder that is not there yet, in one that is.
        rules: What may be in it.
        meter: Counts what is unpacked.
        names: The encoding of names that are not marked as UTF-8; None: that of the format.

    Returns:
        What every file holds, in the order of the archive.

    Raises:
        BadArchive: If it cannot be read as an archive.
        BadMembers: If members are absolute, lead out of the folder, exclude one another, or are no
            plain file or folder.
        StoreError: If it cannot be read or the folder cannot be written.
    """
    with (
        local_failures(place),
        _opened(file, names) as members,
        local_failures(str(target)),
        _new_folder(target),
    ):
        table = Table(folds_case=_folds_case(target))
        examine = _one_by_one if is_stream(file) else _all_at_once
        unpacked = _Folder(target, place, meter)
        records = (unpacked.add(member) for member in examine(members, table, rules))
        return [record for record in records if record is not None]


class Table:
    """Finds members that exclude one another, as they come.

    Args:
        folds_case: Whether names that differ in nothing but their case are one file on the disk.
    """

    def __init__(self, *, folds_case: bool) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = {"."}
        self._by_folded: dict[str, str] | None = {} if folds_case else None

    def fault_of(self, member: Member) -> Fault | None:
        """Say what is wrong with the next member; None if it can stand beside those before."""
        if member.fault:
            return Fault(member.name, member.fault)
        path = member.path
        if path in self._files and not member.is_folder:
            return Fault(member.name, "is there twice")
        if path in self._files or (path in self._folders and not member.is_folder):
            reason = "has no name" if path == "." else "is both a file and a folder"
            return Fault(member.name, reason)
        if fault := self._fault_above(path):
            return fault
        (self._folders if member.is_folder else self._files).add(path)
        return self._folded_fault(path)

    def _fault_above(self, path: str) -> Fault | None:
        while path := path.rpartition("/")[0]:
            if path in self._folders:
                return None
            if path in self._files:
                return Fault(path, "is both a file and a folder")
            self._folders.add(path)
            if fault := self._folded_fault(path):
                return fault
        return None

    def _folded_fault(self, path: str) -> Fault | None:
        if self._by_folded is None:
            return None
        other = self._by_folded.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        if other == path:
            return None
        return Fault(path, f"is the same as {other!r} on this disk, which ignores case")


def is_stream(file: Path) -> bool:
    """Tell whether the members of an archive are examined only while it is unpacked."""
    return not file.name.lower().endswith((".zip", ".tar"))


def _opened(file: Path, names: str | None) -> AbstractContextManager[Iterator[Member]]:
    opened = zip_members if file.name.lower().endswith(".zip") else tar_members
    return opened(file, names)


@contextmanager
def _new_folder(target: Path) -> Iterator[None]:
    """Make the folder, and remove it with all that is in it if the block does not end well."""
    target.mkdir()
    try:
        yield
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _folds_case(folder: Path) -> bool:
    """Tell whether the disk of the empty `folder` takes a small letter for its capital."""
    (folder / "a").mkdir()
    folds = (folder / "A").exists()
    (folder / "a").rmdir()
    return folds


def _one_by_one(members: Iterable[Member], table: Table, rules: Rules) -> Iterator[Member]:
    for member in members:
        if fault := table.fault_of(member):
            raise BadMembers([fault])
        rules.admit(member)
        yield member
    rules.finish()


def _all_at_once(members: Iterable[Member], table: Table, rules: Rules) -> list[Member]:
    contents, faults = [], []
    for member in members:
        if fault := table.fault_of(member):
            faults.append(fault)
        else:
            rules.admit(member)
            contents.append(member)
    if faults:
        raise BadMembers(faults)
    rules.finish()
    return contents


class _Folder:
    """A new folder that members are put into. Paths are text, which costs a tenth of a `Path`."""

    def __init__(self, root: Path, place: str, meter: Meter) -> None:
        self._root = str(root)
        self._place = place
        self._meter = meter
        self._made = {"", "."}

    def add(self, member: Member) -> FileRecord | None:
        """Unpack one member; return what it holds if it is a file."""
        path = member.path
        if member.is_folder:
            self._make(path)
            return None
        self._make(path.rpartition("/")[0])
        mode = 0o777 if member.is_executable else 0o666
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        digest = hashlib.sha256()
        copy = os.open(f"{self._root}/{path}", flags, mode)
        try:
            for piece in self._content(member):
                _write_all(copy, piece)
                digest.update(piece)
                self._meter.add_bytes(len(piece))
        finally:
            os.close(copy)
        self._meter.finish_file()
        return FileRecord(path, member.size_bytes, digest.hexdigest())

    def _make(self, path: str) -> None:
        missing = []
        while path not in self._made:
            missing.append(path)
            path = path.rpartition("/")[0]
        for folder in reversed(missing):
            os.mkdir(f"{self._root}/{folder}")  # noqa: PTH102 - see the class
            self._made.add(folder)

    def _content(self, member: Member) -> Iterator[bytes]:
        """Yield exactly as many bytes as the archive declares."""
        left = member.size_bytes
        check_deadline(self._place)
        with unreadable_told(member.name):  # what is done with a piece is not done in here
            for piece in member.content():
                left -= len(piece)
                if left < 0:
                    break
                yield piece
                check_deadline(self._place)
        if left:
            raise BadArchive(f"{member.name!r} has another size than the archive says")


def _write_all(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
