"""Brings a tree of files from a store to this machine, complete and verified or not at all.

`stage_tree` copies to a folder of the run, which is what code is. `stage_channel` does what input
channels ask for: it goes through the cache of the machine (`trainjob.storage.cache`), so that many
jobs share one verified copy and a second one moves nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainjob.errors import StoreError, StoreNotFound
from trainjob.storage.cache.build import provide
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import release
from trainjob.storage.cache.snapshot import Proof, Snapshot
from trainjob.storage.cache.source import Unpacking, find_source
from trainjob.storage.failures import failure
from trainjob.storage.listing import Listing
from trainjob.storage.local import LocalStore
from trainjob.storage.manifest import FileRecord, fingerprint, has_fingerprint
from trainjob.storage.meter import Meter
from trainjob.storage.paths import check_case, check_paths, folds_case
from trainjob.storage.replace import check_space, replace_by_link, replacing
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, open_store


@dataclass(frozen=True, slots=True)
class StagedTree:
    """A tree as it arrived; `fingerprint` is that of its files."""

    url: str
    files: tuple[FileRecord, ...]
    fingerprint: str

    @property
    def num_files(self) -> int:
        """The number of files."""
        return len(self.files)

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class StagedChannel:
    """A dataset as a job got it.

    Attributes:
        url: Where it came from.
        num_files: Its files, those of the archive if it was one.
        size_bytes: Their size.
        fingerprint: Over paths, sizes and digests of the files.
        engine: What brought it.
        verified: What its bytes were compared with.
        moved_bytes: What came from the store for this job.
        cached_bytes: What was there from earlier jobs or tries.
        is_in_place: Whether it is a folder of this machine that is used where it lies.
    """

    url: str
    num_files: int
    size_bytes: int
    fingerprint: str
    engine: str
    verified: Proof
    moved_bytes: int
    cached_bytes: int
    is_in_place: bool


def stage_tree(url: str, target: Path, settings: StoreSettings | None, label: str) -> StagedTree:
    """Copy the folder at `url` to `target`; what was at `target` is replaced.

    Args:
        url: A folder; see `trainjob.storage.store.open_store`.
        target: A folder that belongs to the run. It need not exist.
        settings: How to reach an object store; absent: the AWS_* environment.
        label: What watchers call this copy.

    Raises:
        StoreNotFound: If there is no file below the url, or the url is a single file.
        UnsafeKey: If a key cannot be a file below the target; nothing was copied.
        TreeChanged: If the source changed meanwhile; retryable.
        CorruptData: If bytes arrived wrong again and again; retryable.
        StoreError: For everything else that a store can do wrong.
    """
    with open_store(url, settings) as store:
        files = _copied(store, list_tree(store), target, label)
        return StagedTree(store.url, tuple(files), fingerprint(files))


def stage_channel(
    url: str,
    target: Path,
    settings: StoreSettings | None,
    *,
    label: str,
    holder: str,
    mode: Literal["link", "copy"] = "link",
    unpacking: Unpacking | None = None,
    expect: str | None = None,
) -> StagedChannel:
    """Let `target` be the dataset at `url`, read-only and shared, or a copy that may be written.

    Args:
        url: A folder or one file, which is an archive or comes as a folder with this file; see
            `trainjob.storage.store.open_store`.
        target: The folder of the channel; what was there is replaced. With ``link`` it becomes a
            link into the cache, or to the dataset itself if that is a folder of this machine.
        settings: How to reach an object store; absent: the AWS_* environment.
        label: What watchers call this copy.
        holder: For whom the data is kept in the cache, until `trainjob.storage.cache.hold`
            releases it or this process ends; with ``copy``, until it is copied.
        mode: Whether the job shares the data or has its own.
        unpacking: How a channel that is one archive is treated.
        expect: The only fingerprint that is accepted.

    Raises:
        StoreNotFound: If there is no file at the url.
        UnsafeKey: If a key cannot be a file; nothing was copied.
        TreeChanged: If the source changed meanwhile; retryable.
        CorruptData: If the bytes are not what was promised; retryable.
        StoreError: If the fingerprint is another one, the disk is full, and for everything else
            that a store can do wrong.
    """
    cache = Cache.of_machine()
    source = find_source(url, settings, unpacking or Unpacking())
    provided = provide(cache, source, settings, label=label, holder=holder)
    snapshot = provided.snapshot
    _refuse_another(snapshot, expect)
    if mode == "copy":
        _copy(snapshot, target, label)
        release(cache, holder)  # what is to be told of it is not about the copy, which was compared
    else:
        replace_by_link(target, snapshot.data)
    header = snapshot.header
    is_in_place = header.place is not None
    return StagedChannel(
        url=url,
        num_files=header.num_files,
        size_bytes=header.size_bytes,
        fingerprint=header.fingerprint,
        engine=header.engine,
        verified=header.verified,
        moved_bytes=provided.moved_bytes,
        cached_bytes=0 if is_in_place else source.listing.size_bytes - provided.moved_bytes,
        is_in_place=is_in_place,
    )


def list_tree(store: Store) -> Listing:
    """Return what a folder that must hold files holds, with every path safe to create.

    Raises:
        StoreNotFound: If there is no file, or the url is a single file.
        UnsafeKey: If a key cannot be a file below a folder.
    """
    listing = store.list_files()
    if not listing.files:
        if store.is_file():
            do = "give the folder that holds it"
            raise failure(StoreNotFound, store.url, "a single file, not a folder", do)
        do = "check the url, or put the files there first"
        raise failure(StoreNotFound, store.url, "no such folder, or no file in it", do)
    check_paths(store.url, [entry.path for entry in listing.files], listing.folders)
    return listing


def _copied(store: Store, listing: Listing, target: Path, label: str) -> list[FileRecord]:
    """Copy a tree to the folder `target` and return its files."""
    with replacing(target) as partial:
        check_space(target.parent, listing.size_bytes)
        if folds_case(partial):
            check_case(store.url, [file.path for file in listing.files])
        for folder in listing.folders:
            (partial / folder).mkdir(parents=True, exist_ok=True)
        return store.download(listing.files, partial, Meter(label, listing.files))


def _refuse_another(snapshot: Snapshot, expect: str | None) -> None:
    found = snapshot.header.fingerprint
    if expect is None or found == expect:
        return
    if not has_fingerprint([line.record() for line in snapshot.files()], expect):
        what = f"a dataset with the fingerprint {found}, not the expected {expect}"
        do = "put the expected version there, or write the new fingerprint into the job"
        raise failure(StoreError, snapshot.header.url, what, do)


def _copy(snapshot: Snapshot, target: Path, label: str) -> None:
    """Make a copy of the files that may be written, and see that it is one."""
    with LocalStore(snapshot.data) as store:
        files = _copied(store, list_tree(store), target, label)
    if not has_fingerprint(files, snapshot.header.fingerprint):
        snapshot_url = str(snapshot.data)
        found, do = "it is not what was staged", "run again; see also python -m flows cache verify"
        raise failure(StoreError, snapshot_url, found, do)
