"""The environments that runs of this machine share, in a folder beside the cached datasets.

::

    <cache>/environments/v1/KEY/    a virtual environment, published by one rename
                         incoming/  those that are being made
                         trash/     what is being removed
                         locks/     who makes which

An environment is in use while a process holds a lock on its folder, which ends with the process.
Nothing in it can be written, so that no run changes what others use; permissions do not bind root.
"""

import fcntl
import json
import os
import re
import time
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
_KEY = re.compile(r"[0-9a-f]{32}")
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment.

    Attributes:
        root: Its folder.
        lines: What was installed, as the requirements say it.
        num_packages: How many packages are in it, beside those of the worker.
        size_bytes: What they take on the disk.
        used_at: When a run last began to use it, in seconds since 1970.
        is_broken: Whether it lacks its marker, as a machine that crashed may leave it. No run uses
            it.
    """

    root: Path
    lines: tuple[str, ...]
    num_packages: int
    size_bytes: int
    used_at: float
    is_broken: bool = False

    @property
    def key(self) -> str:
        """What it is the only one for; see `trainjob.environments.asked`."""
        return self.root.name

    def is_used(self) -> bool:
        """Tell whether a process of this machine uses it."""
        with suppress(FileNotFoundError), _opened(self.root) as folder:
            return not _lock(folder, fcntl.LOCK_EX)
        return False


def environments_folder() -> Cache:
    """Return the folder; it is made when something is put there."""
    return Cache(cache_dir() / "environments")


def find_environment(folder: Cache, key: str) -> Environment | None:
    """Return the environment of this key, if it is there and complete."""
    root = folder.published / key
    try:
        facts = json.loads((root / MARKER).read_text(encoding="utf-8"))
        lines, used_at = tuple(facts["lines"]), root.stat().st_mtime
        return Environment(root, lines, facts["num_packages"], facts["size_bytes"], used_at)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def environments(folder: Cache) -> list[Environment]:
    """Return all environments, broken ones too, the one used last first."""
    roots = folder.published.iterdir() if folder.published.is_dir() else ()
    found = [find_environment(folder, root.name) or _broken(root) for root in roots]
    return sorted(filter(None, found), key=lambda made: made.used_at, reverse=True)


@contextmanager
def using(folder: Cache, key: str) -> Iterator[Environment | None]:
    """Keep the environment of this key from being removed in this block; None if there is none."""
    root = folder.published / key
    while (found := find_environment(folder, key)) is not None:
        if (taken := _taken(root)) is not None:
            try:
                yield found
            finally:
                os.close(taken)
            return
        time.sleep(_POLL_S)  # another process has it: for a moment, to look, or to remove it
    yield None


def remove_environment(folder: Cache, environment: Environment) -> bool:
    """Remove an environment that no run uses; return whether that was done."""
    with suppress(FileNotFoundError), _opened(environment.root) as opened:
        if _lock(opened, fcntl.LOCK_EX) and _leads_to(environment.root, opened):
            return remove(environment.root, folder.trash)
    return False


def remove_unfinished(folder: Cache) -> None:
    """Remove what processes that were killed left half made."""
    with suppress(FileNotFoundError):
        for left in folder.incoming.iterdir():
            owner = Owner.parse(left.name.partition("-")[2].partition("-")[0])
            if owner is not None and not owner.is_alive(left, _FOREIGN_S):
                destroy(left)


def size_of(root: Path) -> int:
    """Return what the files in a folder take."""
    return sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir())


def _broken(root: Path) -> Environment | None:
    """Return what is there of an environment without its marker; None if it is none of ours."""
    try:
        if not _KEY.fullmatch(root.name) or not root.is_dir():
            return None
        return Environment(root, (), 0, size_of(root), root.stat().st_mtime, is_broken=True)
    except OSError:  # removed meanwhile
        return None


def _taken(root: Path) -> int | None:
    """Open the folder and keep it from being removed while it is open; None if that cannot be."""
    try:
        opened = os.open(root, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if _lock(opened, fcntl.LOCK_SH) and _leads_to(root, opened):
        with suppress(OSError):
            os.utime(opened)
        return opened
    os.close(opened)
    return None


def _leads_to(root: Path, opened: int) -> bool:
    """Tell whether this folder is still there, rather than another one, or none."""
    try:
        return os.path.samestat(os.fstat(opened), root.stat())
    except FileNotFoundError:
        return False


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
