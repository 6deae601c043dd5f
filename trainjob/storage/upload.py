"""Takes the outputs of a run to a store: payload first, then the receipt, then ``_SUCCESS``.

The folder is claimed before the first file is sent (`trainjob.storage.claim`). What a sync sent
while the script ran is read again for a result, and sent again if it differs; all is proved. What
cannot be uploaded, such as a pipe or a link out of the folder, keeps nothing else from being
uploaded: all of it is named at the end, in the receipt and in the error, and the tree is no
finished result without it.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainjob.errors import CorruptData, OutputEmpty, TreeChanged, UnsafeKey
from trainjob.storage.claim import (
    Claim,
    Exclusion,
    is_bookkeeping,
    own_files,
    refuse_others,
    write_claim,
)
from trainjob.storage.earlier_outputs import Sources, with_earlier
from trainjob.storage.failures import failure
from trainjob.storage.journal import Journal
from trainjob.storage.listing import Entry, Listing
from trainjob.storage.live_tree import Look, look_at, named, refuse_link
from trainjob.storage.manifest import FileRecord, fingerprint
from trainjob.storage.meter import Meter
from trainjob.storage.own_files import OWN_FOLDER, RECEIPT, SUCCESS
from trainjob.storage.read_back import read_back
from trainjob.storage.receipt import UNFINISHED_STATES, OutputState, Receipt, receipt_in
from trainjob.storage.send import discard_unfinished, forget_other_content, send, unsent
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, open_store
from trainjob.values import counted

_LOGGER = logging.getLogger(__name__)
_MAX_NAMED = 10


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
    earlier: Sequence[Path] = (),
    is_marked: bool = True,
) -> Receipt:
    """Copy every file below `source` to `url`, prove that it is there, and write the receipt.

    Doing it again for the same run completes or repeats it.

    Args:
        source: The folder that the script wrote. Links are followed to places inside it.
        url: Where the files go; see `trainjob.storage.store.open_store`.
        settings: How to reach an object store; absent: the AWS_* environment.
        run_id: The run whose output this is.
        facts: What the receipt says of the run; JSON values.
        label: Name of the output channel; watchers see it too.
        state: How the training ended. The receipt says it; there is no ``_SUCCESS`` for one that
            was cancelled or failed, so that nobody takes its output for a finished result. Nor does
            such a one replace a finished result of the same run, which may have been stopped later,
            or have gone on elsewhere.
        journal: The file in which an `OutputMirror` noted what it has sent.
        earlier: What earlier attempts wrote, the latest first. If the last one was cut off, or
            wrote nothing before it reached its target, it is uploaded and kept, too, as far as
            `source` has nothing of that name.
        is_marked: Write ``_SUCCESS``; False: a result is marked later, by `mark_result`.

    Returns:
        The receipt as it was written. If there is no file, which only a training that did not
        complete may leave it, the receipt holds no file and was not written: what a sync had sent
        is removed, and the next run may use the place. Of a finished result that stays, the receipt
        that it has.

    Raises:
        OutputEmpty: If there is no file below `source` though the training completed.
        OutputNotEmpty: If there is something at `url` that this run did not write.
        UnsafeKey: If the folder is a link now; or, when all the rest is uploaded and the training
            was not broken off, naming everything that could not be.
        TreeChanged: If a file changed meanwhile; retryable.
        CorruptData: If the store holds other bytes than were sent; retryable.
        StoreError: For everything else that a store can do wrong.
    """
    refuse_link(source)
    look = _look_at_outputs(source, url)
    if not look.files and look.odd and state not in UNFINISHED_STATES:
        raise _not_all(url, look)
    if not look.files and state == "Completed":
        raise _nothing_written(source, url, label)
    is_whole = state == "Completed" or (state == "TargetReached" and bool(look.files))
    tree = _with_earlier(source, look, () if is_whole else earlier, url)
    with open_store(url, settings) as store:
        listing = store.list_files()
        own = own_files(store, {entry.path for entry in listing.files}, run_id)
        if finished := _finished(store, run_id, state):
            return finished
        has_result = any(entry.path == SUCCESS for entry in listing.files)
        if not look.files and (has_result or not tree.look.files):
            if has_result:
                return receipt_in(store)
            store.delete(sorted(entry.path for entry in listing.files))  # see own_files
            return _receipt(Sources(look), [], (), None, run_id, state, facts)
        claim, claimed = _prepare(store, tree.look, listing, own, run_id)
        journal_of_run = Journal(journal, url, run_id)
        sent = _send(store, tree, journal_of_run, listing, label, state)
        store.make_folders(tree.look.empty_folders)
        listing = store.list_files()
        held = listing.files
        sent = _prove(store, sent, held, journal_of_run, label)
        if finished := _finished(store, run_id, state):
            return finished
        refuse_others(store, claim, held)
        folders = _kept_folders(tree.look, listing, url)
        receipt = _receipt(tree, sent, folders, claimed, run_id, state, facts)
        _conclude(store, receipt, claim, held, is_marked=is_marked)
    if look.odd and state not in UNFINISHED_STATES:
        raise _not_all(url, look)
    return receipt


def mark_result(url: str, settings: StoreSettings | None, proved: Receipt) -> None:
    """Write ``_SUCCESS`` to the tree of a result, unless it is another one by now.

    Args:
        url: The tree.
        settings: As for `upload_tree`.
        proved: The receipt that was written to it.

    Raises:
        TreeChanged: If its receipt is another one; retryable, since to upload it again helps.
        StoreError: If the store does not take it.
    """
    with open_store(url, settings) as store:
        found = receipt_in(store)
        if (found.run_id, found.state, found.fingerprint) != (
            proved.run_id,
            proved.state,
            proved.fingerprint,
        ):
            what = f"a receipt of the run {found.run_id}, {found.state}, not the one just written"
            do = "see that no other process of the run is at work, and retry the run"
            raise failure(TreeChanged, url, what, do)
        store.write(SUCCESS, b"")


def _finished(store: Store, run_id: str, state: OutputState) -> Receipt | None:
    """Return the receipt of a finished result of this run, if its `state` may not replace it."""
    if state not in UNFINISHED_STATES or store.find(SUCCESS) is None:
        return None
    receipt = receipt_in(store)
    return receipt if receipt.run_id == run_id else None


def _look_at_outputs(source: Path, url: str) -> Look:
    """Return what the script left, with the names that we use for ourselves among what is odd."""
    look = look_at(source, url, lambda _: True)
    ours = [path for path in (*look.files, *look.empty_folders) if is_bookkeeping(path)]
    return Look(
        {path: entry for path, entry in look.files.items() if path not in ours},
        {**look.odd, **dict.fromkeys(ours, "has a name that trainjob uses for itself")},
        tuple(path for path in look.empty_folders if path not in ours),
    )


def _with_earlier(source: Path, look: Look, earlier: Sequence[Path], url: str) -> Sources:
    """Add what earlier attempts left; a folder that a script has replaced by a link is none."""
    folders = [folder for folder in earlier if not folder.is_symlink()]
    return with_earlier(source, look, {folder: _look_at_outputs(folder, url) for folder in folders})


def _not_all(url: str, look: Look) -> UnsafeKey:
    num_files = counted(len(look.files), "file")
    found = f"{num_files} uploaded, but not all that the script left: {named(look.odd)}"
    do = "let the script put regular files there, or delete or rename these, and retry the run"
    return failure(UnsafeKey, url, found, do)


def _nothing_written(source: Path, url: str, label: str) -> OutputEmpty:
    found = f"the script wrote nothing to the output {label!r} (its folder was {str(source)!r})"
    do = f"save the results below the folder that the script gets as --{label}"
    return failure(OutputEmpty, url, found, do)


def _prepare(
    store: Store, look: Look, listing: Listing, earlier: set[str], run_id: str
) -> tuple[Claim, Exclusion]:
    """Claim the folder and remove what an earlier try left there that is no longer wanted."""
    present = {entry.path for entry in listing.files}
    present |= {f"{path}/" for path in listing.folders}
    planned = look.files.keys() | {f"{path}/" for path in look.empty_folders}
    if SUCCESS in present:
        store.delete([SUCCESS])
    claim, claimed = write_claim(store, run_id, planned | earlier)
    discard_unfinished(store, claim.files)
    store.delete(sorted((present & earlier) - planned))
    return claim, claimed


def _send(
    store: Store,
    tree: Sources,
    journal: Journal,
    listing: Listing,
    label: str,
    state: OutputState,
) -> list[FileRecord]:
    """Send what was not sent yet, and return what was sent of all.

    What was never sent goes first: the process may have little time left. Who broke off has none to
    read all of the rest, and what the receipt says of it is in the store; if the run goes on, its
    result is read.
    """
    present = {entry.path: entry.size_bytes for entry in listing.files}
    new = {folder: unsent(files, journal, present) for folder, files in tree.by_folder.items()}
    _send_all(store, new, journal, label)
    differing = {}
    for folder, files in tree.by_folder.items() if state not in UNFINISHED_STATES else ():
        is_new = {entry.path for entry in new[folder]}
        sent_ahead = [entry for entry in files if entry.path not in is_new]
        forget_other_content(folder, sent_ahead, journal, f"check {label}")
        differing[folder] = unsent(sent_ahead, journal, present)
    _send_all(store, differing, journal, label)
    return [record for entry in tree.look.files.values() if (record := journal.record(entry))]


def _send_all(
    store: Store, files: Mapping[Path, Sequence[Entry]], journal: Journal, label: str
) -> None:
    """Send files of several folders."""
    meter = Meter(label, [entry for chosen in files.values() for entry in chosen])
    for folder, chosen in files.items():
        send(store, folder, chosen, journal, meter)


def _prove(
    store: Store,
    sent: Sequence[FileRecord],
    held: Sequence[Entry],
    journal: Journal,
    label: str,
) -> list[FileRecord]:
    wrong: list[str] = []
    try:
        return read_back(store, sent, f"verify {label}", held, wrong)
    except CorruptData:
        # So that doing it again sends these again. If one could not even be read, it may be any.
        journal.forget(wrong or [file.path for file in sent])
        journal.save()
        raise


def _kept_folders(look: Look, listing: Listing, url: str) -> list[str]:
    """Return the empty folders that the store has now; drivers of object stores make none."""
    missing = sorted(set(look.empty_folders).difference(listing.folders))
    if missing:
        some = ", ".join(map(repr, missing[:_MAX_NAMED]))
        _LOGGER.warning("%s keeps no empty folders: %s", url, some)
    return sorted(set(look.empty_folders).difference(missing))


def _receipt(
    tree: Sources,
    sent: Sequence[FileRecord],
    folders: Sequence[str],
    claimed: Exclusion | None,
    run_id: str,
    state: OutputState,
    facts: Mapping[str, Any],
) -> Receipt:
    return Receipt(
        run_id=run_id,
        state=state,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=fingerprint(sent),
        files=tuple(sorted(sent, key=lambda file: file.path)),
        folders=tuple(folders),
        left_out=dict(sorted(tree.look.odd.items())),
        earlier=tree.earlier,
        claimed=claimed,
        **facts,
    )


def _conclude(
    store: Store, receipt: Receipt, claim: Claim, held: Sequence[Entry], *, is_marked: bool
) -> None:
    """Write the receipt, remove what was needed on the way, and mark a result as such."""
    discard_unfinished(store, claim.files)
    store.write(RECEIPT, receipt.model_dump_json(indent=2).encode())
    ours = [entry.path for entry in held if entry.path.startswith(OWN_FOLDER)]
    store.delete([path for path in ours if path != RECEIPT])
    if receipt.is_result and is_marked:
        store.write(SUCCESS, b"")
