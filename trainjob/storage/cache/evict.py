"""Makes room on the disk of the cache by removing what no job uses, the longest unused first."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainjob.errors import StoreError
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.incoming import abandoned, size_told, written_at
from trainjob.storage.cache.lease import is_used
from trainjob.storage.cache.removal import remove
from trainjob.storage.cache.snapshot import Snapshot
from trainjob.storage.failures import failure
from trainjob.values import format_size

_LOGGER = logging.getLogger(__name__)
_BLOCK_BYTES = 4096  # what a small file takes of most file systems, and its name
_STEP_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Removable:
    """Something of the cache that no job uses.

    Attributes:
        path: Where it is.
        what: What a person calls it: the url of a snapshot, or what became of one.
        size_bytes: What it takes of the disk, at most.
        used_at: When a job last took it, or it was last written to, in seconds since 1970; 0 if no
            job can go on with it.
        snapshot: The snapshot; None if it was never finished, or cannot be read.
    """

    path: Path
    what: str
    size_bytes: int
    used_at: float
    snapshot: Snapshot | None

    @property
    def is_wanted(self) -> bool:
        """Whether it is a dataset that a job may take as it is."""
        return self.snapshot is not None and not self.snapshot.is_taken_back


def make_room(cache: Cache, size_bytes: int, num_files: int) -> None:
    """Remove what no job uses until files of this size fit on the disk and under the limit.

    A limit that what is in use goes beyond by itself stops no job; a full disk does.

    Raises:
        StoreError: If they do not fit on the disk.
    """
    cache.empty_trash()
    need = size_bytes + num_files * _BLOCK_BYTES
    limit = cache.max_size_bytes
    stored = 0 if limit is None else stored_bytes(cache)
    found = removable(cache)
    while (limit is not None and stored + need > limit) or _lack(cache, need, num_files):
        unused = next(found, None)
        if unused is None:
            break
        if unused.size_bytes and remove_unused(cache, unused):
            stored -= unused.size_bytes
    if lack := _lack(cache, need, num_files):
        what = f"{lack}, and nothing unused"
        do = "make space, or set TRAINJOB_CACHE_DIR to a folder on a larger disk"
        raise failure(StoreError, str(cache.root), what, do)


class Reservation:
    """Room for what is written bit by bit, since nobody knows how much it will be.

    The disk is asked each time. What else is in the cache is read once for a GiB.

    Args:
        cache: Where it is written.
        grow: Hears now and then how much more was written.
    """

    def __init__(self, cache: Cache, grow: Callable[[int], None]) -> None:
        self._cache = cache
        self._grow = grow
        self._granted_bytes = 0
        self._untold_bytes = 0

    def more(self, size_bytes: int) -> None:
        """Make room for so many bytes more; see `make_room`."""
        self._granted_bytes -= size_bytes
        if self._granted_bytes < 0 or _free(self._cache) < size_bytes:
            self._grow(self._untold_bytes)
            self._untold_bytes = 0
            make_room(self._cache, size_bytes, 0)
            self._granted_bytes = _STEP_BYTES
        self._untold_bytes += size_bytes


def stored_bytes(cache: Cache) -> int:
    """Return what the cache takes of the disk at most, with what is not finished or broken.

    Copies that are under way are not looked at, but say it themselves; see `Incoming.grow`.
    """
    published = sum(snapshot.stored_bytes for snapshot in cache.snapshots())
    broken = sum(map(_size_of, cache.broken()))
    left = set(abandoned(cache))
    copies = 0
    for folder in _copies(cache):
        told = None if folder in left else size_told(folder)
        copies += _size_of(folder) if told is None else told
    return published + broken + copies


def unfinished(cache: Cache) -> dict[Path, int]:
    """Return the size of every copy that is under way or broke off, by its folder."""
    return {folder: _size_of(folder) for folder in _copies(cache)}


def removable(cache: Cache) -> Iterator[Removable]:
    """Yield what no job uses: first what is good for nothing, then the longest unused."""
    for root in cache.broken():
        if not is_used(root):
            yield from _rest(root, "a copy that cannot be read", 0.0)
    found: list[tuple[float, Path, Snapshot | None]] = [
        (0.0 if snapshot.is_taken_back else snapshot.used_at(), snapshot.root, snapshot)
        for snapshot in cache.snapshots()
    ]
    found += [(written_at(folder), folder, None) for folder in abandoned(cache)]
    for used_at, path, snapshot in sorted(found, key=lambda one: one[0]):
        if snapshot is None:
            # A process in another container may be known by nothing but its lock for a while.
            if not cache.is_making(path.name.partition("-")[0]):
                yield from _rest(path, "a copy that was never finished", used_at)
        elif not snapshot.users():
            yield Removable(path, snapshot.header.url, snapshot.stored_bytes, used_at, snapshot)


def remove_unused(cache: Cache, unused: Removable) -> bool:
    """Remove it, unless a job has taken it meanwhile; return whether that was done."""
    try:
        if unused.snapshot:
            return cache.evict(unused.snapshot)
        if unused.path.parent == cache.published:
            return cache.remove_broken(unused.path)
        return remove(unused.path, cache.trash)
    except OSError as error:  # it may be another user's, or of a disk that is read-only
        _LOGGER.warning("%s cannot be removed: %s", unused.path, error.strerror)
        return False


def _rest(folder: Path, what: str, used_at: float) -> Iterator[Removable]:
    """Yield a folder, unless it is gone by now."""
    if folder.is_dir():
        yield Removable(folder, what, _size_of(folder), used_at, None)


def _copies(cache: Cache) -> list[Path]:
    with suppress(FileNotFoundError):
        return list(cache.incoming.iterdir())
    return []


def _lack(cache: Cache, need: int, num_files: int) -> str | None:
    """Say what the disk has too little of; None if all fits."""
    free = _free(cache)
    if free < need:
        return f"{format_size(free)} free for {format_size(need)} of files"
    names = os.statvfs(cache.root)
    # Disks that make inodes as they need them, such as those of btrfs, tell of none.
    if names.f_files and names.f_favail < num_files:
        return f"room for {names.f_favail:,} more files (df -i), and {num_files:,} to come"
    return None


def _free(cache: Cache) -> int:
    return shutil.disk_usage(cache.root).free


def _size_of(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(f"{path}/{name}").st_size
    return total
