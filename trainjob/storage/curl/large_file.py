"""A large file on its way to S3: its parts, and the digests that are found while they are sent."""

import hashlib
import math
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from trainjob.storage.curl.multipart import MAX_PARTS, Multipart, etag_of_parts
from trainjob.storage.curl.request import FilePart, Request
from trainjob.storage.deadline import check_deadline
from trainjob.storage.listing import Entry
from trainjob.storage.manifest import FileRecord

PART_BYTES = 16 << 20
"""The size of a part, of files that need no larger ones."""

_WEIGHT_BYTES = 6 << 20  # libcurl holds a small piece of a part; this lets 8 be under way
_CHUNK_BYTES = 1 << 20
_LOOK_AT_DEADLINE_S = 0.2


@dataclass(frozen=True, slots=True)
class _Digests:
    sha256: str
    parts: list[bytes]


class LargeFile:
    """The file `entry`, which is sent in parts while a thread digests it.

    Args:
        file: Where it is.
        entry: The file as it was listed.
        upload: The object that it becomes.
        digesters: The threads.
        ending: Set when nobody wants the digests any longer.
    """

    def __init__(
        self,
        file: Path,
        entry: Entry,
        upload: Multipart,
        digesters: Executor,
        ending: threading.Event,
    ) -> None:
        self.entry = entry
        self.upload = upload
        self._file = file
        self._part_bytes = max(PART_BYTES, math.ceil(entry.size_bytes / MAX_PARTS))
        self._num_parts = math.ceil(entry.size_bytes / self._part_bytes)
        self._was_repaired = False
        self._digests = digesters.submit(_digest, file, entry.size_bytes, self._part_bytes, ending)

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
            body = FilePart(self._file, (number - 1) * self._part_bytes, self._size_of(number))
            yield Request(
                "PUT",
                self.upload.key,
                query=self.upload.query(number),
                body=body,
                weight_bytes=_WEIGHT_BYTES,
                tag=number,
            )

    def take_wrong_parts(self) -> list[int]:
        """Return the parts that did not arrive as they are, which are to be sent again, once.

        Where no ETag is the MD5 of its part, the store makes them in another way, and they tell
        nothing.
        """
        digests = self._wait()
        wrong = [
            number
            for number, digest in enumerate(digests.parts, 1)
            if self.upload.tags[number].strip('"').lower() != digest.hex()
        ]
        if self._was_repaired or len(wrong) == self._num_parts:
            return []
        self._was_repaired = True
        for number in wrong:
            del self.upload.tags[number]
        return wrong

    def record(self) -> FileRecord:
        """Return what was sent."""
        digests = self._wait()
        etag = etag_of_parts(digests.parts)
        return FileRecord(self.entry.path, self.entry.size_bytes, digests.sha256, etag)

    def _size_of(self, number: int) -> int:
        offset = (number - 1) * self._part_bytes
        return min(self._part_bytes, self.entry.size_bytes - offset)

    def _wait(self) -> _Digests:
        while True:
            try:
                return self._digests.result(_LOOK_AT_DEADLINE_S)
            except TimeoutError:
                check_deadline(str(self._file))


def _digest(file: Path, size_bytes: int, part_bytes: int, ending: threading.Event) -> _Digests:
    """Return the digests of a file and of its parts; of anything when `ending` is set."""
    sha256, parts = hashlib.sha256(), []
    with file.open("rb", buffering=0) as opened:
        for offset in range(0, size_bytes, part_bytes):
            md5 = hashlib.md5(usedforsecurity=False)
            left_bytes = min(part_bytes, size_bytes - offset)
            while left_bytes and not ending.is_set():
                chunk = opened.read(min(_CHUNK_BYTES, left_bytes))
                if not chunk:  # it is shorter by now, which is seen before it counts
                    break
                sha256.update(chunk)
                md5.update(chunk)
                left_bytes -= len(chunk)
            parts.append(md5.digest())
    return _Digests(sha256.hexdigest(), parts)
