"""Brings the checkpoints of a job back before its training starts, on whatever machine.

The run that restores takes the folder over: a run that still writes there notices it and stops.
"""

import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainjob.errors import CorruptData
from trainjob.storage.checkpoint_claim import claim_of_job, files_in, refuse_other_run
from trainjob.storage.checkpoint_index import standing_index
from trainjob.storage.checkpoint_store import CheckpointStore
from trainjob.storage.checkpoint_units import marked_steps, newest_step, unit_of
from trainjob.storage.failures import local_failures
from trainjob.storage.journal import Journal
from trainjob.storage.listing import Entry
from trainjob.storage.local_tree import entry_of
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.paths import check_paths
from trainjob.storage.replace import check_space, replacing
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import open_store

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """What was brought back.

    Attributes:
        step: The last step of `trainjob.checkpoint` among it; None if there is none.
        num_files: Files of all programs.
        size_bytes: Their size.
        damaged: Folders of steps that the store no longer holds as they were saved.
    """

    step: int | None
    num_files: int
    size_bytes: int
    damaged: tuple[str, ...] = ()


def restore_checkpoints(
    url: str,
    target: Path,
    settings: StoreSettings | None,
    *,
    job: str,
    run_id: str,
    journal: Path | None = None,
    label: str = "checkpoints",
) -> Restored:
    """Replace the folder `target` by the checkpoints at `url`, and take these over.

    If nothing was saved there yet, `target` stays as it is. A step that is damaged is left out
    with a warning if there is another one.

    Args:
        url: Where the checkpoints are kept; see `trainjob.storage.store.open_store`.
        target: The checkpoint folder of the run. It need not exist.
        settings: How to reach an object store; absent: the AWS_* environment.
        job: Name of the job; checkpoints of another one are refused.
        run_id: The run that goes on from here.
        journal: The file of the `CheckpointMirror` that will save to the same place.
        label: What watchers call the copy.

    Raises:
        CheckpointsOfAnother: If the folder belongs to another job or to other programs, or another
            run takes it over meanwhile.
        CorruptData: If no step is left, or a file of another program is not what was saved.
        StoreError: For everything else that a store can do wrong.
    """
    with CheckpointStore(url, settings, job=job, run_id=run_id) as remote:
        remote.claim()
        if not remote.files:
            with local_failures(str(target)):
                target.mkdir(parents=True, exist_ok=True)
            return Restored(None, 0, 0)
        check_paths(remote.store.url, list(remote.files))
        with replacing(target) as partial:
            check_space(target.parent, sum(file.size_bytes for file in remote.files.values()))
            damaged = _fetch_all(remote, partial, label)
            remote.drop([path for path in remote.files if unit_of(path) in damaged])
            _link_again(remote, partial)
            remote.check_run()
        files = [FileRecord(f.path, f.size_bytes, f.sha256) for f in remote.files.values()]
    _note(Journal(journal, url, run_id), target, files)
    size_bytes = sum(file.size_bytes for file in files)
    step = newest_step(file.path for file in files)
    return Restored(step, len(files), size_bytes, tuple(damaged))


def went_on_elsewhere(
    url: str,
    settings: StoreSettings | None,
    *,
    job: str,
    run_id: str,
    journal: Path,
) -> bool:
    """Say whether the store holds checkpoints that this machine has neither sent nor fetched.

    Then what lies here is that of an earlier time of the run, or of its job.

    Args:
        url: Where the checkpoints are kept.
        settings: How to reach an object store; absent: the AWS_* environment.
        job: Name of the job.
        run_id: This run.
        journal: The file of the `CheckpointMirror` of this machine.

    Raises:
        CheckpointsOfAnother: If the folder belongs to another job, or another run has taken it
            over.
        StoreError: For everything else that a store can do wrong.
    """
    sent = Journal(journal, url, run_id)
    with open_store(url, settings) as store:
        claim = claim_of_job(store, job)
        if claim is None:
            return False
        refuse_other_run(store, claim, run_id)
        found = standing_index(store, files_in(store), run_id)
    files = found[1].files if found else ()
    return not all(sent.has_sent(file.path, file.sha256) for file in files)


def _fetch_all(remote: CheckpointStore, target: Path, label: str) -> list[str]:
    """Copy everything but damaged steps, and return the names of these."""
    entries = [Entry(saved.path, saved.size_bytes, "") for saved in remote.files.values()]
    meter = Meter(label, entries)
    steps = marked_steps(remote.files)
    with remote.blaming_other_run():
        others = [path for path in remote.files if unit_of(path) not in steps]
        remote.fetch(others, target, meter)
    damaged: list[str] = []
    for folder in sorted(steps, key=steps.__getitem__, reverse=True):
        paths = [path for path in remote.files if unit_of(path) == folder]
        try:
            with remote.blaming_other_run():
                remote.fetch(paths, target, meter)
        except CorruptData as error:
            damaged.append(folder)
            if len(damaged) == len(steps):
                raise
            _LOGGER.warning("the checkpoint %s is damaged and is left out: %s", folder, error)
            shutil.rmtree(target / folder, ignore_errors=True)
    return damaged


def _link_again(remote: CheckpointStore, folder: Path) -> None:
    """Make links again where what they led to is there as it was: scripts look for links."""
    root = folder.resolve()
    for path, target in sorted(remote.links.items()):
        link = Path(os.path.normpath(root / path))
        led_to = Path(os.path.normpath(link.parent / target))
        if not _is_safe(root, link, led_to):
            continue
        content = _content(remote, link.relative_to(root))
        if content and content == _content(remote, led_to.relative_to(root)):
            if link.is_dir():
                shutil.rmtree(link)
            else:
                link.unlink()
            link.symlink_to(target)


def _is_safe(root: Path, link: Path, led_to: Path) -> bool:
    """Tell whether a link stays below `root` and leads to something else than itself.

    Anyone may have written the index.
    """
    if not (root in link.parents and root in led_to.parents):
        return False
    return link.parent.resolve() == link.parent and led_to.resolve() != link


def _content(remote: CheckpointStore, place: Path) -> dict[str, str]:
    """Return the digests of a file, or of those below a folder, by their paths from there."""
    start = place.as_posix()
    return {
        path.removeprefix(start): file.sha256
        for path, file in remote.files.items()
        if path == start or path.startswith(f"{start}/")
    }


def _note(journal: Journal, target: Path, files: Iterable[FileRecord]) -> None:
    """Note that these files need not be sent again."""
    with local_failures(str(target)):
        for record in files:
            journal.remember(entry_of(record.path, (target / record.path).stat()), record)
    journal.save()
