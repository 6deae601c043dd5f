"""Compares files with the receipt that a run of ours left beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainjob.errors import CorruptData
from trainjob.storage.failures import failure
from trainjob.storage.manifest import FileRecord
from trainjob.storage.own_files import RECEIPT, SUCCESS


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
    # Here, since few datasets have one, and loading pydantic takes half of the start of a program
    # that stages.
    from trainjob.storage.receipt import Receipt

    try:
        receipt = Receipt.model_validate_json((folder / RECEIPT).read_bytes())
    except ValueError as error:
        what = f"a receipt ({RECEIPT}) that cannot be read"
        do = "use the version of trainjob that wrote it, or remove it"
        raise failure(CorruptData, url, what, do) from error
    wrong = tuple(file.path for file in receipt.files if found.get(file.path) != file)
    known = {RECEIPT, SUCCESS, *(file.path for file in receipt.files)}
    return Comparison(covers_all=found.keys() <= known, wrong=wrong)
