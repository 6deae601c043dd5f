"""A file that arrives in parts, in any order, and is digested in threads as it grows."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trainjob.errors import StoreError
from trainjob.storage.arrived_parts import PartsOfFile
from trainjob.storage.curl.arrival import too_short, wrong_digest
from trainjob.storage.curl.told import digest_for, proof_by
from trainjob.storage.failures import local_failures
from trainjob.storage.listing import Entry
from trainjob.storage.local_tree import changed
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter

PART_BYTES = 8 << 20

_READ_BYTES = 512 << 10
_DIGEST_BYTES = 64 << 20  # at a time, so that a thread does not outlive a stop by long
_MAX_PIECES = 4
"""Pieces of 16 KiB that are written at a time. Of more at once, Linux makes large folios, from
blocks of 128 KiB and more, which a virtual machine may have given back to its host (free page
reporting): to touch them again took 3 s/GB where blocks of up to 64 KiB took 1."""


class ArrivingFile:
    """The file at `path`, which is to become the object of `entry`.

    It is made anew, unless parts of it are there. What was written is read back from the page cache
    to be digested, so that no byte is kept in memory; a thread digests the parts in their order
    while later ones arrive.

    Args:
        path: Where it is.
        entry: The object.
        meter: Counts its bytes, those that are there included.
        pool: Has the threads.
        there: Its parts that are there, of `PART_BYTES` each; None: there are none.
        told: What the store tells of its bytes, if that is known; see `trainjob.storage.curl.told`.

    Attributes:
        digesting: The work of the thread that digests, if there was any yet.
        told: What the store tells of its bytes; empty if nothing, or not yet.
    """

    def __init__(
        self,
        path: str,
        entry: Entry,
        meter: Meter,
        pool: ThreadPoolExecutor,
        there: PartsOfFile | None,
        told: str = "",
    ) -> None:
        self.path = path
        self.entry = entry
        self.meter = meter
        self.digesting: Future[None] | None = None
        self._pool = pool
        fresh = 0 if there else os.O_TRUNC
        with local_failures(path):
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | fresh, 0o666)
            if there:
                os.ftruncate(self.fd, entry.size_bytes)
        flags = there.flags if there else b""
        self._arrived = bytearray(flags.ljust(-(-entry.size_bytes // PART_BYTES), b"\0"))
        self._digested_bytes = 0
        self._sha256 = hashlib.sha256()
        self._take(told)
        there_bytes = there.size_bytes(entry.size_bytes) if there else 0
        self._missing_bytes = entry.size_bytes - there_bytes
        meter.add_bytes(there_bytes)
        self._digest_next()

    @property
    def is_there(self) -> bool:
        """Whether every byte is there."""
        return self._missing_bytes == 0

    def parts(self) -> Iterator["Part"]:
        """Yield what to ask for; one part may be the whole object."""
        for number, has_arrived in enumerate(self._arrived):
            if not has_arrived:
                start = number * PART_BYTES
                yield Part(self, start, min(start + PART_BYTES, self.entry.size_bytes))

    def complete(self, part: "Part", told: str) -> bool:
        """Take note of a part that is there as a whole; say whether it was the last.

        Args:
            part: The part.
            told: What the store tells of the whole file, if nothing was told before.
        """
        if not self.told and not self._digested_bytes:
            self._take(told)
        self._arrived[part.start // PART_BYTES] = 1
        self._missing_bytes -= part.end - part.start
        self._digest_next()
        return self.is_there

    @property
    def is_digested(self) -> bool:
        """Whether every byte is there and was digested; if not, the next ones are."""
        is_free = self._digest_next()
        return is_free and self._digested_bytes == self.entry.size_bytes

    @property
    def is_unreadable(self) -> bool:
        """Whether what was written could not be read back."""
        digesting = self.digesting
        if digesting is None or digesting.cancelled() or not digesting.done():
            return False
        return digesting.exception() is not None

    def record(self, url: str) -> FileRecord:
        """Return what arrived.

        Raises:
            CorruptData: If it is not what the store says that it holds.
        """
        sha256 = self._sha256.hexdigest()
        name, _, expected = self.told.partition(":")
        if name and (self._of_told.hexdigest() if self._of_told else sha256) != expected:
            raise wrong_digest(url, self.told)
        size_bytes = self.entry.size_bytes
        return FileRecord(self.entry.path, size_bytes, sha256, verified=proof_by(self.told))

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _digest_next(self) -> bool:
        """Let a thread digest what has arrived, if none does; say if there was nothing to do."""
        if self.digesting is not None and not self.digesting.done():
            return False
        if self.digesting is not None:
            self.digesting.result()
            self.digesting = None
        start = end = self._digested_bytes
        while (
            end < self.entry.size_bytes
            and self._arrived[end // PART_BYTES]
            and end - start < _DIGEST_BYTES
        ):
            end = min(end + PART_BYTES, self.entry.size_bytes)
        if end == start:
            return True
        self._digested_bytes = end
        self.digesting = self._pool.submit(self._digest, start, end)
        return False

    def _take(self, told: str) -> None:
        self.told = told
        self._of_told = digest_for(told)

    def _digest(self, start: int, end: int) -> None:
        buffer = memoryview(bytearray(_READ_BYTES))  # one, since new memory costs more than reading
        while start < end:
            count = os.preadv(self.fd, [buffer[: end - start]], start)
            if not count:
                raise changed(Path(self.path))  # somebody made it shorter
            self._sha256.update(buffer[:count])
            if self._of_told is not None:
                self._of_told.update(buffer[:count])
            start += count


@dataclass(slots=True)
class Part:
    """The bytes from `start` to before `end` of a file."""

    file: ArrivingFile
    start: int
    end: int
    received: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether there is no other part."""
        return self.end - self.start == self.file.entry.size_bytes

    def begin(self) -> "Part":
        """Begin anew, as a sink."""
        self.file.meter.add_bytes(-self.received)
        self.received = 0
        return self

    def __call__(self, pieces: list[bytes]) -> None:
        """Write the next pieces to their place; of an answer that is too long, only the size."""
        for first in range(0, len(pieces), _MAX_PIECES):
            some = pieces[first : first + _MAX_PIECES]
            size = sum(map(len, some))
            if self.start + self.received + size <= self.end:  # beyond it is what arrived before
                with local_failures(self.file.path):
                    write_all(self.file.fd, some, size, self.start + self.received)
            self.received += size
            self.file.meter.add_bytes(size)

    def size_error(self, url: str) -> StoreError | None:
        """Return the error if other than all bytes came."""
        if self.received == self.end - self.start:
            return None
        return too_short(url, self.start + self.received, self.file.entry)


def write_all(fd: int, pieces: Sequence[bytes], size_bytes: int, offset: int) -> None:
    """Write `pieces` of together `size_bytes` at `offset`; raises OSError."""
    written = os.pwritev(fd, pieces, offset)
    if written < size_bytes:  # interrupted, or the disk is full, which the next call tells
        rest = memoryview(b"".join(pieces))[written:]
        while rest:
            count = os.pwrite(fd, rest, offset + size_bytes - len(rest))
            rest = rest[count:]
