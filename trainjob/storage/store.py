"""The one way to reach a tree of files: a folder of this machine or a prefix of an object store.

A store moves and reads files and nothing more; what a complete tree is, and whose, is decided by
`stage`, `upload` and `receipt`, which know no other store than this protocol.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Protocol, Self

from trainjob.errors import StoreDenied, StoreError
from trainjob.storage.arrived_parts import ArrivedParts
from trainjob.storage.failures import failure
from trainjob.storage.listing import Entry, Listing
from trainjob.storage.local import LocalStore
from trainjob.storage.manifest import FileRecord, OnFile
from trainjob.storage.meter import Meter
from trainjob.storage.settings import StoreSettings

ENGINE = "TRAINJOB_STORAGE_ENGINE"
"""Variable of the environment: ``fsspec`` has S3 stores reached over s3fs instead of libcurl."""


class Store(Protocol):
    """A folder at `url`, which ends in ``/``. Every method raises errors of `trainjob.errors` only.

    A context manager: leaving it closes connections. Paths are relative to the url.
    """

    url: str

    creates_in_one_step: bool
    """Whether `create` is one request. If not, two that ask at the same moment may both be told
    yes, though the second of two that ask one after the other is told no."""

    @property
    def part_bytes(self) -> int:
        """The size of parts of large files, of which `download` leaves out those that are there.

        0: it copies every file as a whole.
        """

    def __enter__(self) -> Self:
        """Return the store itself."""

    def __exit__(self, *exc_info: object) -> None:
        """Close the store."""

    def list_files(self) -> Listing:
        """Return everything below the url; nothing if the folder does not exist."""

    def find(self, path: str) -> Entry | None:
        """Return one file as a listing has it, without the others; None if there is none."""

    def has_files(self) -> bool:
        """Say whether there is any file below the url, without a whole listing."""

    def is_file(self) -> bool:
        """Say whether the url is a single file and not a folder."""

    def download(
        self,
        files: Sequence[Entry],
        target: Path,
        meter: Meter,
        done: OnFile | None = None,
        parts: ArrivedParts | None = None,
    ) -> list[FileRecord]:
        """Copy exactly these versions of `files` to their paths below the folder `target`.

        Args:
            files: What to copy, as it was listed.
            target: The folder. What is at the paths is replaced, but for `parts`.
            meter: Counts what is copied.
            done: Called with each file as soon as it is there, complete and verified; on any one
                thread.
            parts: The parts of large files that are at their paths already; takes down those that
                arrive. For stores with `part_bytes` alone.

        Returns:
            What arrived, in the order of `files`; verified by ``etag`` is what was compared with a
            digest of the store, which an ETag may look like and not be.

        Raises:
            TreeChanged: If a file is no longer the one that was listed.
            CorruptData: If what arrived is not what the store says that it holds.
        """

    def digest(self, files: Sequence[Entry], meter: Meter) -> list[FileRecord]:
        """Read these versions of `files` and return what they really hold, keeping nothing.

        Raises:
            TreeChanged: If a file is no longer the one that was listed.
        """

    def upload(
        self,
        source: Path,
        files: Sequence[Entry],
        meter: Meter,
        changed: list[str] | None = None,
    ) -> list[FileRecord]:
        """Copy `files` from the folder `source`; each appears complete or not at all.

        Args:
            source: The folder.
            files: What to copy, as it was listed.
            meter: Counts what is copied.
            changed: Files that are no longer the ones that were listed are added here and are not
                among the records; what the store holds of them means nothing.

        Raises:
            TreeChanged: If there is such a file, and `changed` is None.
        """

    def upload_chunks(self, path: str, chunks: Iterable[bytes]) -> FileRecord:
        """Write one file from pieces of any size, of which only the last ones are in memory."""

    def read(self, path: str) -> bytes:
        """Return the content of a small file.

        Raises:
            StoreNotFound: If it is not there.
        """

    def write(self, path: str, data: bytes) -> None:
        """Write a small file, complete or not at all."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a small file if there is none of that name; say whether it was done.

        A store that knows no such condition writes it each time. So who asks twice for the same
        file, and is told yes twice, knows that it proves nothing here.
        """

    def make_folders(self, paths: Sequence[str]) -> None:
        """Make folders that hold nothing, so that a listing names them."""

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files, and folders that become empty; one that is not there is no error.

        Args:
            paths: Files; one that ends in ``/`` is a folder, which is deleted if it holds nothing.
        """

    def discard_unfinished(self, paths: Collection[str]) -> int:
        """Throw away uploads of these files that nobody completed, and return how many.

        Their parts are stored, and paid for, though no listing names them. Only for who claims the
        files, and only while nothing is sent: what others are sending to the same folder stays.
        """

    def prove_writing(self) -> None:
        """Write and delete something of a unique name, leaving nothing behind.

        Raises:
            StoreError: If files could not be written to this place or not be deleted again.
        """


def open_store(url: str, settings: StoreSettings | None = None) -> Store:
    """Return the store for the folder at `url`; nothing is reached yet. Use it in a ``with``.

    Args:
        url: ``s3://bucket/prefix/``, ``file:///path``, an absolute path, or a url of another scheme
            that fsspec knows, such as ``gs://``. A prefix is a folder: ``s3://bucket/data`` is
            never ``s3://bucket/database``. Nothing in it is decoded.
        settings: How to reach an S3 store; absent: the AWS_* environment.

    Raises:
        StoreError: If the url is none of these.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _local(url, url)
    if scheme == "file":
        return _local(url, rest)
    if scheme == "s3":
        if not rest.partition("/")[0]:
            raise _unknown(url)
        return _s3(url, settings or StoreSettings.from_env())
    # Inside, since most runs need none of the drivers, which take long to load.
    from trainjob.storage.fsspec_driver import is_known
    from trainjob.storage.fsspec_store import FsspecStore

    if not is_known(scheme):
        raise _unknown(url)
    return FsspecStore(url)


def is_known_file(store: Store) -> bool:
    """Say whether the url of a store is a single file, as far as this may be asked.

    Rights that begin at a prefix do not hold for the object with its name and no ``/``.
    """
    with suppress(StoreDenied):
        return store.is_file()
    return False


def engine_of(store: Store) -> str:
    """Return what a report calls the engine of a store: curl, s3fs, fsspec or local."""
    name = type(store).__name__.removesuffix("Store").lower()
    return "s3fs" if name == "s3" else name


def _local(url: str, path: str) -> LocalStore:
    if not Path(path).is_absolute():
        raise _unknown(url)
    return LocalStore(Path(path))


def _s3(url: str, settings: StoreSettings) -> Store:
    """Return the store over libcurl, or over s3fs where pycurl is missing or not wanted."""
    engine = os.environ.get(ENGINE, "")
    if engine not in ("", "curl", "fsspec"):
        found = f"{ENGINE}={engine!r}, which is no engine"
        raise failure(StoreError, url, found, "set it to fsspec or curl, or take it away")
    if engine != "fsspec" and _has_curl():
        # Inside, since pycurl may be missing.
        from trainjob.storage.curl.store import CurlStore

        return CurlStore(url, settings)
    # Inside, since s3fs takes a second and 60 MB to load and is needed for this only.
    from trainjob.storage.s3 import S3Store

    return S3Store(url, settings)


def _has_curl() -> bool:
    try:
        import_module("pycurl")
    except ImportError:  # or it is there, and a library that it needs is not
        return False
    return True


def _unknown(url: str) -> StoreError:
    do = "give s3://bucket/prefix/, file:///path or an absolute path, or a url that fsspec knows"
    return failure(StoreError, url, "not a place that is known", do)
