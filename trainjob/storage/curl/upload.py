"""Sends files to S3 over a `Transport`, many at a time; no file is held in memory as a whole.

A small file is one request: what was read is what is digested and what is sent, and its digests go
with it, so that the store refuses other bytes. A large file goes in parts, which libcurl reads from
the file while a thread digests it. Of every file the ETag is found that S3 gives to its bytes; who
finds it in a listing knows that they arrived.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from pathlib import Path

from trainjob.errors import TreeChanged
from trainjob.storage.curl.large_file import LargeFile
from trainjob.storage.curl.multipart import (
    Multipart,
    abort_all,
    begin_fault,
    check_completed,
    complete_fault,
)
from trainjob.storage.curl.objects import whole_object
from trainjob.storage.curl.request import Again, Answer, Request
from trainjob.storage.curl.transport import Transport
from trainjob.storage.failures import local_failures
from trainjob.storage.listing import Entry
from trainjob.storage.local_tree import changed as changed_file
from trainjob.storage.local_tree import entry_of
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter

MULTIPART_BYTES = 16 << 20
"""Larger files go in parts."""

_NUM_DIGESTERS = 2

_More = Iterable[Request] | Again | None


def upload_files(
    transport: Transport,
    prefix: str,
    source: Path,
    files: Sequence[Entry],
    meter: Meter,
    changed: list[str] | None = None,
) -> list[FileRecord]:
    """Copy `files` from the folder `source` to keys below `prefix`; see `Store.upload`."""
    upload = _Upload(transport, prefix, source, meter, changed)
    left: Sequence[Entry] = files
    while left:
        try:
            upload.send(left)
            break
        except TreeChanged:  # a file became shorter while it was sent, which ends the others, too
            still_left = upload.without_changed(left)
            if changed is None or len(still_left) == len(left):
                raise
            left = still_left
    return [upload.records[entry.path] for entry in files if entry.path in upload.records]


class _Upload:
    """One copy of files; `records` are those that arrived, by path."""

    def __init__(
        self,
        transport: Transport,
        prefix: str,
        source: Path,
        meter: Meter,
        changed: list[str] | None,
    ) -> None:
        self.records: dict[str, FileRecord] = {}
        self._transport = transport
        self._prefix = prefix
        self._source = source
        self._folder = f"{source}/"  # no Path where something is done ten thousand times
        self._meter = meter
        self._changed = changed
        self._large: dict[str, LargeFile] = {}
        self._ending = threading.Event()
        self._digesters: ThreadPoolExecutor

    def send(self, files: Sequence[Entry]) -> None:
        """Send files; when this is left, nothing of them is under way."""
        self._ending.clear()
        with ThreadPoolExecutor(_NUM_DIGESTERS, "digest") as self._digesters:
            try:
                self._transport.run(self._requests(files), self._answered)
            except FileNotFoundError as error:  # libcurl was about to read it
                raise changed_file(Path(error.filename)) from error
            except OSError as error:
                with local_failures(str(error.filename or self._source)):
                    raise
            finally:
                self._ending.set()
                self._digesters.shutdown(wait=False, cancel_futures=True)
                self._abort_large()

    def without_changed(self, files: Sequence[Entry]) -> list[Entry]:
        """Return those of `files` that are to be sent yet; the others are noted as changed."""
        left = [entry for entry in files if entry.path not in self.records]
        for entry in left:
            if self._changed is not None and self._is_changed(entry):
                self._changed.append(entry.path)
        return [entry for entry in left if entry.path not in (self._changed or ())]

    def _requests(self, files: Sequence[Entry]) -> Iterator[Request]:
        for entry in files:
            is_large = entry.size_bytes > MULTIPART_BYTES
            request = self._begin(entry) if is_large else self._whole(entry)
            if request is None:
                self._note_changed(entry)
            else:
                yield request

    def _begin(self, entry: Entry) -> Request | None:
        """Return the request that begins a large file; None if it is not as it was listed."""
        if self._is_changed(entry):
            return None
        request = Multipart.begin(self._prefix + entry.path)
        request.tag = partial(self._begun, entry)
        return request

    def _whole(self, entry: Entry) -> Request | None:
        """Return the request for a small file; None if it is not as it was listed."""
        data = self._read(entry)
        if data is None:
            return None
        record, request = whole_object(self._prefix + entry.path, entry.path, data)
        request.tag = partial(self._sent, entry, record)
        return request

    def _answered(self, answer: Answer) -> _More:
        more: _More = answer.request.tag(answer)
        return more

    def _read(self, entry: Entry) -> bytes | None:
        """Return the content of a small file; None if it is not the one that was listed."""
        try:
            # Without O_NONBLOCK, a pipe in its place would be waited for.
            opened = os.open(self._folder + entry.path, os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            data = os.read(opened, entry.size_bytes + 1)
            is_same = entry_of(entry.path, os.fstat(opened)) == entry
        finally:
            os.close(opened)
        return data if is_same and len(data) == entry.size_bytes else None

    def _sent(self, entry: Entry, record: FileRecord, _: Answer) -> None:
        self._meter.add_bytes(entry.size_bytes)
        self._finish(entry, record)

    def _finish(self, entry: Entry, record: FileRecord) -> None:
        if self._is_changed(entry):
            self._note_changed(entry)
            return
        self.records[entry.path] = record
        self._meter.finish_file()

    def _begun(self, entry: Entry, answer: Answer) -> _More:
        if fault := begin_fault(self._transport.url(answer.request.key), answer):
            return Again(fault)
        upload = Multipart(answer.request.key, answer)
        file = self._source / entry.path
        large = LargeFile(file, entry, upload, self._digesters, self._ending)
        self._large[entry.path] = large
        return self._parts(large, None)

    def _parts(self, large: LargeFile, numbers: Sequence[int] | None) -> Iterator[Request]:
        for request in large.parts(numbers):
            request.tag = partial(self._part_sent, large, request.tag, numbers is None)
            yield request

    def _part_sent(self, large: LargeFile, number: int, is_new: bool, answer: Answer) -> _More:
        large.upload.tags[number] = answer.etag
        if is_new:
            self._meter.add_bytes(answer.request.body_bytes)
        return self._all_parts_sent(large) if large.is_sent else None

    def _all_parts_sent(self, large: LargeFile) -> _More:
        if self._is_changed(large.entry):
            self._note_changed(large.entry)
            return None  # what was sent of it is aborted at the end
        if wrong := large.take_wrong_parts():
            return self._parts(large, wrong)
        request = large.upload.complete()
        request.tag = partial(self._completed, large, large.record())
        return [request]

    def _completed(self, large: LargeFile, record: FileRecord, answer: Answer) -> _More:
        url = self._transport.url(large.upload.key)
        if answer.request.method == "HEAD":
            check_completed(url, answer, record.etag)
        elif fault := complete_fault(url, answer):
            return Again(fault)
        elif answer.status == HTTPStatus.NOT_FOUND:
            request = large.upload.look()
            request.tag = partial(self._completed, large, record)
            return [request]
        del self._large[large.entry.path]
        self._finish(large.entry, record)
        return None

    def _abort_large(self) -> None:
        if self._large:
            abort_all(self._transport, [large.upload for large in self._large.values()])
            for large in self._large.values():
                self._meter.add_bytes(-large.sent_bytes)
            self._large.clear()

    def _note_changed(self, entry: Entry) -> None:
        if self._changed is None:
            raise changed_file(self._source / entry.path)
        self._changed.append(entry.path)

    def _is_changed(self, entry: Entry) -> bool:
        try:
            found = os.stat(self._folder + entry.path)  # noqa: PTH116 - see _folder
        except (FileNotFoundError, NotADirectoryError):
            return True
        return entry_of(entry.path, found) != entry
