"""Keeps the logs of a run in a store while it trains (ModelArts: Persistent Log Saving).

Object stores cannot append, so a file that has grown is sent again as a whole, up to the size that
it had when the pass began. The pauses between passes grow with their length (`rest_factor`), which
keeps the sum of all passes near the size of the logs.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from trainjob.errors import CorruptData, StoreError, TreeChanged
from trainjob.storage.claim import CLAIM, own_files, write_claim
from trainjob.storage.deadline import check_deadline
from trainjob.storage.journal import Journal
from trainjob.storage.listing import Entry
from trainjob.storage.live_tree import Look, is_temporary, look_at
from trainjob.storage.local_tree import changed, open_listed
from trainjob.storage.manifest import FileRecord
from trainjob.storage.masking import Masked
from trainjob.storage.read_back import read_back
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, open_store
from trainjob.storage.sync import SyncReport

_RECORDS = "records"
_TELLING_RECORDS = ("error-", "exit-", "stall", "stack")
_MAX_RECORD_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_ATTEMPT = re.compile(r"attempt-(\d+)/")


class LogMirror:
    """The folder `source` and its copy at `url`; see `trainjob.storage.sync.Mirror`.

    Args:
        source: The folder with the logs of all attempts.
        url: An empty folder, or that of the same run; see `trainjob.storage.store.open_store`.
        settings: How to reach an object store; absent: the AWS_* environment.
        run_id: The run.
        secrets: What is replaced by ``***`` in what is sent.
        journal: A file that notes what was sent, outside `source`.
        label: What reports and logs call it.
    """

    rest_factor: ClassVar[float] = 20.0

    def __init__(
        self,
        source: Path,
        url: str,
        settings: StoreSettings | None,
        *,
        run_id: str,
        secrets: Sequence[str] = (),
        journal: Path | None = None,
        label: str = "logs",
    ) -> None:
        self.label = label
        self.url = url
        self._source = source
        self._settings = settings
        self._run_id = run_id
        self._secrets = tuple(secrets)
        self._journal = Journal(journal, url, run_id)
        self._last = Look()

    def look(self) -> bool:
        """Return False: a log need not be finished to be sent."""
        return False

    def push(self, is_final: bool) -> SyncReport:
        """Send every file that has grown; at the end, prove all.

        Raises:
            OutputNotEmpty: If there is something at the url that this run did not write.
            StoreError: For everything else that a store can do wrong.
        """
        self._last = look_at(self._source, self.url, _is_wanted)
        files = [entry for entry in self._last.files.values() if _is_small_enough(entry)]
        num_sent = 0
        with open_store(self.url, self._settings) as store:
            present = {entry.path: entry.size_bytes for entry in store.list_files().files}
            self._claim(store, present, files)
            for entry in files:
                record = self._journal.record(entry)
                if record is None or present.get(entry.path) != record.size_bytes:
                    num_sent += self._send(store, entry, is_final=is_final)
            if is_final:
                self._prove(store, files)
        report = self.known()
        return SyncReport(
            self.label, self.url, report.num_files, report.size_bytes, report.missing, num_sent
        )

    def known(self, error: StoreError | None = None) -> SyncReport:
        """Return what is saved and what is missing as far as this side knows."""
        files = [entry for entry in self._last.files.values() if _is_small_enough(entry)]
        records = self._records(files)
        saved = {record.path for record in records}
        missing = {entry.path for entry in files} - saved | set(self._last.odd)
        size_bytes = sum(record.size_bytes for record in records)
        return SyncReport(
            self.label, self.url, len(records), size_bytes, tuple(sorted(missing)), error=error
        )

    def _claim(self, store: Store, present: dict[str, int], files: Iterable[Entry]) -> None:
        own = own_files(store, set(present), self._run_id)
        planned = {entry.path for entry in files}
        if CLAIM not in present or planned - own:
            write_claim(store, self._run_id, own | planned)

    def _send(self, store: Store, entry: Entry, *, is_final: bool) -> bool:
        """Send a file up to the size that it had; return whether it still was there."""
        text = Masked(_read(self._source / entry.path, entry), self._secrets, is_whole=is_final)
        self._journal.forget([entry.path])
        try:
            record = store.upload_chunks(entry.path, text)
        except TreeChanged:
            return False
        if not text.is_cut:
            self._journal.remember(entry, record)
            self._journal.save()
        return True

    def _prove(self, store: Store, files: Iterable[Entry]) -> None:
        try:
            read_back(store, self._records(files), None)
        except CorruptData:
            self._journal.clear()  # so that the next try sends again
            raise

    def _records(self, files: Iterable[Entry]) -> list[FileRecord]:
        return [record for entry in files if (record := self._journal.record(entry))]


def num_logged_attempts(url: str, settings: StoreSettings | None, run_id: str) -> int:
    """Return one more than the number of the last attempt of a run that has logs at `url`.

    Args:
        url: Where the logs of the run are saved.
        settings: How to reach an object store; absent: the AWS_* environment.
        run_id: The run.

    Raises:
        OutputNotEmpty: If there is something at the url that this run did not write.
        StoreError: For everything else that a store can do wrong.
    """
    with open_store(url, settings) as store:
        own = own_files(store, {entry.path for entry in store.list_files().files}, run_id)
    return max((int(found[1]) + 1 for found in map(_ATTEMPT.match, own) if found), default=0)


def _is_wanted(path: str) -> bool:
    *folders, name = path.split("/")
    if _RECORDS in folders:
        return folders[-1] == _RECORDS and name.startswith(_TELLING_RECORDS)
    return not is_temporary(path)


def _is_small_enough(entry: Entry) -> bool:
    return _RECORDS not in entry.path.split("/") or entry.size_bytes <= _MAX_RECORD_BYTES


def _read(file: Path, entry: Entry) -> Iterator[bytes]:
    """Yield the bytes that a file had when it was listed."""
    size_bytes = entry.size_bytes
    try:
        with open_listed(file, entry) as opened:
            while size_bytes and (chunk := opened.read(min(size_bytes, _CHUNK_BYTES))):
                check_deadline(str(file))
                size_bytes -= len(chunk)
                yield chunk
    except FileNotFoundError as error:
        raise changed(file) from error
