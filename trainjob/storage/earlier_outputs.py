"""Which files of earlier attempts go with those of the last one when that did not finish.

A restarted attempt without checkpoints begins with empty outputs. If it fails, is cancelled or
stopped for its time, it has less than the attempt before it, whose files may be in the store for
hours: none of them is taken away for that. What ranks leave that finish, or reach their target, is
never mixed: it is what their attempt wrote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from trainjob.storage.listing import Entry
from trainjob.storage.live_tree import Look


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything that is uploaded, and from which folders.

    Attributes:
        look: All of it, as if it were one folder.
        by_folder: The files by the folder that holds them.
        earlier: Paths of those that the last attempt did not write.
    """

    look: Look
    by_folder: Mapping[Path, Sequence[Entry]] = field(default_factory=dict)
    earlier: tuple[str, ...] = ()


def with_earlier(source: Path, look: Look, earlier: Mapping[Path, Look]) -> Sources:
    """Add to what the last attempt left whatever of earlier ones does not stand against it.

    Args:
        source: The folder that the last attempt wrote.
        look: What it holds.
        earlier: What the folders of earlier attempts hold, the latest first.
    """
    by_folder: dict[Path, list[Entry]] = {source: list(look.files.values())}
    if not earlier:  # as for nearly every run, and what is below takes time for many files
        return Sources(look, by_folder)
    files = dict(look.files)
    taken = {*files, *look.odd}
    folders = {above for path in taken for above in _above(path)} | {*look.empty_folders}
    for folder, found in earlier.items():
        by_folder[folder] = []
        for path, entry in found.files.items():
            if path in taken or path in folders or not taken.isdisjoint(_above(path)):
                continue
            by_folder[folder].append(entry)
            files[path] = entry
        taken |= files.keys()
        folders |= {above for entry in by_folder[folder] for above in _above(entry.path)}
    added = files.keys() - look.files.keys()
    filled = {above for path in added for above in _above(path)}
    empty = tuple(path for path in look.empty_folders if path not in filled)
    return Sources(Look(files, look.odd, empty), by_folder, tuple(sorted(added)))


def _above(path: str) -> list[str]:
    """Return the folders that a path is in, without the root."""
    return [str(folder) for folder in PurePosixPath(path).parents][:-1]
