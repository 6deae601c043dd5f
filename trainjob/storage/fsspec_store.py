"""A folder of any store that fsspec has a driver for, such as ``gs://``, ``abfs://``, ``https://``.

Slower than the engine for ``s3://``, with its promises as far as the store allows: exact names,
bounded memory, every file copied as it was listed or not at all, MD5 where the store tells one.
"""

import hashlib
import random
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem

from trainjob.errors import (
    CorruptData,
    StoreError,
    StoreNotFound,
    StoreUnavailable,
    TreeChanged,
)
from trainjob.storage.arrived_parts import ArrivedParts
from trainjob.storage.failures import failure, local_failures
from trainjob.storage.fsspec_driver import (
    driver_failures,
    md5_in,
    open_driver,
    version_in,
)
from trainjob.storage.fsspec_tree import FsspecTree
from trainjob.storage.listing import Entry, Listing
from trainjob.storage.local import PARTIAL
from trainjob.storage.local_tree import copy_file
from trainjob.storage.manifest import FileRecord, OnFile, Proof
from trainjob.storage.meter import Meter, SharedMeter
from trainjob.storage.workers import Stop, each
from trainjob.storage.write_probe import prove_writing

_CHUNK_BYTES = 1 << 20
_MAX_REQUESTS = 8
_TRIES = 4
_FIRST_PAUSE_S = 0.2
_RUN_AGAIN = "run again when nothing writes to it"


class FsspecStore:
    """The folder at `url`; see `trainjob.storage.store.Store`."""

    creates_in_one_step = False
    part_bytes = 0

    def __init__(self, url: str) -> None:
        self.url = f"{url.rstrip('/')}/"
        self._driver: AbstractFileSystem = open_driver(self.url)
        self._tree = FsspecTree(self._driver, self.url)
        # Only drivers that fsspec runs on a loop of its own can be asked by several threads.
        self._num_workers = _MAX_REQUESTS if self._driver.async_impl else 1

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Forget what was listed; drivers close their connections when they are forgotten."""
        self._driver.invalidate_cache()

    def list_files(self) -> Listing:
        """Return everything below the folder."""
        found = dict(sorted(self._tree.walk()))
        folders = [path for path, info in found.items() if info["type"] == "directory"]
        files = [(path, info) for path, info in found.items() if info["type"] != "directory"]
        entries = each(files, self._entry_of, self._num_workers, self.url)
        return Listing(tuple(entries), tuple(folders))

    def find(self, path: str) -> Entry | None:
        """Return one file."""
        try:
            info = self._tree.info(path)
        except StoreNotFound:
            return None
        return None if info["type"] == "directory" else self._tree.entry(path, info)

    def has_files(self) -> bool:
        """Say whether there is any file below the folder."""
        return any(info["type"] != "directory" for _, info in self._tree.walk())

    def is_file(self) -> bool:
        """Say whether the url is a single file and not a folder."""
        try:
            with driver_failures(self.url):
                return bool(self._driver.info(self._tree.root.rstrip("/"))["type"] == "file")
        except StoreNotFound:
            return False

    def download(
        self,
        files: Sequence[Entry],
        target: Path,
        meter: Meter,
        done: OnFile | None = None,
        _parts: ArrivedParts | None = None,
    ) -> list[FileRecord]:
        """Copy `files` to their paths below `target`."""
        counted = SharedMeter(meter, done)

        def save(entry: Entry, stop: Stop) -> FileRecord:
            file = target / entry.path
            with local_failures(str(file)):
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as copy:
                    record = self._fetch(entry, copy, counted, stop)
            counted.tell(record)
            return record

        return each(files, save, self._num_workers, self.url)

    def digest(self, files: Sequence[Entry], meter: Meter) -> list[FileRecord]:
        """Read `files` and return what arrives."""
        counted = SharedMeter(meter, None)

        def read(entry: Entry, stop: Stop) -> FileRecord:
            record = self._fetch(entry, None, counted, stop)
            counted.tell(record)
            return record

        return each(files, read, self._num_workers, self.url)

    def upload(
        self,
        source: Path,
        files: Sequence[Entry],
        meter: Meter,
        changed: list[str] | None = None,
    ) -> list[FileRecord]:
        """Copy `files` from the folder `source`, each under a temporary name first."""
        counted = SharedMeter(meter, None)

        def send(entry: Entry, stop: Stop) -> FileRecord | None:
            stop.check()
            file = source / entry.path
            try:
                with self._new_file(entry.path) as copy, local_failures(str(file)):
                    record = copy_file(file, entry, copy, counted)
            except TreeChanged:
                if changed is None:
                    raise
                changed.append(entry.path)
                return None
            counted.tell(record)
            return record

        sent = each(files, send, self._num_workers, self.url)
        return [record for record in sent if record is not None]

    def upload_chunks(self, path: str, chunks: Iterable[bytes]) -> FileRecord:
        """Write one file under a temporary name and rename it."""
        sha256, size_bytes = hashlib.sha256(), 0
        with self._new_file(path) as file:
            for chunk in chunks:
                file.write(chunk)
                sha256.update(chunk)
                size_bytes += len(chunk)
        return FileRecord(path, size_bytes, sha256.hexdigest())

    def read(self, path: str) -> bytes:
        """Return the content of a small file."""
        with driver_failures(self.url + path):
            return bytes(self._driver.cat_file(self._tree.place(path)))

    def write(self, path: str, data: bytes) -> None:
        """Write a small file under a temporary name and rename it."""
        with self._new_file(path) as file:
            file.write(data)

    def create(self, path: str, data: bytes) -> bool:
        """Write a small file if there is none; no driver can be asked to do both in one step."""
        try:
            self._tree.info(path)
        except StoreNotFound:
            self.write(path, data)
            return True
        return False

    def make_folders(self, paths: Sequence[str]) -> None:
        """Make folders, where the store has such."""
        for path in paths:
            with driver_failures(self.url + path):
                self._driver.makedirs(self._tree.place(path), exist_ok=True)

    def discard_unfinished(self, paths: Collection[str]) -> int:  # noqa: ARG002 - nothing to do
        """Do nothing: what drivers send in parts they abort by themselves."""
        return 0

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files. Folders stay: the driver of hdfs would delete full ones as well."""
        for path in paths:
            if path.endswith("/"):
                continue
            with suppress(StoreNotFound), driver_failures(self.url + path):
                self._driver.rm_file(self._tree.place(path))

    def prove_writing(self) -> None:
        """Write a small file, read and list it, and delete it."""
        prove_writing(self)

    def _entry_of(self, found: tuple[str, dict[str, Any]], stop: Stop) -> Entry:
        """Return the entry of a file, asking for what the listing did not tell."""
        stop.check()
        path, info = found
        if info.get("size") is None or not version_in(info):
            info = self._tree.info(path)
        return self._tree.entry(path, info)

    def _fetch(self, entry: Entry, copy: BinaryIO | None, meter: Meter, stop: Stop) -> FileRecord:
        """Read one file, again if it breaks off on the way."""
        for attempt in range(1, _TRIES + 1):
            try:
                return self._receive(entry, copy, meter, stop)
            except StoreNotFound as error:
                url = self.url + entry.path
                found = "the file was deleted while the tree was copied"
                raise failure(TreeChanged, url, found, _RUN_AGAIN) from error
            except (StoreUnavailable, CorruptData):
                if attempt == _TRIES:
                    raise
                # Jitter: many that failed together should not come back together.
                stop.pause(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1))  # noqa: S311
                if copy is not None:
                    copy.seek(0)
                    copy.truncate()
        raise AssertionError("the last attempt returns or raises")

    def _receive(self, entry: Entry, copy: BinaryIO | None, meter: Meter, stop: Stop) -> FileRecord:
        received = 0
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        try:
            for chunk in self._chunks(entry, stop):
                received += len(chunk)
                meter.add_bytes(len(chunk))
                sha256.update(chunk)
                md5.update(chunk)
                if copy is not None:
                    copy.write(chunk)
            proof = self._check(entry, received, md5.hexdigest())
        except BaseException:
            meter.add_bytes(-received)
            raise
        return FileRecord(entry.path, received, sha256.hexdigest(), verified=proof)

    def _chunks(self, entry: Entry, stop: Stop) -> Iterator[bytes]:
        url = self.url + entry.path
        with driver_failures(url):
            opened = self._driver.open(self._tree.place(entry.path), "rb")
        try:
            while True:
                stop.check()
                with driver_failures(url):
                    chunk = bytes(opened.read(_CHUNK_BYTES))
                if not chunk:
                    return
                yield chunk
        finally:
            with driver_failures(url):
                opened.close()

    def _check(self, entry: Entry, received: int, md5: str) -> Proof:
        """See that what was received is the version that was listed, and all of it."""
        url = self.url + entry.path
        info = self._tree.info(entry.path)
        if info["size"] != entry.size_bytes or version_in(info, entry.version) != entry.version:
            raise failure(TreeChanged, url, "the file changed while it was copied", _RUN_AGAIN)
        if received != entry.size_bytes:
            found = f"{received} of {entry.size_bytes} bytes arrived"
            raise failure(StoreUnavailable, url, found, "try again")
        told = md5_in(info)
        if told and told != md5:
            found = "the bytes that arrived do not have the MD5 that the store tells"
            raise failure(CorruptData, url, found, "try again, or put the file there again")
        return "etag" if told else ""

    @contextmanager
    def _new_file(self, path: str) -> Iterator[BinaryIO]:
        """Give an open file that takes the name `path` when the block ends well.

        The last step is a rename, or a copy within the store where the driver has no rename.
        """
        partial, place = self._tree.place(f"{PARTIAL}{uuid.uuid4().hex}"), self._tree.place(path)
        url = self.url + path
        try:
            with driver_failures(url):
                opened = self._open_new(partial)
            try:
                yield cast("BinaryIO", _Written(opened, url))
            finally:
                with driver_failures(url):
                    opened.close()
            with driver_failures(url):
                self._rename(partial, place)
        except BaseException:
            with suppress(StoreError), driver_failures(url):
                self._driver.rm_file(partial)
            raise

    def _open_new(self, place: str) -> Any:
        try:
            return self._driver.open(place, "wb")
        except FileNotFoundError:  # a file system, in which folders have to be there first
            self._driver.makedirs(place.rpartition("/")[0], exist_ok=True)
            return self._driver.open(place, "wb")

    def _rename(self, old: str, new: str) -> None:
        # Those would take names for patterns.
        if (
            isinstance(self._driver, AsyncFileSystem)
            or type(self._driver).mv is AbstractFileSystem.mv
        ):
            self._driver.cp_file(old, new)
            self._driver.rm_file(old)
            return
        self._driver.makedirs(new.rpartition("/")[0], exist_ok=True)
        self._driver.mv(old, new)


class _Written:
    """The part of an open file that copies need, with the errors of trainjob."""

    def __init__(self, opened: Any, url: str) -> None:
        self._opened = opened
        self._url = url

    def write(self, data: bytes) -> None:
        """Write all of `data`."""
        with driver_failures(self._url):
            self._opened.write(data)
