"""Makes the cgroup that holds the ranks of an attempt to the memory of their job, where one may.

A cgroup is the kernel's own limit: nothing gets past it, and it counts what its kill was for. But
only a group that was given to us may be divided (https://systemd.io/CGROUP_DELEGATION): that of a
service with ``Delegate=memory`` and ``DelegateSubgroup=``, or one that TRAINJOB_CGROUP names.
Elsewhere the supervisor watches the ranks (`trainjob.launch.memory_watch`).
"""

import fcntl
import logging
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_logger = logging.getLogger(__name__)

GROUP_ENV = "TRAINJOB_CGROUP"
"""Names a cgroup, of version 1 or 2, below which runs get theirs."""

_MOUNT = Path("/sys/fs/cgroup")
_LIMIT_FILES = ("memory.max", "memory.limit_in_bytes")
_SWAP_LIMITS = {"memory.swap.max": 0, "memory.memsw.limit_in_bytes": None}
"""What keeps ranks from going on in swap, of each version; the latter counts memory and swap."""
_REMOVE_TIMEOUT_S = 2.0


@contextmanager
def memory_group(
    limit_bytes: int | None, run_id: str, environ: Mapping[str, str] = os.environ
) -> Iterator[Path | None]:
    """Have a cgroup of at most `limit_bytes` until the block ends, when no process may be in it.

    Args:
        limit_bytes: The most memory that its processes may use together; None: no limit is wanted.
        run_id: What the group is named after.
        environ: Where TRAINJOB_CGROUP is looked up.

    Yields:
        Its folder; None if no limit is wanted, or no group can be made here.
    """
    place = None if limit_bytes is None else group_place(environ)
    if place is None or limit_bytes is None:
        yield None
        return
    _remove_left_ones(place)
    group = place / f"trainjob-{os.getpid()}-{run_id}"
    try:
        lock = _make(group, limit_bytes)
    except OSError as error:
        _logger.warning("no cgroup can be made in %s, so memory is watched: %s", place, error)
        _remove(group, timeout_s=0)
        yield None
        return
    try:
        yield group
    finally:
        os.close(lock)
        _remove(group, timeout_s=_REMOVE_TIMEOUT_S)


def group_place(environ: Mapping[str, str], mount: Path = _MOUNT) -> Path | None:
    """Return the cgroup below which those of runs may be made, or None; nothing is changed."""
    chosen = environ.get(GROUP_ENV)
    place = Path(chosen) if chosen else _delegated(mount)
    if place is None or not os.access(place, os.W_OK | os.X_OK):
        return None
    return place if _is_version_1(place) or _can_limit_below(place) else None


def _delegated(mount: Path) -> Path | None:
    """Return the group above our own if the service manager gave it to us (version 2 alone)."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    place = (mount / own.lstrip("/")).parent
    # That of systemd for its users and that for root; no user can write the latter.
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if own != "/" and os.getxattr(place, name) == b"1":
                return place
    return None


def _is_version_1(place: Path) -> bool:
    return (place / "memory.limit_in_bytes").exists()


def _can_limit_below(place: Path) -> bool:
    """Tell whether groups below one of version 2 can have limits.

    Not if it has processes itself (cgroups(7), "no internal processes").
    """
    try:
        if "memory" in (place / "cgroup.subtree_control").read_text().split():
            return True
        has_memory = "memory" in (place / "cgroup.controllers").read_text().split()
        return has_memory and not (place / "cgroup.procs").read_text().split()
    except OSError:
        return False


def _make(group: Path, limit_bytes: int) -> int:
    """Make a group, prove that a process can join it, and return the lock that makes it ours.

    Raises:
        OSError: It cannot be made.
    """
    if not _is_version_1(group.parent):
        (group.parent / "cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    lock = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _limit(group, limit_bytes)
    except OSError:
        os.close(lock)
        raise
    return lock


def _limit(group: Path, limit_bytes: int) -> None:
    """Give a group its limit, and prove that a process can join it."""
    limits = [group / name for name in _LIMIT_FILES if (group / name).exists()]
    if not limits:
        raise OSError(f"no {' or '.join(_LIMIT_FILES)} in it")
    limits[0].write_text(str(limit_bytes))
    for name, swap_bytes in _SWAP_LIMITS.items():
        with suppress(OSError):  # a kernel that does not account for swap
            if (group / name).exists():
                (group / name).write_text(str(limit_bytes if swap_bytes is None else swap_bytes))
    # Rights on the group are not enough: the kernel also asks for those on what is left.
    probe = ["sh", "-c", 'echo 0 > "$0"', str(group / "cgroup.procs")]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip() or "no process can join it")


def _remove_left_ones(place: Path) -> None:
    """Remove the groups of flow processes that were killed; the kernel keeps those in use.

    Their number tells nothing: it may be that of another container with the same place. But nobody
    holds the lock of a group whose flow process is gone.
    """
    for group in place.glob("trainjob-*-*"):
        with suppress(OSError):  # somebody else has just removed it, or has locked it
            lock = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(group, timeout_s=0)
            finally:
                os.close(lock)


def _remove(group: Path, *, timeout_s: float) -> None:
    """Remove a group once its last process, which may still be ending, has left."""
    give_up_at = time.monotonic() + timeout_s
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() >= give_up_at:
                return
            time.sleep(0.02)
