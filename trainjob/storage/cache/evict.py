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
from trainjob.storage.cache.snapshot import Snapshot, leases_in
from trainjob.storage.failures import failure
from trainjob.values import format_size

_BLOCK_BYTES = 4096  # what a small file takes of most file systems, and its name


@dataclass(frozen=True, slots=True)
class Removable:
    """Something of the cache that no job uses.

    Attributes:
        path: Where it is.
        what: What a person calls it: the url of a snapshot, or what became of one.
        size_bytes: What it takes of the disk, at most.
        used_at: When a job last took it, or it was last written to, in seconds since 1970.
        snapshot: The snapshot; None if it was never finished, or cannot be read.
    """

    path: Path
    what: str
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
    """Yield what no job uses: first what is good for nothing, then the longest unused."""
    for folder in abandoned(cache):
        # A process in another container may be known by nothing but its lock for a while.
        if not cache.is_making(folder.name.partition("-")[0]):
            yield from _rest(folder, "a copy that was never finished")
    for root in cache.broken():
        if not any(lease.is_alive() for lease in leases_in(root)):
            yield from _rest(root, "a copy that cannot be read")
    for snapshot in reversed(cache.snapshots()):
        if not snapshot.users():
            url, size_bytes = snapshot.header.url, snapshot.stored_bytes
            yield Removable(snapshot.root, url, size_bytes, snapshot.used_at(), snapshot)


def remove_unused(cache: Cache, unused: Removable) -> bool:
    """Remove it, unless a job has taken it meanwhile; return whether that was done."""
    if unused.snapshot:
        return cache.evict(unused.snapshot)
    if unused.path.parent == cache.published:
        return cache.remove_broken(unused.path)
    return remove(unused.path, cache.trash)


def _rest(folder: Path, what: str) -> Iterator[Removable]:
    """Yield a folder, unless it is gone by now."""
    with suppress(OSError):
        yield Removable(folder, what, _size_of(folder), folder.stat().st_mtime, None)


def _free(cache: Cache) -> int:
    return shutil.disk_usage(cache.root).free


def _size_of(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(f"{path}/{name}").st_size
    return total
