"""Sends those files of a folder that the store does not have yet, some at a time.

After every group the journal is saved, so that a process that is killed leaves its work to the
next one.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from trainjob.errors import StoreError
from trainjob.storage.failures import local_failures
from trainjob.storage.journal import Journal
from trainjob.storage.listing import Entry
from trainjob.storage.local_tree import copy_file
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter, SharedMeter
from trainjob.storage.store import Store
from trainjob.storage.workers import Stop, each

_LOGGER = logging.getLogger(__name__)

_GROUP_FILES = 4096
_GROUP_BYTES = 256 << 20
_NUM_READERS = 4


def unsent(files: Sequence[Entry], journal: Journal, present: Mapping[str, int]) -> list[Entry]:
    """Return the files that were not sent in this version, or are no longer where they were.

    Args:
        files: Files of the local folder.
        journal: What was sent of them.
        present: The files of the store, with their sizes.
    """
    return [
        entry
        for entry in files
        if journal.record(entry) is None or present.get(entry.path) != entry.size_bytes
    ]


def forget_other_content(
    source: Path, files: Sequence[Entry], journal: Journal, label: str
) -> None:
    """Read files that were sent while somebody wrote to the folder; forget those that differ now.

    A script that writes through a memory map changes a file without changing its time: the first
    store to a page does so, and no other one until the page was written back, which takes some 30 s
    on a disk; a file system in memory has no such moment (mmap(2), on ``st_mtime``).

    Args:
        source: The folder, to which nobody writes any longer.
        files: Files of it that were sent in this version, as far as the journal knows.
        journal: What was sent.
        label: What watchers call the reading.

    Raises:
        TreeChanged: If a file is no longer the one that was listed.
    """
    meter = SharedMeter(Meter(label, files))

    def read(entry: Entry, stop: Stop) -> FileRecord:
        file = source / entry.path
        with local_failures(str(file)):
            record = copy_file(file, entry, None, _Stopping(meter, stop))
        meter.tell(record)
        return record

    for begin in range(0, len(files), _GROUP_FILES):
        group = files[begin : begin + _GROUP_FILES]
        found = each(group, read, _NUM_READERS, str(source))
        pairs = zip(group, found, strict=True)
        journal.forget(entry.path for entry, file in pairs if file != journal.record(entry))


def send(
    store: Store,
    source: Path,
    files: Sequence[Entry],
    journal: Journal,
    meter: Meter,
    changed: list[str] | None = None,
) -> None:
    """Copy `files` to the store and note them in the journal; see `Store.upload`."""
    for group in _groups(files):
        journal.forget(entry.path for entry in group)  # what is half sent was not sent
        by_path = {entry.path: entry for entry in group}
        for record in store.upload(source, group, meter, changed):
            journal.remember(by_path[record.path], record)
        journal.save()


def discard_unfinished(store: Store, paths: Collection[str]) -> None:
    """Throw away what a killed process left half sent of the files that this run has claimed.

    The result does not depend on it.
    """
    try:
        if num_discarded := store.discard_unfinished(paths):
            _LOGGER.info("%s: discarded %d unfinished uploads", store.url, num_discarded)
    except StoreError as error:
        _LOGGER.info("%s: unfinished uploads, if any, are left there: %s", store.url, error)


class _Stopping(Meter):
    """Counts bytes of a file until the work on it is to end."""

    def __init__(self, meter: Meter, stop: Stop) -> None:
        super().__init__(None, ())
        self._meter = meter
        self._stop = stop

    def add_bytes(self, count: int) -> None:
        """Count bytes; see `Meter`."""
        self._stop.check()
        self._meter.add_bytes(count)


def _groups(files: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Yield the files in their order, some thousands or some hundred megabytes at a time."""
    group: list[Entry] = []
    size_bytes = 0
    for entry in files:
        group.append(entry)
        size_bytes += entry.size_bytes
        if len(group) == _GROUP_FILES or size_bytes >= _GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group
