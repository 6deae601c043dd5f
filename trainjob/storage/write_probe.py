"""Proves that a place of a remote store can be used as an output, by using it once.

Called by the stores' `prove_writing`. Everything that an upload needs is done with one small file:
it is written, read, listed and deleted.
"""

import uuid

from trainjob.errors import CorruptData, StoreError
from trainjob.storage.failures import failure
from trainjob.storage.store import Store


def prove_writing(store: Store) -> None:
    """Write a file of a unique name, read and list it, and delete it.

    Raises:
        StoreError: If any of these is not possible.
    """
    name = f".trainjob-probe-{uuid.uuid4().hex}"
    data = name.encode()
    store.write(name, data)
    try:
        if store.read(name) != data:
            found = "a file that was written there holds something else when it is read"
            raise failure(CorruptData, store.url, found, "have the store examined")
        if not store.has_files():
            found = "a file that was written there and is not in the listing"
            raise failure(StoreError, store.url, found, "use a store that lists what it holds")
    finally:
        store.delete([name])
