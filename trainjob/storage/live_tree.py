"""Looks at a folder that somebody is writing to.

Unlike the listing of a folder that is at rest, what vanishes meanwhile is no error, and what cannot
be sent is named instead of refused: it must not keep the rest from being saved.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainjob.storage.failures import local_failures
from trainjob.storage.listing import Entry
from trainjob.storage.local_tree import entry_of
from trainjob.storage.paths import unsafe

_TEMPORARY_ENDS = (".tmp", ".part", ".partial")
_TEMPORARY_START = ".tmp-"


@dataclass(frozen=True, slots=True)
class Look:
    """What a folder held at one moment.

    Attributes:
        files: Its files by path.
        odd: Paths that are no files which can be sent: broken links, links out, pipes, bad names.
    """

    files: dict[str, Entry] = field(default_factory=dict)
    odd: tuple[str, ...] = ()

    def has(self, entry: Entry) -> bool:
        """Say whether this very version of a file was there."""
        return self.files.get(entry.path) == entry


def look_at(root: Path, is_wanted: Callable[[str], bool]) -> Look:
    """Return what `root` holds now; nothing if there is no such folder.

    Args:
        root: The folder. Links are followed where they lead to places inside it.
        is_wanted: Asked with the path of every file.
    """
    files, odd = {}, []
    with local_failures(str(root)):
        for found in _walk(root):
            if isinstance(found, Entry):
                if is_wanted(found.path):
                    files[found.path] = found
            elif is_wanted(found):
                odd.append(found)
    return Look(files, tuple(odd))


def is_temporary(path: str) -> bool:
    """Say whether a file has a name that programs give to what is not ready, or is hidden."""
    parts = path.split("/")
    return path.startswith(".") or any(
        part.startswith(_TEMPORARY_START) or part.endswith(_TEMPORARY_ENDS) for part in parts
    )


def _walk(root: Path) -> Iterator[Entry | str]:
    """Yield files as entries, and as its path what is neither a file nor a folder to go into."""
    real_root = root.resolve()
    pending = [(root, "", frozenset([real_root]))]
    while pending:
        folder, prefix, above = pending.pop()
        for item in _items(folder):
            path, place = prefix + item.name, Path(item.path)
            try:
                is_odd = unsafe(path) or (item.is_symlink() and not _is_inside(place, real_root))
                if item.is_dir() and not is_odd and (real := place.resolve()) not in above:
                    pending.append((place, f"{path}/", above | {real}))
                elif item.is_file() and not is_odd:
                    yield entry_of(path, item.stat())
                else:
                    yield path
            except FileNotFoundError:  # it was deleted since the folder was read
                continue


def _items(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):  # it was deleted, or replaced
        return []


def _is_inside(link: Path, root: Path) -> bool:
    return link.exists() and link.resolve().is_relative_to(root)
