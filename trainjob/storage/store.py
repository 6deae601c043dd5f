"""The one way to reach a tree of files: a folder of this machine or a prefix of an object store.

A store moves and reads files and nothing more; what a complete tree is, and whose, is decided by
`stage`, `upload` and `receipt`, which know no other store than this protocol.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, Self

from trainjob.errors import StoreError
from trainjob.storage.failures import failure
from trainjob.storage.listing import Entry, Listing
from trainjob.storage.local import LocalStore
from trainjob.storage.manifest import FileRecord, OnFile
from trainjob.storage.meter import Meter
from trainjob.storage.s3 import S3Store
from trainjob.storage.settings import StoreSettings


class Store(Protocol):
    """A folder at `url`, which ends in ``/``. Every method raises errors of `trainjob.errors` only.

    A context manager: leaving it closes connections. Paths are relative to the url.
    """

    url: str

    def __enter__(self) -> Self:
        """Return the store itself."""

    def __exit__(self, *exc_info: object) -> None:
        """Close the store."""

    def list_files(self) -> Listing:
        """Return everything below the url; nothing if the folder does not exist."""

    def has_files(self) -> bool:
        """Say whether there is any file below the url, without a whole listing."""

    def is_file(self) -> bool:
        """Say whether the url is a single file and not a folder."""

    def download(
        self, files: Sequence[Entry], target: Path, meter: Meter, done: OnFile | None = None
    ) -> list[FileRecord]:
        """Copy exactly these versions of `files` to their paths below the folder `target`.

        Args:
            files: What to copy, as it was listed.
            target: The folder. What is at the paths is replaced.
            meter: Counts what is copied.
            done: Called with each file as soon as it is there, complete and verified; on any one
                thread.

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

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files, and folders that become empty; one that is not there is no error."""

    def prove_writing(self) -> None:
        """Write and delete something of a unique name, leaving nothing behind.

        Raises:
            StoreError: If files could not be written to this place or not be deleted again.
        """


def open_store(url: str, settings: StoreSettings | None = None) -> Store:
    """Return the store for the folder at `url`; nothing is reached yet. Use it in a ``with``.

    Args:
        url: ``s3://bucket/prefix/``, ``file:///path`` or an absolute path. A prefix is a folder:
            ``s3://bucket/data`` is never ``s3://bucket/database``. Nothing in it is decoded.
        settings: How to reach an object store; absent: the AWS_* environment.

    Raises:
        StoreError: If the url is none of these.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "s3" and rest.partition("/")[0]:
        return S3Store(url, settings or StoreSettings.from_env())
    path = Path(rest if scheme == "file" and separator else url)
    if not path.is_absolute():
        raise failure(
            StoreError,
            url,
            "not a place that is known",
            "give s3://bucket/prefix/, file:///path or an absolute path",
        )
    return LocalStore(path)
