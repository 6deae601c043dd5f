"""Copies objects to files, many at a time, each verified while the others still arrive.

Small objects are digested and written at once. Larger ones are written where they belong as they
come, in parts of 8 MiB, and digested in threads. Every request names the version that was listed.
Where the store keeps checksums, it is asked for them: of what comes in parts, before the first one.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

from trainjob.errors import CorruptData, StoreError
from trainjob.storage.arrived_parts import ArrivedParts, PartsOfFile
from trainjob.storage.curl import arriving_file, retry
from trainjob.storage.curl.arrival import (
    ANSWERS,
    check_is_part,
    check_version,
    condition,
    too_short,
    wrong_digest,
)
from trainjob.storage.curl.arriving_file import ArrivingFile, Part, write_all
from trainjob.storage.curl.request import Again, Answer, Request
from trainjob.storage.curl.told import (
    ASK,
    checksum_of,
    is_doubtful,
    is_of,
    is_usable,
    proof_by,
    told_of,
)
from trainjob.storage.curl.transport import Transport
from trainjob.storage.deadline import check_deadline
from trainjob.storage.failures import local_failure, local_failures
from trainjob.storage.listing import Entry
from trainjob.storage.manifest import FileRecord, OnFile
from trainjob.storage.meter import Meter

SMALL_BYTES = 256 << 10
"""Objects up to this size are held in memory as a whole, which takes less processor time."""

_NUM_THREADS = 2
_MAX_DIGESTING = 16
_PART_WEIGHT_BYTES = 3 << 20  # what a part that is under way holds in memory, and more
_WAIT_S = 0.2
_UNEXPLAINED = 400
_REFUSALS = frozenset({*range(400, 500), 501} - {408, 429})
"""Answers to a HEAD that are final; they have no body, which would say why."""


class Download:
    """One copy of objects below ``s3://bucket/prefix`` to the folder `target`."""

    def __init__(
        self,
        transport: Transport,
        prefix: str,
        target: Path,
        meter: Meter,
        done: OnFile | None,
        parts: ArrivedParts | None = None,
    ) -> None:
        self._transport = transport
        self._prefix = prefix
        self._target = f"{target}/"
        self._meter = meter
        self._done = done
        self._parts = parts
        self._records: dict[str, FileRecord] = {}
        self._again: list[Entry] = []
        self._is_last_try = False
        self._open: set[ArrivingFile] = set()
        self._digesting: list[ArrivingFile] = []
        self._pool = ThreadPoolExecutor(_NUM_THREADS, "trainjob-digest")
        self._ask = ASK if transport.has_checksums else {}

    def run(self, files: Sequence[Entry]) -> list[FileRecord]:
        """Copy `files` and return what arrived, in their order; see `trainjob.storage.store`."""
        _make_folders(self._target, files)
        todo = files
        try:
            for tries in range(1, retry.TRIES + 1):
                self._is_last_try = tries == retry.TRIES
                self._again = []
                self._transport.run(self._requests(todo), self._arrived)
                while self._digesting:
                    self._wait_for_digest()
                if not (todo := self._again):
                    break
        finally:
            self._pool.shutdown(cancel_futures=True)
            for file in self._open:
                if file.is_unreadable:
                    self._forget_parts(file)
                file.close()
        return [self._records[entry.path] for entry in files]

    def _requests(self, files: Sequence[Entry]) -> Iterator[Request]:
        for entry in files:
            if entry.size_bytes <= SMALL_BYTES:
                yield Request(
                    "GET",
                    self._prefix + entry.path,
                    headers={**condition(entry), **self._ask},
                    answers=ANSWERS,
                    weight_bytes=entry.size_bytes,
                    tag=entry,
                )
                continue
            there = self._parts.of(entry, arriving_file.PART_BYTES) if self._parts else None
            told = there.told if there and is_usable(there.told) else ""
            if self._ask and not told and entry.size_bytes > arriving_file.PART_BYTES:
                yield self._look(entry, there)
            else:
                yield from self._large(entry, there, told)

    def _look(self, entry: Entry, there: PartsOfFile | None, *, is_last: bool = False) -> Request:
        """Return the request for the checksum of what comes in parts."""
        return Request(
            "HEAD",
            self._prefix + entry.path,
            headers={**condition(entry), **self._ask},
            answers=_REFUSALS,
            tag=partial(self._looked, entry, there, is_last),
        )

    def _looked(
        self, entry: Entry, there: PartsOfFile | None, is_last: bool, answer: Answer, url: str
    ) -> Iterator[Request]:
        """Yield the requests for what comes in parts, now that the store was asked for more."""
        if answer.status == _UNEXPLAINED and not is_last:
            # So it is for keys that are over and in another region. The answer to a GET says that,
            # and what is to be done about it is done before there is an answer.
            yield Request(
                "GET",
                self._prefix + entry.path,
                headers={**condition(entry), "range": "bytes=0-0"},
                answers=ANSWERS,
                weight_bytes=1,
                tag=lambda *_: iter([self._look(entry, there, is_last=True)]),
            )
            return
        if answer.status in ANSWERS or (answer.is_ok and answer.etag):
            check_version(answer, entry, url)
        yield from self._large(entry, there, checksum_of(answer) if answer.is_ok else "")

    def _large(self, entry: Entry, there: PartsOfFile | None, told: str) -> Iterator[Request]:
        """Yield the requests for those parts of a large object that are not there."""
        # The disk keeps what waits to be digested, but open files are few.
        while len(self._digesting) > _MAX_DIGESTING:
            self._wait_for_digest()
        path = self._target + entry.path
        file = ArrivingFile(path, entry, self._meter, self._pool, there, told)
        self._open.add(file)
        if file.is_there:
            self._digesting.append(file)
        yield from map(self._part_request, file.parts())

    def _part_request(self, part: Part) -> Request:
        entry = part.file.entry
        wanted = self._ask if part.is_whole else {"range": f"bytes={part.start}-{part.end - 1}"}
        return Request(
            "GET",
            self._prefix + entry.path,
            headers={**condition(entry), **wanted},
            answers=ANSWERS,
            sink=part.begin,
            weight_bytes=min(part.end - part.start, _PART_WEIGHT_BYTES),
            tag=part,
        )

    def _arrived(self, answer: Answer) -> Iterator[Request] | Again | None:
        url = self._transport.url(answer.request.key)
        tag = answer.request.tag
        if isinstance(tag, Part):
            return self._part_arrived(answer, tag, url)
        if not isinstance(tag, Entry):
            looked: Iterator[Request] = tag(answer, url)
            return looked
        check_version(answer, tag, url)
        if self._digesting:  # that they are finished is told before the small ones all are
            self._settle()
        return self._small_arrived(answer, tag, url)

    def _small_arrived(self, answer: Answer, entry: Entry, url: str) -> Again | None:
        body = answer.body
        size_bytes = len(body)
        if size_bytes != entry.size_bytes:
            return Again(too_short(url, size_bytes, entry))
        sha256 = hashlib.sha256(body).hexdigest()
        told = told_of(answer, entry.version)
        if told and not is_of(told, body, sha256):
            if not is_doubtful(told, answer):
                return Again(wrong_digest(url, told))
            told = ""
        path = self._target + entry.path
        try:
            write_file(path, body)
        except OSError as error:
            raise local_failure(path, error) from error
        self._meter.add_bytes(size_bytes)
        self._finished(FileRecord(entry.path, size_bytes, sha256, verified=proof_by(told)))
        return None

    def _part_arrived(self, answer: Answer, part: Part, url: str) -> Again | None:
        file = part.file
        check_version(answer, file.entry, url)
        if not part.is_whole:
            check_is_part(answer, url)
        if (error := part.size_error(url)) is not None:
            return Again(error)
        told = file.told or told_of(answer, file.entry.version)
        told = "" if is_doubtful(told, answer) else told
        if self._parts is not None and not part.is_whole:
            size = arriving_file.PART_BYTES
            self._parts.note(file.entry, size, part.start // size, told)
        if file.complete(part, told):
            self._digesting.append(file)
        self._settle()
        return None

    def _settle(self) -> None:
        """Finish the files that are digested by now."""
        ready = [file for file in self._digesting if file.is_digested]
        for file in ready:
            self._digesting.remove(file)
            self._open.remove(file)
            file.close()
            url = self._transport.url(self._prefix + file.entry.path)
            try:
                record = file.record(url)
            except CorruptData as error:
                self._forget_parts(file)
                self._meter.add_bytes(-file.entry.size_bytes)
                self._failed(file.entry, error)
            else:
                self._finished(record)

    def _wait_for_digest(self) -> None:
        """Wait, some time, for the file that has been waiting the longest."""
        oldest = self._digesting[0]
        check_deadline(self._transport.url(self._prefix + oldest.entry.path))
        if oldest.digesting is not None:
            wait([oldest.digesting], timeout=_WAIT_S)
        self._settle()

    def _forget_parts(self, file: ArrivingFile) -> None:
        if self._parts is not None:
            self._parts.forget(file.entry.path)

    def _failed(self, entry: Entry, error: StoreError) -> None:
        if self._is_last_try:
            raise error
        self._again.append(entry)

    def _finished(self, record: FileRecord) -> None:
        self._records[record.path] = record
        self._meter.finish_file()
        if self._done is not None:
            self._done(record)


def write_file(path: str, data: bytes) -> None:
    """Write a small file; raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        if os.write(fd, data) < len(data):
            write_all(fd, [data], len(data), 0)  # which tells why
    finally:
        os.close(fd)


def _make_folders(target: str, files: Sequence[Entry]) -> None:
    """Make the folders of all files, each once."""
    for folder in {entry.path.rpartition("/")[0] for entry in files}:
        with local_failures(target + folder):
            Path(target + folder).mkdir(parents=True, exist_ok=True)
