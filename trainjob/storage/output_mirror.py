"""Takes outputs to a store while the script still runs, as far as they are finished.

It is a head start for `trainjob.storage.upload.upload_tree`, which alone makes the tree complete:
it sends the rest, removes what the script has deleted again, and reads everything back.
"""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from trainjob.errors import StoreError
from trainjob.storage.claim import CLAIM, is_bookkeeping, own_files, write_claim
from trainjob.storage.journal import Journal
from trainjob.storage.listing import Entry
from trainjob.storage.live_tree import Look, is_temporary, look_at, refuse_link
from trainjob.storage.meter import Meter
from trainjob.storage.own_files import SUCCESS
from trainjob.storage.send import discard_unfinished, send, unsent
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, open_store
from trainjob.storage.sync import SyncReport


class OutputMirror:
    """The folder `source` and its copy at `url`; see `trainjob.storage.sync.Mirror`.

    Args:
        source: The folder that the script writes.
        url: An empty folder, or that of the same run; see `trainjob.storage.store.open_store`.
        settings: How to reach an object store; absent: the AWS_* environment.
        run_id: The run.
        label: What reports and logs call it.
        journal: A file that notes what was sent, outside `source`; `upload_tree` gets the same.
    """

    rest_factor: ClassVar[float] = 20.0

    def __init__(
        self,
        source: Path,
        url: str,
        settings: StoreSettings | None,
        *,
        run_id: str,
        label: str,
        journal: Path | None = None,
    ) -> None:
        self.label = label
        self.url = url
        self._source = source
        self._settings = settings
        self._run_id = run_id
        self._journal = Journal(journal, url, run_id)
        self._before = Look()
        self._is_free = False

    def look(self) -> bool:
        """Note what the folder holds now; return whether something there is not settled."""
        look, self._before = self._look(), self._before
        is_unsettled = not all(
            self._before.has(entry) or self._journal.record(entry) for entry in look.files.values()
        )
        self._before = look
        return is_unsettled

    def push(self, is_final: bool) -> SyncReport:
        """Send what has not changed since the last look; at the end, what there is.

        Raises:
            OutputNotEmpty: If there is something at the url that this run did not write.
            StoreError: For everything else that a store can do wrong.
        """
        look, before = self._look(), self._before
        self._before = look
        ready = [entry for entry in look.files.values() if is_final or before.has(entry)]
        num_sent = 0
        if not self._is_free or not all(map(self._journal.record, ready)):
            with open_store(self.url, self._settings) as store:
                num_sent = self._send(store, ready)
        return replace(self.known(), num_sent=num_sent, odd=look.still_odd(before))

    def known(self, error: StoreError | None = None) -> SyncReport:
        """Return what is saved and what is missing as far as this side knows."""
        files = self._before.files.values()
        records = [record for entry in files if (record := self._journal.record(entry))]
        saved = {record.path for record in records}
        missing = self._before.files.keys() - saved | set(self._before.odd)
        size_bytes = sum(record.size_bytes for record in records)
        return SyncReport(
            self.label, self.url, len(records), size_bytes, tuple(sorted(missing)), error=error
        )

    def _look(self) -> Look:
        refuse_link(self._source)
        return look_at(self._source, self.url, _is_wanted)

    def _send(self, store: Store, ready: list[Entry]) -> int:
        """Send what is not there, under a claim, and return how many files that were."""
        present = {entry.path: entry.size_bytes for entry in store.list_files().files}
        own = own_files(store, set(present), self._run_id)
        if own and not self._is_free:  # a process of this run may have been killed while it sent
            discard_unfinished(store, own)
        self._is_free = True
        to_send = unsent(ready, self._journal, present)
        if not to_send:
            return 0
        if SUCCESS in present:  # of an earlier try of this run, whose result is now replaced
            store.delete([SUCCESS])
        planned = {entry.path for entry in to_send}
        if CLAIM not in present or planned - own:
            write_claim(store, self._run_id, own | planned)
        changed: list[str] = []
        send(store, self._source, to_send, self._journal, Meter(None, to_send), changed)
        return len(to_send) - len(changed)


def _is_wanted(path: str) -> bool:
    """Say whether a file may be finished: hidden ones and those of such a name wait for the end."""
    is_hidden = any(part.startswith(".") for part in path.split("/"))
    return not (is_hidden or is_temporary(path) or is_bookkeeping(path))
