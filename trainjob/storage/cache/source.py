"""What a channel asks for: a folder or an archive somewhere, as it is listed now."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from trainjob.errors import StoreNotFound
from trainjob.storage.cache.snapshot import Proof
from trainjob.storage.failures import failure
from trainjob.storage.listing import Listing
from trainjob.storage.local import LocalStore
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, open_store
from trainjob.storage.unpack import is_dataset_archive

_FORM = 1
_MD5 = re.compile(r'"?[0-9a-fA-F]{32}"?')


@dataclass(frozen=True, slots=True)
class Unpacking:
    """How a channel that is one archive is treated.

    Attributes:
        is_wanted: Whether it is unpacked.
        names: The encoding of its names.
        any_ratio: Whether it may become very large; see `trainjob.storage.unpack`.
    """

    is_wanted: bool = True
    names: str = "utf-8"
    any_ratio: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset as it is listed now.

    Attributes:
        url: What the job asks for.
        folder_url: The folder whose store has the files.
        listing: The files, or the one archive.
        endpoint: Where the store is.
        unpacks: How the archive is unpacked; None if it is none, or stays as it is.
        place: The folder, if it is on this machine and needs no unpacking.
        engine: What brings the files.
    """

    url: str
    folder_url: str
    listing: Listing
    endpoint: str
    unpacks: Unpacking | None
    place: Path | None
    engine: str

    @property
    def id(self) -> str:
        """Text that is the same for every version of the dataset, fit for a file name."""
        return _digest(self._identity)

    @property
    def key(self) -> str:
        """Text that is the same for this version only."""
        files = sorted((e.path, e.size_bytes, e.version) for e in self.listing.files)
        return _digest([_FORM, self._identity, files, sorted(self.listing.folders)])

    @property
    def _identity(self) -> list[str | None]:
        return [self.url, self.endpoint, self.unpacks.names if self.unpacks else None]

    @property
    def has_versions(self) -> bool:
        """Whether the store tells every version of a file from the next."""
        return all(entry.version for entry in self.listing.files)

    @property
    def proof(self) -> Proof:
        """What a store engine compares the bytes with."""
        is_s3 = self.url.startswith("s3://")
        has_md5 = all(_is_md5(entry.version) for entry in self.listing.files)
        return "etag" if is_s3 and has_md5 else "size"


def find_source(url: str, settings: StoreSettings | None, unpacking: Unpacking) -> Source:
    """List what is at `url`.

    Args:
        url: A folder, or one archive; see `trainjob.storage.store.open_store`.
        settings: How to reach an object store; absent: the AWS_* environment.
        unpacking: How archives are treated.

    Raises:
        StoreNotFound: If there is no file, or the url is a single file that is no archive.
        StoreError: If the store does not tell.
    """
    with open_store(url, settings) as store:
        listing = store.list_files()
        if listing.files:
            return _source(url, store, store.url, listing, settings, unpacking)
        if not store.is_file():
            do = "check the url, or put the files there first"
            raise failure(StoreNotFound, store.url, "no such folder, or no file in it", do)
        name = store.url.rstrip("/").rpartition("/")[2]
        if not (unpacking.is_wanted and is_dataset_archive(name)):
            do = "give the folder that holds it"
            raise failure(StoreNotFound, store.url, "a single file, not a folder", do)
    folder_url = url.rstrip("/").removesuffix(name)
    with open_store(folder_url, settings) as store:
        entry = store.find(name)  # of a folder whose other files may be millions
        if entry is None:
            do = "run again when nothing writes to it"
            raise failure(StoreNotFound, f"{store.url}{name}", "it is there no more", do)
        return _source(url, store, folder_url, Listing((entry,)), settings, unpacking)


def _source(
    url: str,
    store: Store,
    folder_url: str,
    listing: Listing,
    settings: StoreSettings | None,
    unpacking: Unpacking,
) -> Source:
    is_archive = len(listing.files) == 1 and is_dataset_archive(listing.files[0].path)
    unpacks = unpacking if is_archive and unpacking.is_wanted else None
    is_local = isinstance(store, LocalStore)
    return Source(
        url=url,
        folder_url=folder_url,
        listing=listing,
        endpoint=(settings and settings.endpoint_url) or "",
        unpacks=unpacks,
        place=Path(store.url) if is_local and unpacks is None else None,
        engine=_engine_of(store),
    )


def _engine_of(store: Store) -> str:
    """Return what a report calls the engine: curl, s3fs, fsspec or local."""
    name = type(store).__name__.removesuffix("Store").lower()
    return "s3fs" if name == "s3" else name


def _is_md5(version: str) -> bool:
    return _MD5.fullmatch(version) is not None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
