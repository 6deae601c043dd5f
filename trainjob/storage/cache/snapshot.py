"""One dataset in the cache, exactly as it was listed, with its manifest and those who use it.

::

    <cache>/v1/<key>/data/            the files, read-only
                     snapshot.json    where they came from, how many, and their fingerprint
                     files.json       every file: path, size, version, sha256, mtime
                     used             written when a job takes it; holds the boot of the machine
                     leases/          one empty file a job that uses it now

A folder of this machine is used where it lies: its snapshot has a manifest and no data.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from trainjob.errors import StoreError
from trainjob.storage.cache.owner import Owner, boot_id
from trainjob.storage.local_tree import list_folder

Proof = Literal["receipt", "etag", "size"]
"""What the bytes were compared with: our receipt beside them, the MD5 that the store has of each
file, or only the size, of the version that was listed."""

_FOREIGN_LEASE_S = 7 * 24 * 3600.0


class Header(BaseModel):
    """What a snapshot says of itself."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    """Version of this file's form."""

    url: str
    """Where the files came from."""

    source: str
    """Digest of the url, of the endpoint of its store, and of how archives are unpacked."""

    place: Path | None = None
    """The folder that is used where it lies; absent: the files are in the snapshot."""

    num_files: int
    size_bytes: int

    fingerprint: str
    """That of the files by content, see `trainjob.storage.manifest.fingerprint`."""

    verified: Proof
    engine: str
    """What brought the files."""

    is_reusable: bool = True
    """Whether the store tells versions apart, so that another job may take these files."""

    created: str
    """When they were verified, UTC, ISO 8601."""


class FileLine(NamedTuple):
    """One file of a snapshot."""

    path: str
    size_bytes: int
    version: str
    sha256: str
    mtime_ns: int

    def is_like(self, found: tuple[int, int] | str) -> bool:
        """Say whether a file with this size and mtime, or this version, is still this one."""
        return found in ((self.size_bytes, self.mtime_ns), self.version)


@dataclass(frozen=True, slots=True)
class Lease:
    """That `holder` uses a snapshot, by a process that may be there no more."""

    file: Path
    holder: str
    owner: Owner

    def is_alive(self) -> bool:
        """Say whether the process may still use the snapshot."""
        return self.owner.is_alive(self.file, _FOREIGN_LEASE_S)


class Snapshot:
    """The snapshot in the folder `root`."""

    def __init__(self, root: Path, header: Header) -> None:
        self.root = root
        self.header = header

    @classmethod
    def read(cls, root: Path) -> "Snapshot | None":
        """Return the snapshot in a folder; None if there is none that can be read."""
        try:
            return cls(root, Header.model_validate_json((root / "snapshot.json").read_bytes()))
        except (OSError, ValidationError):
            return None

    @property
    def key(self) -> str:
        """Its name in the cache."""
        return self.root.name

    @property
    def data(self) -> Path:
        """The folder with the files."""
        return self.header.place or self.root / "data"

    @property
    def stored_bytes(self) -> int:
        """What it takes of the disk at most; files that two snapshots share count for both."""
        return 0 if self.header.place else self.header.size_bytes

    def files(self) -> list[FileLine]:
        """Return every file of the manifest."""
        lines = json.loads((self.root / "files.json").read_bytes())
        return [FileLine(*line) for line in lines]

    def lease(self, holder: str) -> bool:
        """Note that this process uses it for `holder`; False if it is gone meanwhile."""
        try:
            (self.root / "leases" / f"{holder}@{Owner.this()}").touch()
        except FileNotFoundError:
            return False
        return (self.root / "snapshot.json").exists()

    def is_as_left(self) -> bool:
        """Say whether it can be taken as it is, and note that it is used.

        Its files are looked at only if a job ended without looking, or the machine fell.
        """
        gone = [lease for lease in self.leases() if not lease.is_alive()]
        used = self.root / "used"
        is_same_boot = used.exists() and used.read_text() == boot_id()
        if (gone or not is_same_boot) and self.header.place is None and self.differences():
            return False
        for lease in gone:
            lease.file.unlink(missing_ok=True)
        used.write_text(boot_id())
        return True

    def leases(self) -> list[Lease]:
        """Return who uses it, those who are gone without a word too."""
        found = []
        with suppress(FileNotFoundError):
            for file in (self.root / "leases").iterdir():
                holder, _, token = file.name.rpartition("@")
                if owner := Owner.parse(token):
                    found.append(Lease(file, holder, owner))
        return found

    def users(self) -> list[Lease]:
        """Return who may still be using it."""
        return [lease for lease in self.leases() if lease.is_alive()]

    def used_at(self) -> float:
        """Return when a job last took it, in seconds since 1970."""
        try:
            return (self.root / "used").stat().st_mtime
        except OSError:
            return 0.0

    def differences(self) -> list[str]:
        """Return what is not as the manifest says, by size and time alone; nothing is read."""
        known = {line.path: line for line in self.files()}
        found = dict(self._found())
        problems = [f"{path}: missing" for path in sorted(known.keys() - found.keys())]
        problems += [f"{path}: added" for path in sorted(found.keys() - known.keys())]
        for path, line in known.items():
            if path in found and found[path] not in (
                (line.size_bytes, line.mtime_ns),
                line.version,
            ):
                problems.append(f"{path}: changed")
        return problems

    def _found(self) -> Iterator[tuple[str, tuple[int, int] | str]]:
        """Yield each file that is there, with what tells that it is the one of the manifest."""
        if self.header.place is None:
            yield from sizes_and_times(self.data)
            return
        with suppress(StoreError):
            yield from ((e.path, e.version) for e in list_folder(self.header.place).files)


def sizes_and_times(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield path, size and mtime of every file below `folder`, links as they are."""
    pending = [(str(folder), "")]
    while pending:
        path, prefix = pending.pop()
        with suppress(FileNotFoundError), os.scandir(path) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    pending.append((item.path, f"{prefix}{item.name}/"))
                else:
                    stat = item.stat(follow_symlinks=False)
                    yield prefix + item.name, (stat.st_size, stat.st_mtime_ns)


def write_manifest(root: Path, header: Header, files: Iterable[FileLine]) -> None:
    """Write what makes a snapshot of the folder `root`."""
    (root / "leases").mkdir(exist_ok=True)
    (root / "used").write_text(boot_id())
    (root / "files.json").write_text(json.dumps(list(files)))
    (root / "snapshot.json").write_text(header.model_dump_json(indent=2))


def now() -> str:
    """Return the time for `Header.created`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
