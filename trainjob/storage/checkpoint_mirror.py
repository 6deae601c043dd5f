"""Keeps the checkpoints of a run in a store while it trains.

What counts in the store, and how it stays restorable at every moment, is said in
`checkpoint_index` and `checkpoint_store`; here is decided what to send and what to delete.
"""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import ClassVar

from trainjob.errors import StoreError, TreeChanged
from trainjob.storage.checkpoint_index import OTHER_PLACE
from trainjob.storage.checkpoint_store import CheckpointStore
from trainjob.storage.checkpoint_units import (
    Restlessness,
    deleted_files,
    has_unsettled,
    is_wanted,
    marked_steps,
    ready_files,
    step_of,
    unit_of,
)
from trainjob.storage.failures import local_failures
from trainjob.storage.journal import Journal
from trainjob.storage.listing import Entry, total_size
from trainjob.storage.live_tree import Look, look_at
from trainjob.storage.local_tree import copy_file, write_back
from trainjob.storage.meter import Meter
from trainjob.storage.settings import StoreSettings
from trainjob.storage.sync import SyncReport


class CheckpointMirror:
    """The folder `source` and its copy at `url`; see `trainjob.storage.sync.Mirror`.

    A run that starts takes the folder over by `restore_checkpoints`; a mirror writes only into an
    empty folder or into one of its own run.

    Args:
        source: The checkpoint folder of the run. It need not exist yet.
        url: Where the checkpoints are kept; see `trainjob.storage.store.open_store`.
        settings: How to reach an object store; absent: the AWS_* environment.
        job: Name of the job that the folder belongs to.
        run_id: The run.
        journal: A file that notes what was sent, outside `source`.
        label: What reports and logs call it.
    """

    rest_factor: ClassVar[float] = 2.0

    def __init__(
        self,
        source: Path,
        url: str,
        settings: StoreSettings | None,
        *,
        job: str,
        run_id: str,
        journal: Path | None = None,
        label: str = "checkpoints",
    ) -> None:
        self.label = label
        self.url = url
        self._source = source
        self._settings = settings
        self._job = job
        self._run_id = run_id
        self._journal = Journal(journal, url, run_id)
        self._before = Look()
        self._restlessness = Restlessness()

    def look(self) -> bool:
        """Note what the folder holds now; return whether something there is not settled."""
        look, self._before = self._look(), self._before
        is_unsettled = has_unsettled(look, self._before)
        self._before = look
        return is_unsettled

    def push(self, is_final: bool) -> SyncReport:
        """Send what is ready, and delete in the store what the run has deleted.

        Raises:
            CheckpointsOfAnother: If the folder in the store belongs to another job or run.
            StoreError: For everything else that a store can do wrong.
        """
        look, again, before = self._look(), self._look(), self._before
        self._before = look
        num_sent = 0
        self._restlessness.note(look, before)
        restless = self._restlessness.units()
        groups = ready_files(look, again, before, is_final=is_final, restless=restless)
        with self._open() as remote:
            remote.load()
            self._note_links(remote, look)
            # A step that was saved whole and has lost its marker is not sent half over that.
            unmarked = marked_steps(remote.files).keys() - marked_steps(look.files)
            groups = [[e for e in group if unit_of(e.path) not in unmarked] for group in groups]
            for group in groups:
                num_sent += self._send(remote, self._unsaved(remote, group))
            known = [path for path in remote.files if self._journal.knows(path)]
            gone = deleted_files(known, look, Look() if is_final else before)
            remote.drop(gone)
            self._journal.forget(gone)
            if is_final:
                # Who looks into the folder by hand is to find the last content of every file.
                moved = [entry for entry in chain(*groups) if _is_aside(remote, entry)]
                self._send(remote, moved)
            remote.sweep()
            self._journal.save()
            saved = remote.files.values()
            size_bytes = sum(file.size_bytes for file in saved)
            return SyncReport(
                self.label,
                self.url,
                len(saved),
                size_bytes,
                self._missing(look),
                num_sent,
                look.still_odd(before),
            )

    def known(self, error: StoreError | None = None) -> SyncReport:
        """Return what is saved and what is missing as far as this side knows."""
        look = self._before
        saved = [entry for entry in look.files.values() if self._journal.record(entry)]
        missing = self._missing(look)
        return SyncReport(self.label, self.url, len(saved), total_size(saved), missing, error=error)

    def _open(self) -> CheckpointStore:
        return CheckpointStore(self.url, self._settings, job=self._job, run_id=self._run_id)

    def _look(self) -> Look:
        # The longer of the two keys that a file may have, see `CheckpointStore.send`.
        return look_at(self._source, f"{self.url.rstrip('/')}/{OTHER_PLACE}", is_wanted)

    def _note_links(self, remote: CheckpointStore, look: Look) -> None:
        if look.files and remote.links != look.links:
            remote.note_links(look.links)

    def _unsaved(self, remote: CheckpointStore, entries: Iterable[Entry]) -> list[Entry]:
        return [entry for entry in entries if not self._is_saved(remote, entry)]

    def _is_saved(self, remote: CheckpointStore, entry: Entry) -> bool:
        saved = remote.files.get(entry.path)
        if saved is None or saved.size_bytes != entry.size_bytes:
            return False
        record = self._journal.record(entry)
        if record is None:
            file = self._source / entry.path
            write_back(file)
            try:
                with local_failures(str(file)):
                    record = copy_file(file, entry, None, Meter(None, ()))
            except TreeChanged:
                return False
            if record.sha256 == saved.sha256:
                self._journal.remember(entry, record)
        return record.sha256 == saved.sha256

    def _send(self, remote: CheckpointStore, entries: list[Entry]) -> int:
        if not entries:
            return 0
        for entry in entries:
            write_back(self._source / entry.path)
        # Announced, so that a later process of this machine knows whatever it finds for its own.
        sent = remote.send(self._source, entries, self._journal.announce)
        for entry, record in sent:
            self._journal.remember(entry, record)
        self._journal.save()
        return len(sent)

    def _missing(self, look: Look) -> tuple[str, ...]:
        """Return the files that are not saved as they are; of a step, its folder."""
        paths = [entry.path for entry in look.files.values() if not self._journal.record(entry)]
        names = {f"{unit_of(path)}/" if step_of(path) is not None else path for path in paths}
        return tuple(sorted(names | set(look.odd)))


def _is_aside(remote: CheckpointStore, entry: Entry) -> bool:
    saved = remote.files.get(entry.path)
    return saved is not None and saved.place == OTHER_PLACE
