"""Which keys can be files below a folder. Asked before the first byte is copied."""

import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from trainjob.errors import UnsafeKey
from trainjob.storage.failures import failure

_MAX_SEGMENT_BYTES = 255  # NAME_MAX of Linux file systems


def check_paths(url: str, files: Sequence[str], folders: Iterable[str] = ()) -> None:
    """Refuse paths that would leave the target folder, fail there, or hide one another.

    Args:
        url: What the paths are below; for the message.
        files: Paths of files, relative, with ``/`` between the parts.
        folders: Paths of folders without a trailing ``/``.

    Raises:
        UnsafeKey: Naming the first such path.
    """
    for path in (*files, *folders):
        if reason := unsafe(path):
            raise _refused(url, path, reason)
    twice = next((path for path, count in Counter(files).items() if count > 1), None)
    if twice is not None:
        raise _refused(url, twice, "is there twice")
    parents: set[str] = set()
    for folder in {path.rpartition("/")[0] for path in files}:  # few, of many files
        parent = folder
        while parent and parent not in parents:
            parents.add(parent)
            parent = parent.rpartition("/")[0]
    parents.update(folders)
    for path in files:
        if path in parents:
            raise _refused(url, path, "is both a file and a folder")


def check_case(url: str, files: Iterable[str]) -> None:
    """Refuse paths that are one file on a disk that ignores case; see `folds_case`.

    Raises:
        UnsafeKey: Naming the first such path, and the one that it would hide.
    """
    paths: dict[str, str] = {}
    for file in files:
        for path in (file, *map(str, PurePosixPath(file).parents)):
            # Such disks take the two forms of an accented letter for one as well.
            other = paths.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
            if other != path:
                reason = f"is the same as {other!r} on this disk, which ignores case"
                raise _refused(url, path, reason)


def folds_case(folder: Path) -> bool:
    """Tell whether the disk of `folder`, which must be one to write to, ignores case."""
    probe = folder / f".case-{uuid.uuid4().hex}"
    probe.mkdir()
    try:
        return probe.with_name(probe.name.upper()).exists()
    finally:
        probe.rmdir()


def unsafe(path: str) -> str | None:
    """Say why a path cannot be a file below a folder; None if it can."""
    if not path:
        return "is that of the folder itself, and holds bytes"
    if path.startswith("/"):
        return "is an absolute path"
    if "\0" in path:
        return "holds a NUL character"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    segments = encoded.split(b"/")
    if b"" in segments[:-1]:
        return "has an empty part between two /"
    if segments[-1] == b"":
        return "ends in / as folders do, and holds bytes"
    if b"." in segments or b".." in segments:
        return "has . or .. as a part"
    if any(len(segment) > _MAX_SEGMENT_BYTES for segment in segments):
        return f"has a part of more than {_MAX_SEGMENT_BYTES} bytes"
    return None


def _refused(url: str, path: str, reason: str) -> UnsafeKey:
    return failure(UnsafeKey, url, f"the key {path!r} {reason}", "rename or remove it there")
