"""The folder of the cache on this machine: where it is, what is in it, and who may change it.

::

    <cache>/v1/        snapshots, each published by one rename
            incoming/  snapshots that are being made, or were and can be gone on with
            trash/     what is being removed
            locks/     who makes a snapshot of which source; a lock saves work and proves nothing
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainjob.errors import StoreError
from trainjob.storage.cache.removal import destroy, remove, set_aside
from trainjob.storage.cache.snapshot import Snapshot, is_broken
from trainjob.storage.deadline import check_deadline
from trainjob.storage.failures import failure, local_failures
from trainjob.values import parse_size
from trainjob.workspace import workspaces_dir

_LOGGER = logging.getLogger(__name__)
_POLL_S = 0.1
_LEASES_POLL_S = 0.02
_LEASES_S = 10.0
"""Nobody needs the lock of the leases for longer, unless it hangs."""

_TRASH_S = 3600.0


class Cache:
    """The cache in the folder `root`. Creating one touches nothing.

    Args:
        root: The folder.
        max_size_bytes: How much of what no job uses may stay; None: as much as there is space for.
    """

    def __init__(self, root: Path, max_size_bytes: int | None = None) -> None:
        self.root = root
        self.max_size_bytes = max_size_bytes
        self.published = root / "v1"
        self.incoming = root / "incoming"
        self.trash = root / "trash"

    @classmethod
    def of_machine(cls) -> "Cache":
        """Return the cache that all jobs of this user on this machine share.

        It is at ``TRAINJOB_CACHE_DIR``, or beside the folders of the runs; see `cache_dir`.

        Raises:
            StoreError: If ``TRAINJOB_CACHE_MAX_SIZE`` is no size.
        """
        text = os.environ.get("TRAINJOB_CACHE_MAX_SIZE")
        try:
            return cls(cache_dir(), parse_size(text) if text else None)
        except ValueError as error:
            found = f"{text!r}, which is no size"
            raise failure(StoreError, "TRAINJOB_CACHE_MAX_SIZE", found, str(error)) from error

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            StoreError: If they cannot be made.
        """
        with local_failures(str(self.root)):
            for folder in (self.published, self.incoming, self.trash, self.root / "locks"):
                folder.mkdir(parents=True, exist_ok=True)

    def find(self, key: str) -> Snapshot | None:
        """Return the snapshot of this key that a job may take; None if there is none."""
        found = Snapshot.read(self.published / key)
        return None if found is None or found.is_taken_back else found

    def free_key(self, key: str) -> str:
        """Return `key`, or KEY-2, KEY-3, … while jobs use what was taken back there."""
        number, found = 1, key
        while self._is_held(found):
            number += 1
            found = f"{key}-{number}"
        return found

    def snapshots(self) -> list[Snapshot]:
        """Return all snapshots, the one used last first, with those that were taken back."""
        found = [snapshot for root in self._roots() if (snapshot := Snapshot.read(root))]
        return sorted(found, key=Snapshot.used_at, reverse=True)

    def broken(self) -> list[Path]:
        """Return what a power cut left of snapshots: folders that do not say what they are."""
        return [root for root in self._roots() if is_broken(root)]

    def hidden(self) -> list[Path]:
        """Return the folders of snapshots of other users, which this one may not read."""
        return [root for root in self._roots() if not _may_read(root)]

    def of_source(self, source: str) -> list[Snapshot]:
        """Return all snapshots of one source that a job may take, the newest first."""
        found = [
            snapshot
            for snapshot in self.snapshots()
            if snapshot.header.source == source and not snapshot.is_taken_back
        ]
        return sorted(found, key=lambda snapshot: snapshot.header.created, reverse=True)

    def leased(self, key: str, holder: str) -> Snapshot | None:
        """Return the snapshot of this key, kept for `holder`; None if there is none to be had.

        One that was spoiled is thrown away. `holder` lets go of one that was taken back.
        """
        with self._changing_leases():
            snapshot = Snapshot.read(self.published / key)
            is_leased = snapshot is not None and snapshot.lease(holder)
        if snapshot is None or not is_leased:
            self._clear(key)
            return None
        # Without the lock, since this may look at every file; the lease keeps it.
        if snapshot.is_as_left():
            return snapshot
        if snapshot.is_leased(holder):  # else another process has put a good one in its place
            _LOGGER.warning("the cached %s is spoiled and is fetched again", snapshot.data)
            self.discard(snapshot)
        return None

    def evict(self, snapshot: Snapshot) -> bool:
        """Remove a snapshot that no job uses; return whether that was done."""
        with self._changing_leases():
            moved = self.trash / f"{snapshot.key}-{os.getpid()}-{time.monotonic_ns()}"
            try:
                if snapshot.users():
                    return False
                moved = set_aside(snapshot.root, moved)
            except FileNotFoundError:
                return False
            except OSError as error:  # it may be another user's
                _LOGGER.warning("%s cannot be removed: %s", snapshot.root, error.strerror)
                return False
            # Where locks do not work, a job may have come in between.
            if moved != snapshot.root and Snapshot(moved, snapshot.header).users():
                with suppress(OSError):  # the same is there again already
                    moved.rename(snapshot.root)
                    return False
        destroy(moved)
        return True

    def take_back(self, snapshot: Snapshot) -> bool:
        """Let no further job have a snapshot; return whether it is gone, since none uses it."""
        with self._changing_leases():
            snapshot.take_back()
        return self.evict(snapshot)

    def remove_broken(self, root: Path) -> bool:
        """Remove what is in the place of a snapshot unless it is one.

        Returns:
            Whether that was done.
        """
        return is_broken(root) and remove(root, self.trash)

    def discard(self, snapshot: Snapshot) -> None:
        """Remove a snapshot that is not what it should be, and what shares spoiled files with it.

        Jobs that use it go on with files that are there no more, or see that they are wrong.
        """
        others = self.of_source(snapshot.header.source)
        # This one last: while it is there, its leases tell what an interruption left undone.
        for other in (*(other for other in others if other.key != snapshot.key), snapshot):
            with suppress(OSError):
                if other is snapshot or other.differences():
                    remove(other.root, self.trash)

    def empty_trash(self, now: float | None = None) -> None:
        """Remove what processes that were killed left half removed, an hour ago or more.

        Args:
            now: The time, in seconds since 1970; absent: that of the clock.
        """
        with suppress(FileNotFoundError):
            for left in self.trash.iterdir():
                with suppress(OSError):
                    if (now or time.time()) - left.stat().st_ctime > _TRASH_S:
                        destroy(left)

    @contextmanager
    def alone(self, source: str, is_over: Callable[[], bool]) -> Iterator[None]:
        """Be the only process that makes a snapshot of `source`, or wait until that is over.

        Where the file system has no locks, several make their own, and one of them is published.

        Args:
            source: See `Header.source`.
            is_over: Says whether there is nothing to wait for any more.
        """
        is_told = False
        with self._lock_file(source) as lock:
            while not _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) and not is_over():
                check_deadline(str(self.root))
                if not is_told:
                    _LOGGER.info("waiting for another process that stages the same data")
                is_told = True
                time.sleep(_POLL_S)
            yield

    def is_making(self, source: str) -> bool:
        """Say whether a process makes a snapshot of `source` now; False where there are no locks.

        Args:
            source: See `Header.source`.
        """
        with suppress(OSError), self._lock_file(source) as lock:
            return not _lock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False

    def _is_held(self, key: str) -> bool:
        """Say whether a job still uses what was taken back at this key."""
        found = Snapshot.read(self.published / key)
        return found is not None and found.is_taken_back and bool(found.users())

    def _clear(self, key: str) -> None:
        """Remove what no job may take from the place of a snapshot, unless one uses it."""
        found = Snapshot.read(self.published / key)
        if found is None:
            self.remove_broken(self.published / key)
        elif found.is_taken_back:
            self.evict(found)

    def _roots(self) -> Iterator[Path]:
        if self.published.is_dir():
            yield from self.published.iterdir()

    @contextmanager
    def _changing_leases(self) -> Iterator[None]:
        """Be the only process that does so, unless another one does not come to its end."""
        patience_ends = time.monotonic() + _LEASES_S
        with self._lock_file("leases") as lock:
            while not _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                check_deadline(str(self.root))
                if time.monotonic() > patience_ends:
                    _LOGGER.warning("a process hangs with the lock of %s, go on", self.root)
                    break
                time.sleep(_LEASES_POLL_S)
            yield

    @contextmanager
    def _lock_file(self, name: str) -> Iterator[int]:
        lock = os.open(self.root / "locks" / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield lock
        finally:
            os.close(lock)


def cache_dir() -> Path:
    """Return where datasets are kept for all jobs of this machine.

    It is ``TRAINJOB_CACHE_DIR``, or ``cache`` in ``TRAINJOB_WORKDIR``, or ``~/.trainjob/cache``.
    """
    chosen = os.environ.get("TRAINJOB_CACHE_DIR")
    if chosen:  # with a ~ if no shell has read it, as in the file of a service
        return Path(chosen).expanduser().absolute()
    if os.environ.get("TRAINJOB_WORKDIR"):
        return workspaces_dir() / "cache"
    return workspaces_dir().parent / "cache"


def _may_read(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK, effective_ids=True)


def _lock(lock: int, how: int) -> bool:
    """Take a lock; True too where there are none, False if another process has it."""
    try:
        fcntl.flock(lock, how)
    except BlockingIOError:
        return False
    except OSError as error:
        _LOGGER.debug("no locks here error=%s", error)
    return True
