"""Reads objects to say what they hold, keeping nothing. Large ones are read range by range."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainjob.errors import StoreError
from trainjob.storage.curl.arrival import (
    ANSWERS,
    check_is_part,
    check_version,
    condition,
    too_short,
)
from trainjob.storage.curl.request import Again, Answer, Request
from trainjob.storage.curl.transport import Transport
from trainjob.storage.listing import Entry
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter

RANGE_BYTES = 32 << 20
"""What is read again at most when a connection breaks."""

_WEIGHT_BYTES = 3 << 20  # what a range that is under way holds in memory, and more


@dataclass(slots=True)
class _Reading:
    """How far an object was read; a sink for the range that is under way."""

    entry: Entry
    meter: Meter
    sha256: Any = field(default_factory=hashlib.sha256)
    size_bytes: int = 0
    _range_sha256: Any = None
    _range_bytes: int = 0

    @property
    def end(self) -> int:
        """Where the next range ends."""
        return min(self.size_bytes + RANGE_BYTES, self.entry.size_bytes)

    def begin(self) -> "_Reading":
        """Begin the range anew, as a sink."""
        self.meter.add_bytes(-self._range_bytes)
        self._range_bytes = 0
        self._range_sha256 = self.sha256.copy()
        return self

    def __call__(self, pieces: list[bytes]) -> None:
        """Digest the next pieces."""
        for piece in pieces:
            self._range_sha256.update(piece)
        size_bytes = sum(map(len, pieces))
        self._range_bytes += size_bytes
        self.meter.add_bytes(size_bytes)

    def keep(self, url: str) -> StoreError | None:
        """Count the range as read; return the error if other than all of its bytes came."""
        if self.size_bytes + self._range_bytes != self.end:
            return too_short(url, self.size_bytes + self._range_bytes, self.entry)
        self.sha256 = self._range_sha256
        self.size_bytes = self.end
        self._range_bytes = 0
        return None


def read_all(
    transport: Transport, prefix: str, files: Sequence[Entry], meter: Meter
) -> list[FileRecord]:
    """Read these versions of `files` and return what arrived, in their order."""
    records: dict[str, FileRecord] = {}

    def request(reading: _Reading) -> Request:
        start, end = reading.size_bytes, reading.end
        is_whole = end - start == reading.entry.size_bytes
        wanted = {} if is_whole else {"range": f"bytes={start}-{end - 1}"}
        return Request(
            "GET",
            prefix + reading.entry.path,
            headers={**condition(reading.entry), **wanted},
            answers=ANSWERS,
            sink=reading.begin,
            weight_bytes=min(end - start, _WEIGHT_BYTES),
            tag=reading,
        )

    def arrived(answer: Answer) -> Iterable[Request] | Again | None:
        reading: _Reading = answer.request.tag
        entry, url = reading.entry, transport.url(answer.request.key)
        check_version(answer, entry, url)
        if "range" in answer.request.headers:
            check_is_part(answer, url)
        if (error := reading.keep(url)) is not None:
            return Again(error)
        if reading.size_bytes < entry.size_bytes:
            return [request(reading)]
        records[entry.path] = FileRecord(entry.path, entry.size_bytes, reading.sha256.hexdigest())
        meter.finish_file()
        return None

    def requests() -> Iterator[Request]:
        return (request(_Reading(entry, meter)) for entry in files)

    transport.run(requests(), arrived)
    return [records[entry.path] for entry in files]
