"""The proof that a store holds what was sent: every byte is read again."""

from collections.abc import Sequence

from trainjob.errors import CorruptData
from trainjob.storage.failures import failure
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.store import Store


def read_back(store: Store, sent: Sequence[FileRecord], label: str | None) -> None:
    """Compare what the store holds now with what was sent.

    Args:
        store: Where it was sent.
        sent: What was sent.
        label: What watchers call the reading; None: nobody is told of it.

    Raises:
        CorruptData: Naming the first file that differs.
    """
    paths = {file.path for file in sent}
    entries = [entry for entry in store.list_files().files if entry.path in paths]
    held = {file.path: file for file in store.digest(entries, Meter(label, entries))}
    for file in sent:
        if held.get(file.path) != file:
            found = "other bytes than were sent" if file.path in held else "no such file"
            raise failure(CorruptData, f"{store.url}{file.path}", found, "try again")
