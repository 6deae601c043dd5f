"""A snapshot that is being made: what of it is complete, across processes that are killed.

::

    <cache>/incoming/<source>-<owner>-<machine>-<number>/data/     the files so far
                                                         archive/  or the archive that holds them
                                                         journal   one line a file that is complete
                                                         parts     and a part of a large one
                                                         size      how many bytes it takes, or will

Only files and parts with a line are trusted, and only as the version that is listed now. A process
takes over what another left by a rename, which only one of them can win.
"""

import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import Literal, TextIO

from trainjob.storage.arrived_parts import ArrivedParts
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.heartbeat import SILENCE_S
from trainjob.storage.cache.owner import Owner, boot_id
from trainjob.storage.cache.removal import destroy, open_folders, protect, remove
from trainjob.storage.cache.snapshot import FileLine, Header, Snapshot, write_manifest
from trainjob.storage.listing import Entry
from trainjob.storage.manifest import FileRecord

_SIZE = "size"
_PARTS = "parts"


class Incoming:
    """The folder of one snapshot that is being made. Use `taken_from`.

    Attributes:
        folder: Where it is.
        journal: The file that shows others that it is being made, while it is not old.
        parts: What is there of large files that are not complete.
    """

    def __init__(self, cache: Cache, source: str, folder: Path) -> None:
        self.folder = folder
        self._cache = cache
        self._source = source
        self.journal = folder / "journal"
        self.parts = ArrivedParts(folder / _PARTS, boot_id())
        self._size_bytes = 0
        self._complete: dict[str, tuple[str, FileRecord]] = {}
        self._versions: dict[str, str] = {}
        self._lines: TextIO | None = None

    @classmethod
    def taken_from(cls, cache: Cache, source: str) -> "Incoming":
        """Go on with what a process left that is gone, or begin anew."""
        own = cache.incoming / _name(source, Owner.this())
        for left in abandoned(cache, source):
            with suppress(OSError):  # another process was faster, or it is another user's
                if own.exists():
                    remove(left, cache.trash)  # it would never be taken
                else:
                    left.rename(own)
        own.mkdir(exist_ok=True)
        incoming = cls(cache, source, own)
        incoming.journal.touch()
        incoming._read_journal()
        return incoming

    def keep(
        self, files: Sequence[Entry], part: Literal["data", "archive"], part_bytes: int = 0
    ) -> list[FileRecord]:
        """Remove everything but those of `files` that are complete; return these.

        Args:
            files: All files as they are listed now.
            part: The folder that they come to.
            part_bytes: Keep what is there of large files in parts of this size; 0: nothing.
        """
        self._versions = {entry.path: entry.version for entry in files}
        target = self.folder / part
        open_folders(self.folder)
        for other in {"data", "archive"} - {part}:
            destroy(self.folder / other)
        kept = {}
        for entry in files:
            version, record = self._complete.get(entry.path, ("", None))
            if record and version == entry.version and _has_size(target, entry):
                kept[entry.path] = (version, record)
        self._complete = kept
        rest = [entry for entry in files if part_bytes and entry.path not in kept]
        begun = self.parts.keep(rest, part_bytes, target)
        _remove_others(target, {*kept, *begun})
        target.mkdir(exist_ok=True)
        self._write_journal()
        self._size_bytes = 0
        self.grow(sum(record.size_bytes for _, record in kept.values()) + self.parts.size_bytes)
        return [record for _, record in kept.values()]

    def grow(self, size_bytes: int) -> None:
        """Tell others that it takes so much more, or will soon, so that they need not look."""
        self._size_bytes += size_bytes
        with suppress(OSError):
            (self.folder / _SIZE).write_text(str(self._size_bytes))

    def link(self, file: Path) -> None:
        """Have nothing but a link to a file of this machine."""
        self.keep((), "data")
        data = self.folder / "data"
        (data / file.name).symlink_to(file)
        with suppress(PermissionError):  # see `protect`, which would follow the link
            data.chmod(0o555)

    def note(self, record: FileRecord) -> None:
        """Take down that a file is there, complete and verified."""
        version = self._versions[record.path]
        self._complete[record.path] = (version, record)
        self.parts.forget(record.path)
        with suppress(OSError):  # a line that is lost costs time, and nothing else
            if self._lines is None:
                self._lines = self.journal.open("a", buffering=1)
            self._lines.write(_line(version, record))

    def forget(self, paths: Iterable[str]) -> None:
        """Let files count as not there."""
        self._close()
        for path in paths:
            self._complete.pop(path, None)
        self._write_journal()

    def publish(
        self, key: str, header: Header, files: Sequence[FileRecord], versions: Mapping[str, str]
    ) -> None:
        """Make it the snapshot `key`, unless another process made one meanwhile.

        If that one was taken back, too, what is complete here is kept for the next try.

        Args:
            key: Its name.
            header: What it says of itself.
            files: All its files.
            versions: Of the files that have one.
        """
        self._close()
        if header.place is None:
            times = protect(self.folder / "data")
        else:
            times = _times(header.place.parent if header.is_one_file else header.place, files)
        lines = (
            FileLine(
                file.path,
                file.size_bytes,
                versions.get(file.path, ""),
                file.sha256,
                times[file.path],
                file.verified,
            )
            for file in files
        )
        write_manifest(self.folder, header, lines)
        target = self._cache.published / key
        try:
            self.folder.rename(target)
        except OSError:
            made = Snapshot.read(target)
            if made is None:
                raise
            if not made.is_taken_back:
                destroy(self.folder)
            return
        for name in ("journal", _PARTS, _SIZE):
            (target / name).unlink(missing_ok=True)

    def give_up(self) -> None:
        """Leave what is complete to whoever wants it; nothing if it was published or thrown away.

        A folder without one complete file or part is removed.
        """
        self._close()
        with suppress(OSError):
            if self._complete or self.parts:
                left = self._cache.incoming / _name(self._source, Owner.nobody())
                self.folder.rename(left)
            elif self.folder.exists():
                destroy(self.folder)

    def _close(self) -> None:
        if self._lines is not None:
            with suppress(OSError):
                self._lines.close()
            self._lines = None

    def _read_journal(self) -> None:
        with suppress(OSError):
            lines = self.journal.read_text(errors="replace").splitlines()
            # A machine that fell may have kept the line and lost the file.
            for line in lines[1:] if lines[:1] == [boot_id()] else ():
                with suppress(ValueError, TypeError):  # the last one, cut off
                    path, version, size_bytes, sha256, proof = json.loads(line)
                    record = FileRecord(path, size_bytes, sha256, verified=proof)
                    self._complete[path] = (version, record)

    def _write_journal(self) -> None:
        partial = self.journal.with_suffix(".part")
        lines = [_line(version, record) for version, record in self._complete.values()]
        partial.write_text("".join([f"{boot_id()}\n", *lines]))
        partial.replace(self.journal)


def abandoned(cache: Cache, source: str = "") -> list[Path]:
    """Return what processes that are gone left unfinished, the last first.

    Args:
        cache: The cache.
        source: Of this source only.
    """
    found = []
    with suppress(FileNotFoundError):
        for folder in cache.incoming.glob(f"{source}*-*-*"):
            _, token, *rest = folder.name.split("-")
            owner = Owner.parse(token, rest[0] if len(rest) > 1 else "")  # none: an older trainjob
            if owner is None or not owner.is_alive(folder / "journal", SILENCE_S):
                found.append(folder)
    return sorted(found, key=written_at, reverse=True)


def size_told(folder: Path) -> int | None:
    """Return what a copy takes of the disk, or will, as it says itself; None if it does not."""
    with suppress(OSError, ValueError):
        return int((folder / _SIZE).read_text())
    return None


def written_at(folder: Path) -> float:
    """Return when a file of a copy was last complete, in seconds since 1970; 0 if it is gone."""
    for path in (folder / "journal", folder):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _name(source: str, owner: Owner) -> str:
    return f"{source}-{owner}-{owner.machine}-{uuid.uuid4().hex}"


def _line(version: str, record: FileRecord) -> str:
    # As `json.dumps` would write it, which takes four times as long.
    path, version = _quoted(record.path), _quoted(version)
    return f'[{path}, {version}, {record.size_bytes}, "{record.sha256}", "{record.verified}"]\n'


def _times(folder: Path, files: Sequence[FileRecord]) -> dict[str, int]:
    """Return when each of the files below a folder was written last, in nanoseconds since 1970."""
    # Not by Path, which takes as long again, for each file.
    return {file.path: os.stat(f"{folder}/{file.path}").st_mtime_ns for file in files}  # noqa: PTH116


def _has_size(folder: Path, entry: Entry) -> bool:
    """Say whether a file of this version can be told from others, and is there in full."""
    with suppress(OSError):
        return bool(entry.version) and (folder / entry.path).lstat().st_size == entry.size_bytes
    return False


def _remove_others(folder: Path, kept: Iterable[str]) -> None:
    wanted = set(kept)
    for path, _, names in os.walk(folder, topdown=False):
        prefix = os.path.relpath(path, folder) + "/" if path != str(folder) else ""
        for name in names:
            if prefix + name not in wanted:
                Path(path, name).unlink()
        with suppress(OSError):  # not empty
            Path(path).rmdir()
