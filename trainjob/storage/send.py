"""Sends those files of a folder that the store does not have yet, some at a time.

After every group the journal is saved, so that a process that is killed leaves its work to the
next one.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trainjob.errors import StoreError
from trainjob.storage.journal import Journal
from trainjob.storage.listing import Entry
from trainjob.storage.meter import Meter
from trainjob.storage.store import Store

_LOGGER = logging.getLogger(__name__)

_GROUP_FILES = 4096
_GROUP_BYTES = 256 << 20


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


def discard_unfinished(store: Store) -> None:
    """Throw away what a killed process left half sent; the result does not depend on it."""
    try:
        if num_discarded := store.discard_unfinished():
            _LOGGER.info("%s: discarded %d unfinished uploads", store.url, num_discarded)
    except StoreError as error:
        _LOGGER.info("%s: unfinished uploads, if any, are left there: %s", store.url, error)


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
