"""Folders of this machine as a store."""

import errno
import hashlib
import os
import stat
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self

from trainjob.errors import StoreDenied, TreeChanged
from trainjob.storage.arrived_parts import ArrivedParts
from trainjob.storage.failures import failure, local_failures
from trainjob.storage.listing import Entry, Listing
from trainjob.storage.local_tree import copy_file, entry_of, list_folder, walk
from trainjob.storage.manifest import FileRecord, OnFile
from trainjob.storage.meter import Meter

PARTIAL = "_trainjob/partial-"
"""Start of the temporary names: in the tree, so that a rename stays on one file system."""

_NO_LINKS = {errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
"""What file systems without hard links, such as FAT and some of FUSE, say: link(2)."""


class LocalStore:
    """The folder `root`; see `trainjob.storage.store.Store`."""

    creates_in_one_step = True
    part_bytes = 0

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = f"{str(root).rstrip('/')}/"

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Do nothing: there is no connection."""

    def list_files(self) -> Listing:
        """Return everything below the folder; links are followed."""
        with self._told():
            return list_folder(self._root)

    def find(self, path: str) -> Entry | None:
        """Return one file; links are followed."""
        file = self._root / path
        with self._told(path), suppress(FileNotFoundError, NotADirectoryError):
            found = file.stat()
            return entry_of(path, found) if stat.S_ISREG(found.st_mode) else None
        return None

    def has_files(self) -> bool:
        """Say whether there is any file below the folder."""
        with self._told():
            return any(isinstance(entry, Entry) for entry in walk(self._root))

    def is_file(self) -> bool:
        """Say whether the path is a file and not a folder."""
        with self._told():
            return self._root.exists() and not self._root.is_dir()

    def download(
        self,
        files: Sequence[Entry],
        target: Path,
        meter: Meter,
        done: OnFile | None = None,
        _parts: ArrivedParts | None = None,
    ) -> list[FileRecord]:
        """Copy `files` to their paths below `target`; what was executable stays so."""
        records = []
        for entry in files:
            records.append(self._copy_out(entry, target / entry.path, meter))
            if done is not None:
                done(records[-1])
        return records

    def digest(self, files: Sequence[Entry], meter: Meter) -> list[FileRecord]:
        """Read `files` and return what they hold."""
        records = []
        for entry in files:
            with self._told(entry.path):
                records.append(copy_file(self._root / entry.path, entry, None, meter))
            meter.finish_file()
        return records

    def upload(
        self,
        source: Path,
        files: Sequence[Entry],
        meter: Meter,
        changed: list[str] | None = None,
    ) -> list[FileRecord]:
        """Copy `files` from the folder `source`, each under a temporary name first."""
        records = []
        for entry in files:
            try:
                with self._told(entry.path), self._new_file(entry.path) as copy:
                    records.append(copy_file(source / entry.path, entry, copy, meter))
            except TreeChanged:
                if changed is None:
                    raise
                changed.append(entry.path)
                continue
            meter.finish_file()
        return records

    def upload_chunks(self, path: str, chunks: Iterable[bytes]) -> FileRecord:
        """Write one file under a temporary name and rename it."""
        sha256, size_bytes = hashlib.sha256(), 0
        with self._told(path), self._new_file(path) as file:
            for chunk in chunks:
                file.write(chunk)
                sha256.update(chunk)
                size_bytes += len(chunk)
        return FileRecord(path, size_bytes, sha256.hexdigest())

    def read(self, path: str) -> bytes:
        """Return the content of a small file."""
        with self._told(path):
            try:
                return (self._root / path).read_bytes()
            except NotADirectoryError as error:  # there is a file above it
                raise FileNotFoundError from error

    def write(self, path: str, data: bytes) -> None:
        """Write a small file under a temporary name and rename it."""
        with self._told(path), self._new_file(path) as file:
            file.write(data)

    def create(self, path: str, data: bytes) -> bool:
        """Write a small file under a temporary name and link it, which fails if there is one."""
        file = self._root / path
        with self._told(path), self._partial() as opened:
            opened.write(data)
            _sync(opened)
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(opened.name, file)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                Path(opened.name).replace(file)
        return True

    def make_folders(self, paths: Sequence[str]) -> None:
        """Make folders, and those above them."""
        for path in paths:
            with self._told(path):
                (self._root / path).mkdir(parents=True, exist_ok=True)

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files and the folders that this leaves empty."""
        for path in paths:
            file = self._root / path
            if path.endswith("/"):
                file /= "-"  # so that the folder is the first of those above
            else:
                with self._told(path):
                    file.unlink(missing_ok=True)
            with suppress(OSError):  # it is not empty, or not there
                for folder in file.parents:
                    if folder == self._root:
                        break
                    folder.rmdir()

    def discard_unfinished(self, paths: Collection[str]) -> int:  # noqa: ARG002 - nothing to do
        """Return 0: what was half written has a name here, and is deleted like any file."""
        return 0

    def prove_writing(self) -> None:
        """Make an unnamed file in the nearest folder that exists; the others are made there."""
        with self._told():
            above = (self._root, *self._root.parents)
            existing = next(path for path in above if os.path.lexists(path))
            is_folder, is_broken = existing.is_dir(), not existing.exists()
        if not is_folder:
            # Such a link may be one to a disk that is not mounted.
            what = "a link that leads to nothing" if is_broken else "a file, not a folder"
            found = f"{str(existing)!r} is {what}"
            raise failure(StoreDenied, self.url, found, "use another folder")
        with local_failures(str(existing)), tempfile.TemporaryFile(dir=existing):
            pass

    def _copy_out(self, entry: Entry, file: Path, meter: Meter) -> FileRecord:
        source = self._root / entry.path
        with self._told(entry.path):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as copy:
                record = copy_file(source, entry, copy, meter)
            _make_executable_as(source, file)
        meter.finish_file()
        return record

    @contextmanager
    def _new_file(self, path: str) -> Iterator[BinaryIO]:
        """Give an open file that takes the name `path` when the block ends well."""
        file = self._root / path
        with self._partial() as opened:
            file.parent.mkdir(parents=True, exist_ok=True)
            yield opened
            _sync(opened)
            Path(opened.name).replace(file)

    @contextmanager
    def _partial(self) -> Iterator[BinaryIO]:
        """Give an open file of a temporary name, which is gone when the block ends."""
        partial = self._root / f"{PARTIAL}{uuid.uuid4().hex}"
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as opened:
                yield opened
        finally:
            with suppress(OSError):  # it has another name now
                partial.unlink()

    def _told(self, path: str = "") -> AbstractContextManager[None]:
        return local_failures(f"{self.url}{path}")


def _make_executable_as(source: Path, file: Path) -> None:
    missing = source.stat().st_mode & 0o111 & ~file.stat().st_mode
    if missing:
        with suppress(PermissionError):  # of disks without permissions, as shares of Windows
            file.chmod(file.stat().st_mode | missing)


def _sync(opened: BinaryIO) -> None:
    opened.flush()
    os.fsync(opened.fileno())
