"""The proof that a store holds what was sent: by the ETag that it tells, or by reading it again."""

from collections.abc import Mapping, Sequence

from trainjob.errors import CorruptData
from trainjob.storage.failures import failure
from trainjob.storage.listing import Entry
from trainjob.storage.live_tree import named
from trainjob.storage.manifest import FileRecord, Proof
from trainjob.storage.meter import Meter
from trainjob.storage.store import Store


def read_back(
    store: Store,
    sent: Sequence[FileRecord],
    label: str | None,
    held: Sequence[Entry] | None = None,
    wrong: list[str] | None = None,
) -> list[FileRecord]:
    """Compare what the store holds now with what was sent, and say of each file how.

    A file of which the store lists exactly the ETag of its record is not read: the store has found
    that, or the checksum that it told with it, over what arrived. All others are read, every byte;
    where ETags are no MD5s, as of objects under a key of a key service, that is every file that
    went in one request.

    Args:
        store: Where it was sent.
        sent: What was sent.
        label: What watchers call the proof; None: nobody is told of it.
        held: The files of the store, listed after all was sent; None: they are listed here.
        wrong: The paths of all files that differ are added here.

    Returns:
        The files in the same order.

    Raises:
        CorruptData: Naming the files that differ.
    """
    by_path = {file.path: file for file in sent}
    present = store.list_files().files if held is None else held
    entries = [entry for entry in present if entry.path in by_path]
    meter = Meter(label, entries)
    to_read, proved = [], set()
    for entry in entries:
        file = by_path[entry.path]
        # OSS writes the MD5 in capitals.
        if file.etag and (entry.size_bytes, entry.version.lower()) == (file.size_bytes, file.etag):
            proved.add(entry.path)
            meter.add_bytes(entry.size_bytes)
            meter.finish_file()
        else:
            to_read.append(entry)
    read = {file.path: file for file in store.digest(to_read, meter)} if to_read else {}
    differing = {
        file.path: "other bytes than were sent" if file.path in read else "no such file"
        for file in sent
        if file.path not in proved and read.get(file.path) != file
    }
    if differing:
        if wrong is not None:
            wrong += differing
        raise _not_as_sent(store.url, differing)
    return [
        _verified(file, file.verified or "etag" if file.path in proved else "read back")
        for file in sent
    ]


def _verified(file: FileRecord, proof: Proof) -> FileRecord:
    # Not dataclasses.replace, which takes several times as long: there may be a million files.
    return FileRecord(file.path, file.size_bytes, file.sha256, file.etag, proof)


def _not_as_sent(url: str, differing: Mapping[str, str]) -> CorruptData:
    if len(differing) == 1:
        ((path, found),) = differing.items()
        return failure(CorruptData, f"{url}{path}", found, "try again")
    found = f"not as it was sent: {named(differing)}"
    return failure(CorruptData, url, found, "try again")
