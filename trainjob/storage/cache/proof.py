"""Compares files with the receipt that a run of ours left beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainjob.errors import CorruptData, StoreDenied, StoreNotFound
from trainjob.storage.failures import failure
from trainjob.storage.manifest import FileRecord
from trainjob.storage.own_files import RECEIPT, SUCCESS
from trainjob.storage.store import Store


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison showed.

    Attributes:
        covers_all: Whether there is a receipt that knows every file.
        wrong: Files that are not as the receipt says, or not there.
    """

    covers_all: bool
    wrong: tuple[str, ...] = ()


def compare_with_receipt(url: str, records: Sequence[FileRecord], folder: Path) -> Comparison:
    """Compare the files in `folder` with the receipt among them.

    Args:
        url: Where they came from; for the message.
        records: All of them, with the digests of what is there.
        folder: Where they are.

    Raises:
        CorruptData: If there is a receipt that cannot be read.
    """
    found = {record.path: record for record in records}
    if RECEIPT not in found:
        return Comparison(covers_all=False)
    told = _told(url, (folder / RECEIPT).read_bytes())
    wrong = tuple(path for path, file in told.items() if found.get(path) != file)
    return Comparison(covers_all=found.keys() <= {RECEIPT, SUCCESS, *told}, wrong=wrong)


def told_beside(store: Store) -> dict[str, FileRecord]:
    """Return what the receipt in a folder says of its files; nothing if there is none.

    For who takes one file of the folder, and may not be allowed to read anything else there.

    Raises:
        CorruptData: If there is a receipt that cannot be read.
    """
    try:
        text = store.read(RECEIPT)
    except (StoreNotFound, StoreDenied):
        return {}
    return _told(store.url, text)


def compare_one_file(
    record: FileRecord, told: Mapping[str, FileRecord], *, is_all: bool
) -> Comparison:
    """Compare one file with what the receipt beside it says.

    Args:
        record: The file, with the digest of what is there.
        told: See `told_beside`.
        is_all: Whether the folder has no other file, so that what else the receipt names is gone.
    """
    asked = told.keys() if is_all else told.keys() & {record.path}
    wrong = tuple(path for path in asked if path != record.path or told[path] != record)
    return Comparison(covers_all=record.path in told, wrong=wrong)


def _told(url: str, text: bytes) -> dict[str, FileRecord]:
    """Return the files that a receipt names."""
    # Here, since few datasets have one, and loading pydantic takes half of the start of a program
    # that stages.
    from trainjob.storage.receipt import Receipt

    try:
        receipt = Receipt.model_validate_json(text)
    except ValueError as error:
        what = f"a receipt ({RECEIPT}) that cannot be read"
        do = "use the version of trainjob that wrote it, or remove it"
        raise failure(CorruptData, url, what, do) from error
    return {file.path: file for file in receipt.files}
