"""Reads what the cache holds, compares every byte with its manifest, and keeps no wrong ones."""

from trainjob.errors import StoreDenied, StoreError
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.snapshot import Snapshot, sizes_and_times
from trainjob.storage.failures import local_failures
from trainjob.storage.listing import Entry
from trainjob.storage.local import LocalStore
from trainjob.storage.local_tree import entry_of
from trainjob.storage.meter import Meter


def wrong_files(snapshot: Snapshot) -> list[str]:
    """Return what of a snapshot is not as its manifest says, one line a file.

    Of a folder that is used where it lies there is nothing to verify: it may change. What another
    process removes meanwhile looks wrong, too; see `Snapshot.is_there`.

    Raises:
        StoreDenied: If this user may not read it.
    """
    if snapshot.header.place:
        return []
    try:
        return _differing(snapshot)
    except StoreDenied:
        raise
    except StoreError as error:  # what a broken disk does not give back is lost, too
        return [str(error)]


def take_back(cache: Cache, snapshot: Snapshot) -> bool:
    """Let no further job have a snapshot that is wrong; return whether its files are gone, too.

    They stay as long as a job uses them; meanwhile every other job has its own.

    Raises:
        StoreError: If this user may not remove it.
    """
    with local_failures(str(snapshot.root)):
        return cache.take_back(snapshot)


def _differing(snapshot: Snapshot) -> list[str]:
    known = {line.path: line for line in snapshot.files()}
    with local_failures(str(snapshot.root)):
        found = {path for path, _ in sizes_and_times(snapshot.data)}
        there = [_entry(snapshot, path) for path in sorted(known.keys() & found)]
    with LocalStore(snapshot.data) as store:
        records = store.digest(there, Meter(snapshot.key[:12], there))
    problems = [f"{path}: missing" for path in sorted(known.keys() - found)]
    problems += [f"{path}: added" for path in sorted(found - known.keys())]
    for record in records:
        line = known[record.path]
        if (record.size_bytes, record.sha256) != (line.size_bytes, line.sha256):
            problems.append(f"{record.path}: other bytes")
    return problems


def _entry(snapshot: Snapshot, path: str) -> Entry:
    return entry_of(path, (snapshot.data / path).stat())
