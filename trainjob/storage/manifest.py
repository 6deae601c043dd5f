"""The files of a tree by content: what a fingerprint and a receipt are made of."""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as _quoted
from typing import Literal

from trainjob.storage.own_files import RECEIPT, SUCCESS

Proof = Literal["", "etag", "checksum", "read back"]
"""How it was proved that a store holds these bytes: by the ETag that follows from them, or another
MD5 that it tells; by a checksum that it keeps; or they were read again after they were sent. Empty:
not, or not yet."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a tree: `path` below its root with ``/`` between the parts, size and digest.

    Attributes:
        etag: The ETag that S3 gives to exactly the bytes that were sent: computed from them or,
            where that is ``verified`` by their checksum, told together with it by the store that
            has found both; empty if nothing was sent or there is none of these.
        verified: How it was proved that the store where it was sent, or from where it came, holds
            exactly this.
    """

    path: str
    size_bytes: int
    sha256: str
    etag: str = field(default="", compare=False)
    verified: Proof = field(default="", compare=False)


OnFile = Callable[[FileRecord], None]
"""Hears of a file that is complete and verified."""


def fingerprint(files: Iterable[FileRecord]) -> str:
    """Return ``sha256:…`` over paths, sizes and digests; the order of `files` does not matter.

    A receipt and the empty ``_SUCCESS`` beside it do not count, so that a tree that was uploaded
    has the fingerprint that it had before, and its receipt, which tells the time, no part in it.
    """
    rows = sorted((file.path, file.size_bytes, file.sha256) for file in files)
    at = bisect_left(rows, RECEIPT, key=lambda row: row[0])
    if rows[at : at + 1] and rows[at][0] == RECEIPT:
        rows = [row for row in rows if row[0] != RECEIPT and row[:2] != (SUCCESS, 0)]
    return _digest(rows)


def has_fingerprint(files: Collection[FileRecord], asked: str) -> bool:
    """Say whether `asked` is the fingerprint of these files, or was when a receipt counted.

    Saved versions, schedules and job files may have it from a trainjob of that time.
    """
    rows = ((file.path, file.size_bytes, file.sha256) for file in files)
    return fingerprint(files) == asked or _digest(sorted(rows)) == asked


def _digest(rows: Iterable[tuple[str, int, str]]) -> str:
    digest = hashlib.sha256()
    for path, size_bytes, sha256 in rows:
        # JSON, which escapes what a path may hold, so that no two trees give the same lines; made
        # here, since `json.dumps` takes four times as long.
        digest.update(f"[{_quoted(path)}, {size_bytes}, {_quoted(sha256)}]\n".encode())
    return f"sha256:{digest.hexdigest()}"
