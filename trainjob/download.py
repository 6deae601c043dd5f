"""Brings what a run has uploaded to a folder of this machine, every byte as its receipt says."""

from dataclasses import dataclass
from pathlib import Path

from trainjob.errors import CorruptData, StoreError
from trainjob.storage.failures import failure, local_failures
from trainjob.storage.listing import Entry, total_size
from trainjob.storage.meter import Meter
from trainjob.storage.paths import check_paths
from trainjob.storage.receipt import Receipt, read_receipt
from trainjob.storage.replace import check_space, replacing
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import open_store


@dataclass(frozen=True, slots=True)
class Downloaded:
    """One output on this machine.

    Attributes:
        name: The channel.
        url: Where it was read.
        folder: Where it is now.
        num_files: How many files there are, each as the receipt says.
        size_bytes: Their size.
        missing: What the receipt names and the store has not, or what the run could not upload.
        state: How the training ended that wrote it.
    """

    name: str
    url: str
    folder: str
    num_files: int
    size_bytes: int
    missing: tuple[str, ...]
    state: str


def download_output(
    name: str, url: str, target: Path, settings: StoreSettings | None, *, run_id: str
) -> Downloaded:
    """Copy an output of a run to the folder `target`, which appears when all of it is there.

    Args:
        name: The channel.
        url: Where the run has uploaded it; see `trainjob.storage.store.open_store`.
        target: A folder that holds nothing, or is not there.
        settings: How to reach an object store; absent: the AWS_* environment.
        run_id: The run.

    Raises:
        StoreNotFound: If nothing was uploaded to the url.
        CorruptData: If the store does not hold what the receipt says.
        StoreError: If the folder holds something, the output is of another run, and for everything
            else that a store can do wrong.
    """
    _refuse_full(target)
    receipt = read_receipt(url, settings)
    if receipt.run_id != run_id:
        found = f"the output of another run, {receipt.run_id}"
        raise failure(StoreError, url, found, "download that run; this one's output is gone")
    with open_store(url, settings) as store:
        listing = store.list_files()
        there = {entry.path: entry for entry in listing.files}
        wanted = [there[file.path] for file in receipt.files if file.path in there]
        check_paths(store.url, [entry.path for entry in wanted], receipt.folders)
        with replacing(target) as partial:
            check_space(target.parent, total_size(wanted))
            records = store.download(wanted, partial, Meter(name, wanted))
            _refuse_changed(url, receipt, {record.path: record.sha256 for record in records})
            for folder in receipt.folders:
                (partial / folder).mkdir(parents=True, exist_ok=True)
    return Downloaded(
        name=name,
        url=url,
        folder=str(target),
        num_files=len(wanted),
        size_bytes=total_size(wanted),
        missing=_missing(receipt, there),
        state=receipt.state,
    )


def _refuse_full(target: Path) -> None:
    with local_failures(str(target)):
        file = next((p for p in target.parents if p.exists() and not p.is_dir()), None)
        is_full = target.is_symlink() or (
            target.exists() and (not target.is_dir() or any(target.iterdir()))
        )
    if file is not None:
        found = f"a file at {str(file)!r}, where a folder should be"
        raise failure(StoreError, str(target), found, "give another folder")
    if is_full:
        raise failure(StoreError, str(target), "something there already", "give another folder")


def _refuse_changed(url: str, receipt: Receipt, digests: dict[str, str]) -> None:
    changed = [
        file.path for file in receipt.files if digests.get(file.path, file.sha256) != file.sha256
    ]
    if changed:
        found = f"{', '.join(changed[:5])}: not what the receipt says, changed after the run"
        do = "nothing was kept, and `python -m flows verify` shows all that is wrong"
        raise failure(CorruptData, url, found, do)


def _missing(receipt: Receipt, there: dict[str, Entry]) -> tuple[str, ...]:
    gone = [f"{file.path}: not in the store" for file in receipt.files if file.path not in there]
    return (*gone, *(f"{path}: not uploaded, it {why}" for path, why in receipt.left_out.items()))
