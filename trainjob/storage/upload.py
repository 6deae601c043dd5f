"""Takes the outputs of a run to a store: payload first, then the receipt, then ``_SUCCESS``.

A claim is written before the first file. It says which run is uploading and which files it will
write, so that a retry after a failure knows its own half-finished work from the files of others,
which are never deleted or overwritten.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trainjob.errors import (
    CorruptData,
    OutputEmpty,
    OutputNotEmpty,
    StoreNotFound,
    UnsafeKey,
)
from trainjob.storage.failures import failure, local_failures
from trainjob.storage.listing import Listing
from trainjob.storage.local import PARTIAL
from trainjob.storage.local_tree import list_folder
from trainjob.storage.manifest import FileRecord, fingerprint
from trainjob.storage.meter import Meter
from trainjob.storage.paths import check_paths
from trainjob.storage.receipt import OWN_FOLDER, RECEIPT, SUCCESS, Receipt
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, open_store

CLAIM = f"{OWN_FOLDER}claim.json"


class _Claim(BaseModel):
    """Which run is uploading here, and every file that it has written or will write."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    files: frozenset[str]


def upload_tree(
    source: Path,
    url: str,
    settings: StoreSettings | None,
    *,
    run_id: str,
    facts: dict[str, Any],
    label: str,
) -> Receipt:
    """Copy every file below `source` to `url`, read all back, and write the receipt.

    Doing it again for the same run completes or repeats it.

    Args:
        source: The folder that the script wrote. Links must lead to places inside it.
        url: Where the files go; see `trainjob.storage.store.open_store`.
        settings: How to reach an object store; absent: the AWS_* environment.
        run_id: The run whose output this is.
        facts: What the receipt says of the run; JSON values.
        label: Name of the output channel; watchers see it too.

    Raises:
        OutputEmpty: If there is no file below `source`.
        OutputNotEmpty: If there is something at `url` that this run did not write.
        UnsafeKey: If a file cannot be uploaded under its name.
        TreeChanged: If a file changed meanwhile; retryable.
        CorruptData: If the store holds other bytes than were sent; retryable.
        StoreError: For everything else that a store can do wrong.
    """
    listing = _list_outputs(source, url, label)
    planned = {entry.path for entry in listing.files}
    with open_store(url, settings) as store:
        present = {entry.path for entry in store.list_files().files}
        earlier = _own_files(store, present, run_id)
        if SUCCESS in present:
            store.delete([SUCCESS])
        claim = _Claim(run_id=run_id, files=frozenset(planned | earlier))
        store.write(CLAIM, claim.model_dump_json().encode())
        # Another run may have found the folder empty at the same time. Each looks again, now and
        # at the end: at least one of them sees the other, and no tree of two runs is Completed.
        _refuse_others(store, claim)
        store.delete(sorted((present & earlier) - planned))
        sent = store.upload(source, listing.files, Meter(label, listing.files))
        _read_back(store, sent, f"verify {label}")
        _refuse_others(store, claim)
        receipt = Receipt(
            run_id=run_id,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            fingerprint=fingerprint(sent),
            files=tuple(sorted(sent, key=lambda file: file.path)),
            **facts,
        )
        store.write(RECEIPT, receipt.model_dump_json(indent=2).encode())
        store.delete(sorted(_leftovers(store)))
        store.write(SUCCESS, b"")
    return receipt


def _list_outputs(source: Path, url: str, label: str) -> Listing:
    with local_failures(str(source)):
        listing = list_folder(source, links_inside=True)
    if not listing.files:
        found = f"the script wrote nothing to the output {label!r}"
        do = f"save the results below the folder that the script gets as --{label}"
        raise failure(OutputEmpty, url, f"{found} (its folder was {str(source)!r})", do)
    for entry in listing.files:
        if _is_bookkeeping(entry.path):
            found = f"the script wrote {entry.path!r}, a name that trainjob uses for itself"
            raise failure(UnsafeKey, url, found, "let the script use another name")
    check_paths(str(source), [entry.path for entry in listing.files])
    return listing


def _own_files(store: Store, present: set[str], run_id: str) -> set[str]:
    """Return the files that earlier attempts of this run wrote or meant to write.

    Raises:
        OutputNotEmpty: If there is anything else.
    """
    own: set[str] = set()
    is_ours = False
    for path in (CLAIM, RECEIPT):
        record = _read_record(store, path) if path in present else None
        if record is not None and record.run_id != run_id:
            raise _not_empty(store.url, f"the output of the run {record.run_id}")
        if record is not None:
            is_ours = True
            own |= record.files
    foreign = {
        path
        for path in present - own
        if not (is_ours and _is_bookkeeping(path)) and not path.startswith(PARTIAL)
    }
    if foreign:
        raise _not_empty(store.url, f"{len(foreign)} files, such as {min(foreign)!r}")
    if not present and store.is_file():
        raise _not_empty(store.url, "a file of that name")
    return own


def _refuse_others(store: Store, claim: _Claim) -> None:
    """See that the claim still is that of this run and that nobody else wrote here.

    Raises:
        OutputNotEmpty: Naming the other run or a file of it.
    """
    present = {entry.path for entry in store.list_files().files}
    standing = _read_record(store, CLAIM)
    if standing is None or standing.run_id != claim.run_id:
        other = f"the run {standing.run_id}" if standing else "another run"
        raise _not_empty(store.url, f"in use by {other}")
    foreign = {path for path in present - claim.files if not _is_bookkeeping(path)}
    if foreign:
        raise _not_empty(store.url, f"{len(foreign)} files, such as {min(foreign)!r}")


def _read_record(store: Store, path: str) -> _Claim | None:
    """Return who claims the tree; of a receipt, too. None if the file says nothing of the kind."""
    try:
        data = store.read(path)
        if path == CLAIM:
            return _Claim.model_validate_json(data)
        receipt = Receipt.model_validate_json(data)
    except (StoreNotFound, ValidationError):
        return None
    files = frozenset(file.path for file in receipt.files)
    return _Claim(run_id=receipt.run_id, files=files)


def _is_bookkeeping(path: str) -> bool:
    return path.partition("/")[0] in (SUCCESS, OWN_FOLDER.rstrip("/"))


def _not_empty(url: str, found: str) -> OutputNotEmpty:
    do = "use an empty folder or put {run_id} into the url"
    return failure(OutputNotEmpty, url, f"not empty but {found}", do)


def _read_back(store: Store, sent: list[FileRecord], label: str) -> None:
    """Compare what the store holds now with what was sent.

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


def _leftovers(store: Store) -> set[str]:
    """Return what this and earlier attempts needed on the way: claim and temporary files."""
    present = {entry.path for entry in store.list_files().files}
    return {path for path in present if path.startswith(OWN_FOLDER) and path != RECEIPT}
