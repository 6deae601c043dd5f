"""Lets go of the datasets that a run used, and looks whether it wrote into one.

Permissions keep a script from changing what other jobs share, unless it runs as root. Then this
finds it, by size and time of every file.
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.heartbeat import SILENCE_S, touching
from trainjob.storage.cache.lease import Lease
from trainjob.storage.cache.owner import Owner
from trainjob.storage.cache.snapshot import Snapshot
from trainjob.storage.failures import local_failures

_MAX_NAMED = 3


def hold(cache: Cache, folder: Path, holder: str) -> bool:
    """Keep for `holder` what the folder of a channel leads to; False if it is there no more.

    Args:
        cache: Where snapshots are.
        folder: What `trainjob.storage.stage.stage_channel` made, in any process of the run.
        holder: For whom it was staged.

    Raises:
        StoreError: If the disk does not let it be kept.
    """
    with local_failures(str(cache.root)):
        if not folder.is_dir():
            return False
        snapshot = folder.resolve().parent
        if not folder.is_symlink() or snapshot.parent != cache.published.resolve():
            return True
        return cache.leased(snapshot.name, holder) is not None


def keeping(cache: Cache, holders: Collection[str]) -> AbstractContextManager[None]:
    """Keep what is leased for `holders` in the eyes of other machines and containers, too.

    They take a lease that nobody touched for a week for one of a process that is gone.

    Args:
        cache: Where the snapshots are.
        holders: For whom they were leased, in this process.
    """
    this = Owner.this()
    leases = (lease for _, found in _leased(cache, holders) for lease in found)
    files = [lease.file for lease in leases if lease.owner == this]
    return touching(lambda: files)


def release(cache: Cache, holder: str) -> list[str]:
    """End the leases of `holder`; return what a person should know, one line a dataset.

    Another process of the same run keeps its own: a run that is delivered again may have two for a
    while. A snapshot that was written to is thrown away, and so is one that no other job may take;
    one that was taken back when nobody uses it any more.

    Args:
        cache: Where the snapshots are.
        holder: For whom they were leased; see `trainjob.storage.stage.stage_channel`.

    Raises:
        StoreError: If the disk does not let them be looked at.
    """
    with local_failures(str(cache.root)):
        return list(_released(cache, holder))


def _released(cache: Cache, holder: str) -> Iterator[str]:
    for snapshot, leases in _leased(cache, [holder]):
        ending = [lease for lease in leases if _is_ending(lease)]
        if not ending:
            continue
        differences = snapshot.differences()
        if differences or snapshot.is_taken_back:
            yield _note(snapshot, differences)
        is_of_no_use = not snapshot.header.is_reusable and len(ending) == len(leases)
        if not snapshot.is_taken_back and (differences or is_of_no_use):
            # With its leases: if this is interrupted, they have the next job look at the files.
            cache.discard(snapshot)
            continue
        for lease in ending:
            with suppress(OSError):
                lease.file.unlink()
        if snapshot.is_taken_back:
            cache.evict(snapshot)


def _is_ending(lease: Lease) -> bool:
    """Say whether it is this process's, or nobody's; who trains touches its lease every minute."""
    return lease.owner == Owner.this() or not lease.owner.is_alive(lease.file, SILENCE_S)


def _leased(cache: Cache, holders: Collection[str]) -> Iterator[tuple[Snapshot, list[Lease]]]:
    """Yield what any process leased for `holders`."""
    for snapshot in cache.snapshots():
        leases = [lease for lease in snapshot.leases() if lease.holder in holders]
        if leases:
            yield snapshot, leases


def _note(snapshot: Snapshot, differences: list[str]) -> str:
    if not differences:
        return (
            f"python -m flows cache verify found files of the input {snapshot.header.url} damaged "
            "while the run used them; the next run fetches them again; run again if the result "
            "matters"
        )
    named = ", ".join(_named(differences))
    if snapshot.header.place:
        return f"the dataset at {snapshot.header.url} changed while the run used it: {named}"
    return (
        f"the script wrote into its input {snapshot.header.url}, which other runs share: {named}; "
        "the cached copy was thrown away; write to outputs, or use mode: copy"
    )


def _named(differences: list[str]) -> Iterator[str]:
    yield from differences[:_MAX_NAMED]
    if len(differences) > _MAX_NAMED:
        yield f"and {len(differences) - _MAX_NAMED} more"
