"""Looks at a folder that somebody is writing to.

Unlike the listing of a folder that is at rest, what vanishes meanwhile is no error, and what cannot
be sent is named instead of refused: it must not keep the rest from being saved.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainjob.errors import UnsafeKey
from trainjob.storage.failures import failure, local_failures
from trainjob.storage.keys import KeyRules
from trainjob.storage.listing import Entry
from trainjob.storage.local_tree import entry_of, real_path, wrong_link
from trainjob.storage.paths import unsafe

_TEMPORARY_ENDS = (".tmp", ".part", ".partial")
_TEMPORARY_START = ".tmp-"
_MAX_NAMED = 50


@dataclass(frozen=True, slots=True)
class Look:
    """What a folder held at one moment.

    Attributes:
        files: Its files by path.
        odd: What cannot be sent, and why, by path: broken links, links out, pipes, bad names, what
            this process may not read, keys that the store does not take.
        empty_folders: Folders that hold nothing.
        links: Where its links lead that are followed, as a path from the folder that each is in.
    """

    files: dict[str, Entry] = field(default_factory=dict)
    odd: Mapping[str, str] = field(default_factory=dict)
    empty_folders: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    def has(self, entry: Entry) -> bool:
        """Say whether this very version of a file was there."""
        return self.files.get(entry.path) == entry

    def still_odd(self, before: "Look") -> dict[str, str]:
        """Return what was odd before and is so now: a link may come before what it leads to."""
        return {path: why for path, why in self.odd.items() if before.odd.get(path) == why}


def look_at(root: Path, url: str, is_wanted: Callable[[str], bool]) -> Look:
    """Return what `root` holds now; nothing if there is no such folder.

    Args:
        root: The folder. Links are followed where they lead to places inside it.
        url: Where the files are sent; see `trainjob.storage.store.open_store`.
        is_wanted: Asked with the path of every file.
    """
    files, odd, empty, links = {}, {}, [], {}
    keys = KeyRules(url)
    with local_failures(str(root)):
        for found in _walk(root):
            path = found if isinstance(found, str) else found.path
            if not is_wanted(path):
                continue
            match found:
                case _Odd():
                    odd[path] = found.reason
                case _Link():
                    links[path] = found.target
                case Entry() if reason := keys.refusal(path):
                    odd[path] = reason
                case Entry():
                    files[path] = found
                case _ if reason := keys.refusal(f"{path}/"):
                    odd[path] = reason
                case _:
                    empty.append(path)
    return Look(files, odd, tuple(empty), links)


def refuse_link(root: Path) -> None:
    """See that a folder which we have made is not a link now.

    Raises:
        UnsafeKey: If it is: what it leads to is not what we made the folder for.
    """
    if root.is_symlink():
        found = f"the script has replaced this folder by a link to {str(root.readlink())!r}"
        raise failure(UnsafeKey, str(root), found, "let it write into the folder itself")


def named(odd: Mapping[str, str]) -> str:
    """Return what cannot be sent as a part of a sentence: some of it, if it is very much."""
    some = [f"{path!r} {reason}" for path, reason in sorted(odd.items())[:_MAX_NAMED]]
    more = len(odd) - len(some)
    return ", ".join(some) + (f" and {more:,} more" if more else "")


def is_temporary(path: str) -> bool:
    """Say whether a file has a name that programs give to what is not ready, or is hidden."""
    parts = path.split("/")
    return path.startswith(".") or any(
        part.startswith(_TEMPORARY_START) or part.endswith(_TEMPORARY_ENDS) for part in parts
    )


@dataclass(frozen=True, slots=True)
class _Odd:
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Link:
    path: str
    target: str


def _walk(root: Path) -> Iterator[Entry | _Odd | _Link | str]:
    """Yield files, what cannot be sent, links, and folders that hold nothing as their path.

    What a link leads to is yielded as well, under the name of the link.
    """
    real_root = root.resolve()
    pending = [(root, "", frozenset([real_root]))]
    while pending:
        folder, prefix, above = pending.pop()
        try:
            items = _items(folder)
        except PermissionError:
            yield _Odd(prefix.rstrip("/") or ".", "is a folder that this user may not read")
            continue
        if items == [] and prefix:
            yield prefix.rstrip("/")
        for item in items or ():
            path = prefix + item.name
            try:
                if reason := _oddity(item, path, real_root, above):
                    yield _Odd(path, reason)
                    continue
                if target := _target(item, folder, real_root / prefix):
                    yield _Link(path, target)
                if item.is_dir():
                    pending.append((Path(item.path), f"{path}/", above | {real_path(item)}))
                else:
                    yield entry_of(path, item.stat())
            except FileNotFoundError:  # it was deleted since the folder was read
                continue
            except PermissionError:
                yield _Odd(path, "is in, or leads to, a folder that this user may not search")


def _items(folder: Path) -> list[os.DirEntry[str]] | None:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):  # it was deleted, or replaced
        return None


def _oddity(
    item: os.DirEntry[str], path: str, real_root: Path, above: frozenset[Path]
) -> str | None:
    """Say why something in a folder cannot be sent; None if it can, or is a folder to go into."""
    if reason := unsafe(path):
        return reason
    if item.is_symlink() and (reason := wrong_link(item, real_root)):
        return reason
    if item.is_dir():
        return "is a link to a folder that it is in" if real_path(item) in above else None
    if not item.is_file():
        return "is not a regular file"
    return None if os.access(item.path, os.R_OK) else "is a file that this user may not read"


def _target(item: os.DirEntry[str], folder: Path, real: Path) -> str | None:
    """Return where a link leads from the folder that it is in; None if it is none that can be told.

    One in a folder that is reached by a link is told where that really is.
    """
    if not item.is_symlink() or folder.resolve() != real:
        return None
    try:
        target = os.path.relpath(real / Path(item.path).readlink(), real)
        target.encode()  # a name that is no text could not be written down
    except (OSError, UnicodeEncodeError):  # replaced by a file since the folder was read
        return None
    return target
