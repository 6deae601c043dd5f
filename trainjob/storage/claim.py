"""Whose an output folder is while it is filled: one file that names the run and all its files.

The claim is written before the first file, so that a retry after a failure, and the final upload
after a sync, know their own half-finished work from the files of others, which are never deleted
or overwritten. Of two runs that claim a folder at the same moment one alone succeeds where the
store can create a file only if there is none; elsewhere each looks again, after it and at its end.
"""

from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trainjob.errors import OutputNotEmpty, StoreNotFound
from trainjob.storage.failures import failure
from trainjob.storage.listing import Entry
from trainjob.storage.local import PARTIAL
from trainjob.storage.own_files import OWN_FOLDER, RECEIPT, SUCCESS
from trainjob.storage.receipt import Receipt
from trainjob.storage.store import Store, is_known_file

CLAIM = f"{OWN_FOLDER}claim.json"

Exclusion = Literal["by the store", "by looking"]
"""What keeps two runs from claiming one folder: the store, or that each looks for the other."""


class Claim(BaseModel):
    """Which run is writing to a folder, and every file that it has written or will write.

    Folders that hold nothing are among the files, with a ``/`` at their end.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    files: frozenset[str]


def own_files(store: Store, present: set[str], run_id: str) -> set[str]:
    """Return the files that this run wrote, or meant to write, into the folder before.

    Args:
        store: The folder.
        present: What it holds.
        run_id: This run.

    Raises:
        OutputNotEmpty: If there is anything else.
    """
    own: set[str] = set()
    is_ours = False
    for path in (CLAIM, RECEIPT):
        record = _read_record(store, path) if path in present else None
        if record is not None and record.run_id != run_id:
            raise not_empty(store.url, f"the output of the run {record.run_id}")
        if record is not None:
            is_ours = True
            own |= record.files
    foreign = {
        path
        for path in present - own
        if not (is_ours and is_bookkeeping(path)) and not path.startswith(PARTIAL)
    }
    if foreign:
        raise not_empty(store.url, f"{len(foreign)} files, such as {min(foreign)!r}")
    if not present and is_known_file(store):
        raise not_empty(store.url, "a file of that name")
    return own


def write_claim(store: Store, run_id: str, files: set[str]) -> tuple[Claim, Exclusion]:
    """Claim the folder for this run, which will write `files`, or claim more for it.

    Where the store does not exclude it, another run may have found the folder empty at the same
    time. Each looks again, after this and at its end: at least one of them sees the other, and no
    tree of two runs is Completed.

    Returns:
        The claim and what protects it.

    Raises:
        OutputNotEmpty: If another run was faster, and is at work or has left its result.
    """
    claim = Claim(run_id=run_id, files=frozenset(files))
    data = claim.model_dump_json().encode()
    is_first = store.create(CLAIM, data)
    # A store that does not know the condition, or ignores it, says yes to the second one as well.
    is_exclusive = store.creates_in_one_step and not (is_first and store.create(CLAIM, data))
    if not is_first:
        _refuse_other_claim(store, run_id)
        store.write(CLAIM, data)
    held = store.list_files().files
    present = {entry.path for entry in held}
    if is_first and _other_run_of_receipt(store, present, run_id):
        store.delete([CLAIM])  # the other run has ended, so nobody needs to see it
    refuse_others(store, claim, held)
    return claim, "by the store" if is_exclusive else "by looking"


def refuse_others(store: Store, claim: Claim, files: Sequence[Entry]) -> None:
    """See that the claim still is that of this run and that nobody else wrote here.

    Args:
        store: The folder.
        claim: The claim of this run.
        files: What the folder holds.

    Raises:
        OutputNotEmpty: Naming the other run or a file of it.
    """
    present = {entry.path for entry in files}
    if other := _other_run_of_receipt(store, present, claim.run_id):
        raise not_empty(store.url, f"the output of the run {other}")
    _refuse_other_claim(store, claim.run_id)
    foreign = {path for path in present - claim.files if not is_bookkeeping(path)}
    if foreign:
        raise not_empty(store.url, f"{len(foreign)} files, such as {min(foreign)!r}")


def is_bookkeeping(path: str) -> bool:
    """Say whether a file of a tree has a name that we use for ourselves."""
    return path.partition("/")[0] in (SUCCESS, OWN_FOLDER.rstrip("/"))


def not_empty(url: str, found: str) -> OutputNotEmpty:
    """Return the error for a folder that holds what this run did not write."""
    do = "use an empty folder, or put {run_id} into the url of a job"
    return failure(OutputNotEmpty, url, f"not empty but {found}", do)


def _other_run_of_receipt(store: Store, present: Collection[str], run_id: str) -> str | None:
    """Return the run whose receipt is in the folder; None if there is none, or that of `run_id`.

    A run writes its receipt before it removes its claim, so who finds the folder unclaimed sees it.
    """
    record = _read_record(store, RECEIPT) if RECEIPT in present else None
    return record.run_id if record is not None and record.run_id != run_id else None


def _refuse_other_claim(store: Store, run_id: str) -> None:
    standing = _read_record(store, CLAIM)
    if standing is None or standing.run_id != run_id:
        other = f"the run {standing.run_id}" if standing else "another run"
        raise not_empty(store.url, f"in use by {other}")


def _read_record(store: Store, path: str) -> Claim | None:
    """Return who claims the tree; of a receipt, too. None if the file says nothing of the kind."""
    try:
        data = store.read(path)
        if path == CLAIM:
            return Claim.model_validate_json(data)
        receipt = Receipt.model_validate_json(data)
    except (StoreNotFound, ValidationError):
        return None
    files = [file.path for file in receipt.files]
    folders = [f"{path}/" for path in receipt.folders]
    return Claim(run_id=receipt.run_id, files=frozenset([*files, *folders]))
