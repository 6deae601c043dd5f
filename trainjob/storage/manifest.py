"""The files of a tree by content: what a fingerprint and a receipt are made of."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a tree: `path` below its root with ``/`` between the parts, size and digest."""

    path: str
    size_bytes: int
    sha256: str


OnFile = Callable[[FileRecord], None]
"""Hears of a file that is complete and verified."""


def fingerprint(files: Iterable[FileRecord]) -> str:
    """Return ``sha256:…`` over paths, sizes and digests; the order of `files` does not matter."""
    rows = sorted((file.path, file.size_bytes, file.sha256) for file in files)
    digest = hashlib.sha256()
    for row in rows:
        # JSON escapes what a path may hold, so that no two trees give the same lines.
        digest.update(json.dumps(row).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"
