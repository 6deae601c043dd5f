"""The receipt of an uploaded tree: what a run wrote, and the proof that it is still there.

``_trainjob/receipt.json`` names the run, what it ran, how it ended, and every file with size and
sha256; the empty ``_SUCCESS`` beside the files is written last, so who sees it sees a complete
result. What a training left that was cancelled or failed has a receipt and no ``_SUCCESS``, and so
has a tree without things that could not be uploaded.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainjob.errors import CorruptData, StoreNotFound
from trainjob.storage.failures import failure
from trainjob.storage.listing import Entry
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.own_files import RECEIPT, SUCCESS
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, open_store

OutputState = Literal["Completed", "AutoStopped", "TargetReached", "Cancelled", "Failed", "Crashed"]
UNFINISHED_STATES: frozenset[OutputState] = frozenset({"Cancelled", "Failed", "Crashed"})
"""States whose outputs are no result: there is no ``_SUCCESS`` beside them."""


class Receipt(BaseModel):
    """What a run wrote to one output. Facts of the run stand beside these fields."""

    model_config = ConfigDict(frozen=True, extra="allow")

    format: Literal[1] = 1
    """Version of this file's form."""

    run_id: str
    """The run that wrote the files."""

    state: OutputState = "Completed"
    """How the training ended that wrote the files."""

    created: str
    """When the last file was verified, UTC, ISO 8601."""

    fingerprint: str
    """The fingerprint of the files."""

    files: tuple[FileRecord, ...] = Field(repr=False)
    """Every file with its size and digest, and how the store was proved to hold it."""

    folders: tuple[str, ...] = ()
    """The folders that hold nothing."""

    left_out: dict[str, str] = {}
    """What the script left that could not be uploaded, and why, by path."""

    earlier: tuple[str, ...] = ()
    """Those of the files that only an earlier attempt of the run wrote: a training that was broken
    off, or stopped by a limit, keeps them, though the attempt that was restarted may not have come
    as far."""

    claimed: Literal["by the store", "by looking"] | None = None
    """What kept other runs from writing to the same place meanwhile: the store, which let one run
    alone claim it, or that this run looked for others. Not known of receipts before this field."""

    @property
    def is_result(self) -> bool:
        """Whether the files are the whole result of a training that was not broken off."""
        return self.state not in UNFINISHED_STATES and not self.left_out

    @property
    def facts(self) -> dict[str, Any]:
        """What the run said of itself: job, code, inputs, argv, versions, stages."""
        return dict(self.model_extra or {})


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What reading a tree again showed; counts and state are those of the receipt.

    Attributes:
        url: The tree.
        num_files: Files that should be there.
        size_bytes: Their size.
        problems: Everything that is not as the receipt says; nothing if all is.
        state: How the training ended that wrote the tree; None if there is no receipt.
    """

    url: str
    num_files: int
    size_bytes: int
    problems: tuple[str, ...]
    state: OutputState | None = None

    @property
    def is_result(self) -> bool:
        """Whether the tree is the whole result of a training that was not broken off."""
        return not self.problems and self.state not in UNFINISHED_STATES


def read_receipt(url: str, settings: StoreSettings | None) -> Receipt:
    """Return the receipt of the tree at `url`.

    Raises:
        StoreNotFound: If there is none.
        CorruptData: If it is not a receipt that can be read.
    """
    with open_store(url, settings) as store:
        return receipt_in(store)


def verify_receipt(url: str, settings: StoreSettings | None) -> VerifyReport:
    """Read the tree at `url` and compare every byte with its receipt.

    Raises:
        StoreError: If the store cannot be read at all.
    """
    with open_store(url, settings) as store:
        listing = store.list_files()
        found = {entry.path: entry for entry in listing.files}
        try:
            receipt = receipt_in(store)
        except (StoreNotFound, CorruptData) as error:
            return VerifyReport(store.url, 0, 0, (str(error),))
        problems = _success_problems(receipt, found)
        problems += _name_problems(receipt, found)
        gone = set(receipt.folders).difference(listing.folders)
        problems += [f"{path}/: missing" for path in sorted(gone)]
        problems += _content_problems(receipt, found, store)
    size_bytes = sum(file.size_bytes for file in receipt.files)
    return VerifyReport(store.url, len(receipt.files), size_bytes, tuple(problems), receipt.state)


def receipt_in(store: Store) -> Receipt:
    """Return the receipt of a tree in an open store; errors are those of `read_receipt`."""
    try:
        text = store.read(RECEIPT)
    except StoreNotFound as error:
        found = f"no receipt ({RECEIPT})"
        do = "check the url, and whether the run that wrote it completed"
        raise failure(StoreNotFound, store.url, found, do) from error
    try:
        return Receipt.model_validate_json(text)
    except ValidationError as error:
        found = f"a receipt ({RECEIPT}) that cannot be read"
        do = "run the job again, or use the version of trainjob that wrote it"
        raise failure(CorruptData, store.url, found, do) from error


def _success_problems(receipt: Receipt, found: dict[str, Entry]) -> list[str]:
    problems = [f"{path}: not uploaded, it {why}" for path, why in receipt.left_out.items()]
    if SUCCESS in found and receipt.state in UNFINISHED_STATES:
        problems.append(f"{SUCCESS}: there, though the state of the run is {receipt.state}")
    elif SUCCESS in found and receipt.left_out:
        problems.append(f"{SUCCESS}: there, though not all was uploaded")
    elif SUCCESS not in found and receipt.is_result:
        problems.append(f"{SUCCESS}: missing, the upload was not finished")
    return problems


def _name_problems(receipt: Receipt, found: dict[str, Entry]) -> list[str]:
    known = {file.path for file in receipt.files}
    missing = [f"{path}: missing" for path in sorted(known - found.keys())]
    unknown = sorted(found.keys() - known - {SUCCESS, RECEIPT})
    return missing + [f"{path}: not in the receipt" for path in unknown]


def _content_problems(receipt: Receipt, found: dict[str, Entry], store: Store) -> list[str]:
    expected = {file.path: file for file in receipt.files}
    present = [entry for path, entry in found.items() if path in expected]
    same_size = [entry for entry in present if entry.size_bytes == expected[entry.path].size_bytes]
    digests = store.digest(same_size, Meter("verify", same_size))
    return [
        *(
            f"{entry.path}: {entry.size_bytes} bytes, not {expected[entry.path].size_bytes}"
            for entry in present
            if entry.size_bytes != expected[entry.path].size_bytes
        ),
        *(
            f"{record.path}: changed, sha256 is {record.sha256}, not {expected[record.path].sha256}"
            for record in digests
            if record.sha256 != expected[record.path].sha256
        ),
    ]
