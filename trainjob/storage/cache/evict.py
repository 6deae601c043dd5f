"""Makes room on the disk of the cache by removing what no job uses, the longest unused first."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainjob.errors import StoreError
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.incoming import abandoned
from trainjob.storage.cache.removal import remove
from trainjob.storage.cache.snapshot import Snapshot
from trainjob.storage.failures import failure
from trainjob.values import format_size

_BLOCK_BYTES = 4096  # what a small file takes of most file systems, and its name


@dataclass(frozen=True, slots=True)
class Removable:
    """Something of the cache that no job uses: a snapshot, or one that was never finished."""

    path: Path
    size_bytes: int
    used_at: float
    snapshot: Snapshot | None


def make_room(cache: Cache, size_bytes: int, num_files: int) -> None:
    """Remove what no job uses until files of this size fit on the disk and under the limit.

    A limit that what is in use goes beyond by itself stops no job; a full disk does.

    Raises:
        StoreError: If they do not fit on the disk.
    """
    cache.empty_trash()
    need = size_bytes + num_files * _BLOCK_BYTES
    stored = sum(snapshot.stored_bytes for snapshot in cache.snapshots())
    for unused in removable(cache):
        is_over = cache.max_size_bytes is not None and stored + need > cache.max_size_bytes
        if not is_over and _free(cache) >= need:
            return
        if unused.size_bytes and remove_unused(cache, unused) and unused.snapshot:
            stored -= unused.size_bytes
    free = _free(cache)
    if free < need:
        found = f"{format_size(free)} free for {format_size(need)} of files, and nothing unused"
        do = "make space, or set TRAINJOB_CACHE_DIR to a folder on a larger disk"
        raise failure(StoreError, str(cache.root), found, do)


def removable(cache: Cache) -> Iterator[Removable]:
    """Yield what no job uses: first what was never finished, then the longest unused."""
    for folder in abandoned(cache):
        with suppress(OSError):
            yield Removable(folder, _size_of(folder), folder.stat().st_mtime, None)
    for snapshot in reversed(cache.snapshots()):
        if not snapshot.users():
            yield Removable(snapshot.root, snapshot.stored_bytes, snapshot.used_at(), snapshot)


def remove_unused(cache: Cache, unused: Removable) -> bool:
    """Remove it, unless a job has taken it meanwhile; return whether that was done."""
    if unused.snapshot:
        return cache.evict(unused.snapshot)
    return remove(unused.path, cache.trash)


def _free(cache: Cache) -> int:
    return shutil.disk_usage(cache.root).free


def _size_of(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(f"{path}/{name}").st_size
    return total
