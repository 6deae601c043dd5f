"""Lets go of the datasets that a run used, and looks whether it wrote into one.

Permissions keep a script from changing what other jobs share, unless it runs as root. Then this
finds it, by size and time of every file.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.snapshot import Snapshot

_MAX_NAMED = 3


def hold(cache: Cache, folder: Path, holder: str) -> bool:
    """Keep for `holder` what the folder of a channel leads to; False if it is there no more.

    Args:
        cache: Where snapshots are.
        folder: What `trainjob.storage.stage.stage_channel` made, in any process of the run.
        holder: For whom it was staged.
    """
    if not folder.is_dir():
        return False
    snapshot = folder.resolve().parent
    if not folder.is_symlink() or snapshot.parent != cache.published.resolve():
        return True
    return cache.leased(snapshot.name, holder) is not None


def release(cache: Cache, holder: str) -> list[str]:
    """End all leases of `holder`; return what a person should know, one line a dataset.

    A snapshot that was written to is thrown away, and so is one that no other job may take.

    Args:
        cache: Where the snapshots are.
        holder: For whom they were leased; see `trainjob.storage.stage.stage_channel`.
    """
    notes = []
    for snapshot in cache.snapshots():
        own = [lease for lease in snapshot.leases() if lease.holder == holder]
        if not own:
            continue
        differences = snapshot.differences()
        if differences:
            notes.append(_note(snapshot, differences))
        if differences or not snapshot.header.is_reusable:
            # With its leases: if this is interrupted, they have the next job look at the files.
            cache.discard(snapshot)
            continue
        for lease in own:
            with suppress(OSError):
                lease.file.unlink()
    return notes


def _note(snapshot: Snapshot, differences: list[str]) -> str:
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
