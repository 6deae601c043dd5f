"""Brings back what a run wrote to an output before it went on to another machine."""

from pathlib import Path

from trainjob.storage.claim import is_bookkeeping, own_files
from trainjob.storage.failures import local_failures
from trainjob.storage.journal import Journal
from trainjob.storage.local_tree import entry_of
from trainjob.storage.meter import Meter
from trainjob.storage.paths import check_paths
from trainjob.storage.replace import check_space, replacing
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import open_store


def restore_outputs(
    url: str,
    target: Path,
    settings: StoreSettings | None,
    *,
    run_id: str,
    journal: Path | None = None,
    label: str,
) -> int:
    """Replace the folder `target` by what this run has written to `url`; return how many files.

    Without that the final upload would take the files of the other machine for deleted ones.

    Args:
        url: The output; see `trainjob.storage.store.open_store`.
        target: Its folder on this machine.
        settings: How to reach an object store; absent: the AWS_* environment.
        run_id: This run.
        journal: The file in which the `OutputMirror` of this output notes what it has sent.
        label: What watchers call the copy.

    Raises:
        OutputNotEmpty: If the output belongs to another run.
        StoreError: For everything else that a store can do wrong.
    """
    with open_store(url, settings) as store:
        listing = store.list_files()
        own = own_files(store, {entry.path for entry in listing.files}, run_id)
        wanted = [
            entry for entry in listing.files if entry.path in own and not is_bookkeeping(entry.path)
        ]
        if not wanted:
            return 0
        # Of the folders, those that hold nothing are named; the others come with their files.
        folders = [path for path in listing.folders if f"{path}/" in own]
        check_paths(store.url, [entry.path for entry in wanted], folders)
        with replacing(target) as partial:
            check_space(target.parent, sum(entry.size_bytes for entry in wanted))
            records = store.download(wanted, partial, Meter(label, wanted))
            for folder in folders:
                (partial / folder).mkdir(parents=True, exist_ok=True)
    sent = Journal(journal, url, run_id)
    with local_failures(str(target)):
        for record in records:
            sent.remember(entry_of(record.path, (target / record.path).stat()), record)
    sent.save()
    return len(records)
