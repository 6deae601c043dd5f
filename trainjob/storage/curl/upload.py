"""Sends files to S3 over a `Transport`, many at a time; no file is held in memory as a whole.

A small file is one request: what was read is what is digested and what is sent, and its digests go
with it, so that the store refuses other bytes. A large file goes in parts, which libcurl reads from
the file while a thread digests it. Of every file the ETag is found that S3 gives to its bytes; who
finds it in a listing knows that they arrived. A store that keeps checksums is asked to find that of
a large file, too: what it tells of the whole, with its ETag, proves the same for less.
"""

import os
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
    complete_fault,
)
from trainjob.storage.curl.objects import whole_object
from trainjob.storage.curl.request import Again, Answer, Request
from trainjob.storage.curl.told import CRC64, can_compare
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
        self._left: list[Multipart] = []
        self._digesters: ThreadPoolExecutor

    def send(self, files: Sequence[Entry]) -> None:
        """Send files; when this is left, nothing of them is under way."""
        with ThreadPoolExecutor(_NUM_DIGESTERS, "digest") as self._digesters:
            try:
                self._transport.run(self._requests(files), self._answered)
            except FileNotFoundError as error:  # libcurl was about to read it
                raise changed_file(Path(error.filename)) from error
            except OSError as error:
                with local_failures(str(error.filename or self._source)):
                    raise
            finally:
                for large in self._large.values():
                    large.leave()
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
        return self._beginning(entry)

    def _beginning(self, entry: Entry) -> Request:
        with_checksum = self._transport.finds_checksums and can_compare(CRC64)
        request = Multipart.begin(self._prefix + entry.path, with_checksum=with_checksum)
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

    def _finish(self, entry: Entry, record: FileRecord | None) -> None:
        if record is None or self._is_changed(entry):
            self._note_changed(entry)
            return
        self.records[entry.path] = record
        self._meter.finish_file()

    def _begun(self, entry: Entry, answer: Answer) -> _More:
        if not answer.is_ok:
            return self._without_checksum(entry)
        if fault := begin_fault(self._transport.url(answer.request.key), answer):
            return Again(fault)
        upload = Multipart(answer.request.key, answer)
        file = self._source / entry.path
        large = LargeFile(file, entry, upload, self._digesters)
        self._large[entry.path] = large
        return self._parts(large, None)

    def _without_checksum(self, entry: Entry) -> _More:
        """Begin a file anew: the store refuses it so, or does not tell the checksum that it has."""
        self._transport.finds_checksums = False
        if large := self._large.pop(entry.path, None):
            self._leave(large)
        return [self._beginning(entry)]

    def _parts(self, large: LargeFile, numbers: Sequence[int] | None) -> Iterator[Request]:
        for request in large.parts(numbers):
            request.tag = partial(self._part_sent, large, request.tag, numbers is None)
            yield request

    def _part_sent(self, large: LargeFile, number: int, is_new: bool, answer: Answer) -> _More:
        if large.is_left:
            return None
        if not answer.is_ok:
            return self._without_checksum(large.entry)
        large.upload.note(number, answer)
        if is_new:
            self._meter.add_bytes(answer.request.body_bytes)
        return self._all_parts_sent(large) if large.is_sent else None

    def _all_parts_sent(self, large: LargeFile) -> _More:
        if self._is_changed(large.entry):
            self._note_changed(large.entry)
            return None  # what was sent of it is aborted at the end
        if wrong := large.take_wrong_parts():
            return self._parts(large, wrong)
        return self._ending(large, large.upload.complete())

    def _ending(self, large: LargeFile, request: Request) -> _More:
        """Let the answer to a request be the end of a large file."""
        request.tag = partial(self._completed, large)
        return [request]

    def _completed(self, large: LargeFile, answer: Answer) -> _More:
        url = self._transport.url(large.upload.key)
        if answer.request.method == "POST":
            if not answer.is_ok and answer.status != HTTPStatus.NOT_FOUND:
                return self._without_checksum(large.entry)
            if fault := complete_fault(url, answer):
                return Again(fault)
            if answer.status == HTTPStatus.NOT_FOUND:
                return self._ending(large, large.upload.look())
        record = large.record(url, answer)
        if record is None and not self._is_changed(large.entry):
            return self._without_checksum(large.entry)
        del self._large[large.entry.path]
        self._finish(large.entry, record)
        return None

    def _abort_large(self) -> None:
        for large in self._large.values():
            self._leave(large)
        self._large.clear()
        if self._left:
            abort_all(self._transport, self._left)
            self._left.clear()

    def _leave(self, large: LargeFile) -> None:
        """Let a file be, whose parts are aborted at the end: some may still be under way."""
        large.leave()
        self._left.append(large.upload)
        self._meter.add_bytes(-large.sent_bytes)

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
