"""A large file on its way to S3: its parts, and the digests that are found while they are sent."""

import hashlib
import math
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from trainjob.storage.curl.multipart import (
    MAX_PARTS,
    Multipart,
    check_completed,
    etag_of_parts,
    told_at_end,
)
from trainjob.storage.curl.request import Answer, FilePart, Request
from trainjob.storage.curl.told import CRC64, crc64_of_parts, new_digest
from trainjob.storage.deadline import check_deadline
from trainjob.storage.listing import Entry
from trainjob.storage.manifest import FileRecord

PART_BYTES = 8 << 20
"""The size of a part, of files that need no larger ones. SeaweedFS keeps objects in such pieces."""

_WEIGHT_BYTES = 6 << 20  # libcurl holds a small piece of a part; this lets 8 be under way
_CHUNK_BYTES = 1 << 20
_LOOK_AT_DEADLINE_S = 0.2


@dataclass(frozen=True, slots=True)
class _Digests:
    """What is found of a file, all in hex; `parts` by CRC64 or MD5."""

    sha256: str
    parts: list[str]


class LargeFile:
    """The file `entry`, which is sent in parts while a thread digests it.

    Its parts are digested by CRC64 where the store does so, too. An MD5, of which ETags are made,
    takes 20 to 30 times as long: longer than the SHA-256.

    Args:
        file: Where it is.
        entry: The file as it was listed.
        upload: The object that it becomes.
        digesters: The threads.
    """

    def __init__(
        self,
        file: Path,
        entry: Entry,
        upload: Multipart,
        digesters: Executor,
    ) -> None:
        self.entry = entry
        self.upload = upload
        self._file = file
        self._part_bytes = max(PART_BYTES, math.ceil(entry.size_bytes / MAX_PARTS))
        self._num_parts = math.ceil(entry.size_bytes / self._part_bytes)
        self._was_repaired = False
        self._left = threading.Event()
        way = CRC64 if upload.has_checksum else "md5"
        work = (file, entry.size_bytes, self._part_bytes, way, self._left)
        self._digests = digesters.submit(_digest, *work)

    def leave(self) -> None:
        """Let it be: nobody wants the rest of it any longer."""
        self._left.set()

    @property
    def is_left(self) -> bool:
        """Whether nobody wants the rest."""
        return self._left.is_set()

    @property
    def is_sent(self) -> bool:
        """Whether the store has all parts."""
        return len(self.upload.tags) == self._num_parts

    @property
    def sent_bytes(self) -> int:
        """The size of the parts that the store has."""
        return sum(self._size_of(number) for number in self.upload.tags)

    def parts(self, numbers: Iterable[int] | None = None) -> Iterator[Request]:
        """Yield the requests for these parts, or for all; the tag is the number."""
        for number in numbers or range(1, self._num_parts + 1):
            if self.is_left:
                return
            body = FilePart(self._file, (number - 1) * self._part_bytes, self._size_of(number))
            yield self.upload.part(number, body, weight_bytes=_WEIGHT_BYTES, tag=number)

    def take_wrong_parts(self) -> list[int]:
        """Return the parts that did not arrive as they are, which are to be sent again, once.

        Where none is told of as it is, the store makes ETags in another way, or tells no checksums
        of parts: that says nothing.
        """
        wrong = [
            number
            for number, digest in enumerate(self._wait().parts, 1)
            if self.upload.told[number] != digest
        ]
        if self._was_repaired or len(wrong) == self._num_parts:
            return []
        self._was_repaired = True
        for number in wrong:
            self.upload.forget(number)
        return wrong

    def record(self, url: str, made: Answer) -> FileRecord | None:
        """Return what was sent, now that the object is there.

        Args:
            url: What messages call it.
            made: See `trainjob.storage.curl.multipart.told_at_end`.

        Returns:
            None: The store was asked for a checksum, and does not tell that of the file. Something
            was damaged on its way, or the store finds none, or another.

        Raises:
            CorruptData: If the object is not there, and no checksum was asked for.
        """
        digests = self._wait()
        told = told_at_end(made)
        path, size_bytes = self.entry.path, self.entry.size_bytes
        if self.upload.has_checksum:
            numbered = enumerate(digests.parts, 1)
            right = crc64_of_parts((part, self._size_of(number)) for number, part in numbered)
            is_it = told.etag and told.crc64 == right
            record = FileRecord(path, size_bytes, digests.sha256, told.etag, "checksum")
            return record if is_it else None
        etag = etag_of_parts([bytes.fromhex(part) for part in digests.parts])
        if made.request.method == "HEAD":
            check_completed(url, made, etag)
        return FileRecord(path, size_bytes, digests.sha256, etag)

    def _size_of(self, number: int) -> int:
        offset = (number - 1) * self._part_bytes
        return min(self._part_bytes, self.entry.size_bytes - offset)

    def _wait(self) -> _Digests:
        while True:
            try:
                return self._digests.result(_LOOK_AT_DEADLINE_S)
            except TimeoutError:
                check_deadline(str(self._file))


def _digest(
    file: Path, size_bytes: int, part_bytes: int, way: str, left: threading.Event
) -> _Digests:
    """Return the digests of a file and of its parts; of anything when `left` is set."""
    sha256, parts = hashlib.sha256(), []
    with file.open("rb", buffering=0) as opened:
        for offset in range(0, size_bytes, part_bytes):
            of_part = new_digest(way)
            left_bytes = min(part_bytes, size_bytes - offset)
            while left_bytes and not left.is_set():
                chunk = opened.read(min(_CHUNK_BYTES, left_bytes))
                if not chunk:  # it is shorter by now, which is seen before it counts
                    break
                sha256.update(chunk)
                of_part.update(chunk)
                left_bytes -= len(chunk)
            parts.append(of_part.hexdigest())
    return _Digests(sha256.hexdigest(), parts)
