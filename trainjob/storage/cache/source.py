"""What a channel asks for: a folder or one file somewhere, as it is listed now."""

import hashlib
import json
from dataclasses import dataclass, replace
from json.encoder import encode_basestring_ascii as _quoted
from operator import attrgetter
from pathlib import Path

from trainjob.errors import StoreNotFound
from trainjob.storage.failures import failure
from trainjob.storage.listing import Entry, Listing
from trainjob.storage.local import LocalStore
from trainjob.storage.own_files import OWN_FOLDER, RECEIPT, SUCCESS
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, engine_of, open_store
from trainjob.storage.unpack import is_dataset_archive

_FORM, _FORM_WITH_RECEIPT = 1, 2
"""Snapshots of form 1 have a fingerprint in which a receipt counts."""

_DIGEST_CHARS = 32


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
        folder: The folder that has the files, if it is on this machine.
        is_one_file: Whether the url names one file, and not the folder that has it.
        engine: What brings the files.
    """

    url: str
    folder_url: str
    listing: Listing
    endpoint: str
    unpacks: Unpacking | None
    folder: Path | None
    is_one_file: bool
    engine: str

    @property
    def id(self) -> str:
        """Text that is the same for every version of the dataset, fit for a file name."""
        return _digest(self._identity)

    @property
    def place(self) -> Path | None:
        """The folder, or the one file, that is used where it lies: here, and not to be unpacked."""
        if self.folder is None or self.unpacks is not None:
            return None
        return self.folder / self.listing.files[0].path if self.is_one_file else self.folder

    @property
    def key(self) -> str:
        """Text that is the same for this version only."""
        has_receipt = any(file.path == RECEIPT for file in self.listing.files)
        form = _FORM_WITH_RECEIPT if has_receipt else _FORM
        digest = hashlib.sha256(f"[{form}, {json.dumps(self._identity)}, [".encode())
        # File by file: the text of all is as large as the listing. Made here, since `json.dumps`
        # takes four times as long.
        before = ""
        for file in sorted(self.listing.files, key=attrgetter("path")):
            row = f"[{_quoted(file.path)}, {file.size_bytes}, {_quoted(file.version)}]"
            digest.update(f"{before}{row}".encode())
            before = ", "
        digest.update(f"], {json.dumps(sorted(self.listing.folders))}]".encode())
        return digest.hexdigest()[:_DIGEST_CHARS]

    @property
    def _identity(self) -> list[str | None]:
        # Not the url of the job, which may or may not end with a slash.
        url = self.folder_url + (self.listing.files[0].path if self.is_one_file else "")
        return [url, self.endpoint, self.unpacks.names if self.unpacks else None]

    @property
    def has_versions(self) -> bool:
        """Whether the store tells every version of a file from the next."""
        return all(entry.version for entry in self.listing.files)


def find_source(url: str, settings: StoreSettings | None, unpacking: Unpacking) -> Source:
    """List what is at `url`.

    Args:
        url: A folder, or one file; see `trainjob.storage.store.open_store`.
        settings: How to reach an object store; absent: the AWS_* environment.
        unpacking: How archives are treated.

    Raises:
        StoreNotFound: If there is no file.
        StoreError: If the store does not tell.
    """
    with open_store(url, settings) as store:
        listing = store.list_files()
        if listing.files:
            return _source(url, store, listing, settings, unpacking)
        if not store.is_file():
            do = "check the url, or put the files there first"
            raise failure(StoreNotFound, store.url, "no such folder, or no file in it", do)
        name = store.url.rstrip("/").rpartition("/")[2]
    with open_store(url.rstrip("/").removesuffix(name), settings) as store:
        entry = store.find(name)  # of a folder whose other files may be millions
        if entry is None:
            do = "run again when nothing writes to it"
            raise failure(StoreNotFound, f"{store.url}{name}", "it is there no more", do)
        source = _source(url, store, Listing((entry,)), settings, unpacking)
        return replace(source, is_one_file=True)


def _source(
    url: str,
    store: Store,
    listing: Listing,
    settings: StoreSettings | None,
    unpacking: Unpacking,
) -> Source:
    archive = _archive_in(listing) if unpacking.is_wanted else None
    if archive is not None:
        listing = Listing((archive,))
    return Source(
        url=url,
        folder_url=store.url,
        listing=listing,
        endpoint=(settings and settings.endpoint_url) or "",
        unpacks=None if archive is None else unpacking,
        folder=Path(store.url) if isinstance(store, LocalStore) else None,
        is_one_file=False,
        engine=engine_of(store),
    )


def _archive_in(listing: Listing) -> Entry | None:
    """Return the archive that is all there is, beside what an upload of ours writes itself."""
    others = (e for e in listing.files if e.path != SUCCESS and not e.path.startswith(OWN_FOLDER))
    first = next(others, None)
    if first is None or next(others, None) is not None or not is_dataset_archive(first.path):
        return None
    is_alone = len(listing.files) == 1 or any(e.path == RECEIPT for e in listing.files)
    return first if is_alone else None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:_DIGEST_CHARS]
