"""Brings a tree of files from a store to this machine, complete and verified or not at all.

Called for input channels and for code in a store. The tree is first built in a folder beside the
target and then takes its place, so that doing it again gives the same tree: nothing is nested,
nothing of an earlier tree stays.
"""

from dataclasses import dataclass
from pathlib import Path

from trainjob.errors import StoreNotFound
from trainjob.storage.failures import failure
from trainjob.storage.listing import Listing
from trainjob.storage.manifest import FileRecord, fingerprint
from trainjob.storage.meter import Meter
from trainjob.storage.paths import check_paths
from trainjob.storage.replace import check_space, replacing
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
        listing = list_tree(store)
        with replacing(target) as partial:
            check_space(target.parent, listing.size_bytes)
            for folder in listing.folders:
                (partial / folder).mkdir(parents=True, exist_ok=True)
            files = store.download(listing.files, partial, Meter(label, listing.files))
        return StagedTree(store.url, tuple(files), fingerprint(files))


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
