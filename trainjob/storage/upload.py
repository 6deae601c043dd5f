"""Takes the outputs of a run to a store: payload first, then the receipt, then ``_SUCCESS``.

The folder is claimed before the first file is sent (`trainjob.storage.claim`). What a sync sent
while the script ran is not sent again, but is read back like all the rest.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainjob.errors import CorruptData, OutputEmpty, UnsafeKey
from trainjob.storage.claim import is_bookkeeping, own_files, refuse_others, write_claim
from trainjob.storage.failures import failure, local_failures
from trainjob.storage.journal import Journal
from trainjob.storage.listing import Entry
from trainjob.storage.local_tree import list_folder
from trainjob.storage.manifest import FileRecord, fingerprint
from trainjob.storage.meter import Meter
from trainjob.storage.paths import check_paths
from trainjob.storage.read_back import read_back
from trainjob.storage.receipt import (
    OWN_FOLDER,
    RECEIPT,
    SUCCESS,
    UNFINISHED_STATES,
    OutputState,
    Receipt,
)
from trainjob.storage.send import send, unsent
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, open_store


def upload_tree(
    source: Path,
    url: str,
    settings: StoreSettings | None,
    *,
    run_id: str,
    facts: dict[str, Any],
    label: str,
    state: OutputState = "Completed",
    journal: Path | None = None,
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
        state: How the training ended. The receipt says it; there is no ``_SUCCESS`` for one that
            was cancelled or failed, so that nobody takes its output for a finished result.
        journal: The file in which an `OutputMirror` noted what it has sent.

    Returns:
        The receipt as it was written. If the folder is empty, which only a training that did not
        complete may leave it, the receipt holds no file and was not written: what a sync had sent
        is removed, and the next run may use the place. A finished result of the same run stays.

    Raises:
        OutputEmpty: If there is no file below `source` though the training completed.
        OutputNotEmpty: If there is something at `url` that this run did not write.
        UnsafeKey: If a file cannot be uploaded under its name.
        TreeChanged: If a file changed meanwhile; retryable.
        CorruptData: If the store holds other bytes than were sent; retryable.
        StoreError: For everything else that a store can do wrong.
    """
    files = _list_outputs(source, url)
    if not files and state == "Completed":
        raise _nothing_written(source, url, label)
    with open_store(url, settings) as store:
        present = {entry.path: entry.size_bytes for entry in store.list_files().files}
        earlier = own_files(store, set(present), run_id)
        sent: list[FileRecord] = []
        if files:
            planned = {entry.path for entry in files}
            if SUCCESS in present:
                store.delete([SUCCESS])
            claim = write_claim(store, run_id, planned | earlier)
            store.delete(sorted((present.keys() & earlier) - planned))
            sent = _send(store, source, files, Journal(journal, url, run_id), present, label)
            refuse_others(store, claim)
        receipt = Receipt(
            run_id=run_id,
            state=state,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            fingerprint=fingerprint(sent),
            files=tuple(sorted(sent, key=lambda file: file.path)),
            **facts,
        )
        if files:
            _conclude(store, receipt)
        elif SUCCESS not in present:
            store.delete(sorted(present))  # all of it is of this run, see own_files
    return receipt


def _list_outputs(source: Path, url: str) -> tuple[Entry, ...]:
    with local_failures(str(source)):
        files = list_folder(source, links_inside=True).files
    for entry in files:
        if is_bookkeeping(entry.path):
            found = f"the script wrote {entry.path!r}, a name that trainjob uses for itself"
            raise failure(UnsafeKey, url, found, "let the script use another name")
    check_paths(str(source), [entry.path for entry in files])
    return files


def _nothing_written(source: Path, url: str, label: str) -> OutputEmpty:
    found = f"the script wrote nothing to the output {label!r} (its folder was {str(source)!r})"
    do = f"save the results below the folder that the script gets as --{label}"
    return failure(OutputEmpty, url, found, do)


def _send(
    store: Store,
    source: Path,
    files: Sequence[Entry],
    journal: Journal,
    present: Mapping[str, int],
    label: str,
) -> list[FileRecord]:
    """Send what was not sent yet, and read all back."""
    to_send = unsent(files, journal, present)
    send(store, source, to_send, journal, Meter(label, to_send))
    sent = [record for entry in files if (record := journal.record(entry))]
    try:
        read_back(store, sent, f"verify {label}")
    except CorruptData:
        journal.clear()  # so that doing it again sends again
        raise
    return sent


def _conclude(store: Store, receipt: Receipt) -> None:
    """Write the receipt, remove what was needed on the way, and mark a result as such."""
    store.write(RECEIPT, receipt.model_dump_json(indent=2).encode())
    present = sorted(entry.path for entry in store.list_files().files)
    store.delete([path for path in present if path.startswith(OWN_FOLDER) and path != RECEIPT])
    if receipt.state not in UNFINISHED_STATES:
        store.write(SUCCESS, b"")
