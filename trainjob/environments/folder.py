"""The environments that runs of this machine share, in a folder beside the cached datasets.

::

    <cache>/environments/v1/KEY/    a virtual environment, published by one rename
                         incoming/  those that are being made
                         trash/     what is being removed
                         locks/     who makes which

An environment is in use while a process holds a lock on its folder, which ends with the process.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trainjob.storage.cache.folder import Cache, cache_dir
from trainjob.storage.cache.owner import Owner
from trainjob.storage.cache.removal import destroy, remove

MARKER = "environment.json"
"""What an environment is for; written last."""
_FOREIGN_S = 3600.0
"""A process of another machine that has begun so long ago counts as gone."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A complete environment.

    Attributes:
        root: Its folder.
        lines: What was installed, as the requirements say it.
        num_packages: How many packages are in it, beside those of the worker.
        size_bytes: What they take on the disk.
    """

    root: Path
    lines: tuple[str, ...]
    num_packages: int
    size_bytes: int

    @property
    def key(self) -> str:
        """What it is the only one for; see `trainjob.environments.asked`."""
        return self.root.name

    def used_at(self) -> float:
        """Return when a run last began to use it, in seconds since 1970."""
        return self.root.stat().st_mtime

    def is_used(self) -> bool:
        """Tell whether a process of this machine uses it."""
        with _opened(self.root) as folder:
            return not _lock(folder, fcntl.LOCK_EX)


def environments_folder() -> Cache:
    """Return the folder; it is made when something is put there."""
    return Cache(cache_dir() / "environments")


def find_environment(folder: Cache, key: str) -> Environment | None:
    """Return the environment of this key, if it is there."""
    root = folder.published / key
    try:
        facts = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Environment(root, tuple(facts["lines"]), facts["num_packages"], facts["size_bytes"])


def environments(folder: Cache) -> list[Environment]:
    """Return all environments, the one used last first."""
    roots = folder.published.iterdir() if folder.published.is_dir() else ()
    found = [made for root in roots if (made := find_environment(folder, root.name))]
    return sorted(found, key=Environment.used_at, reverse=True)


@contextmanager
def using(folder: Cache, key: str) -> Iterator[Environment | None]:
    """Keep the environment of this key from being removed in this block; None if there is none."""
    found = find_environment(folder, key)
    if found is None:
        yield None
        return
    with _opened(found.root) as opened:
        _lock(opened, fcntl.LOCK_SH)
        with suppress(OSError):
            os.utime(found.root)
        # It may have been removed before the lock was had.
        yield find_environment(folder, key)


def remove_environment(folder: Cache, environment: Environment) -> bool:
    """Remove an environment that no run uses; return whether that was done."""
    with suppress(FileNotFoundError), _opened(environment.root) as opened:
        if _lock(opened, fcntl.LOCK_EX):
            return remove(environment.root, folder.trash)
    return False


def remove_unfinished(folder: Cache) -> None:
    """Remove what processes that were killed left half made."""
    with suppress(FileNotFoundError):
        for left in folder.incoming.iterdir():
            owner = Owner.parse(left.name.split("-")[1])
            if owner is None or not owner.is_alive(left, _FOREIGN_S):
                destroy(left)


@contextmanager
def _opened(root: Path) -> Iterator[int]:
    opened = os.open(root, os.O_RDONLY)
    try:
        yield opened
    finally:
        os.close(opened)


def _lock(opened: int, how: int) -> bool:
    """Take a lock without waiting; True too where there are none, False if it is not to be had."""
    try:
        fcntl.flock(opened, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
