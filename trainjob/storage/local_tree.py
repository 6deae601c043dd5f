"""Reads folders of this machine: which files they hold, and what is in them.

Links are followed, each folder once on every way down. Anything that is neither a file nor a
folder is refused by name, never skipped: a copy without it would be silently incomplete.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from trainjob.errors import TreeChanged, UnsafeKey
from trainjob.storage.deadline import check_deadline
from trainjob.storage.failures import failure, local_failure
from trainjob.storage.listing import Entry, Listing
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter

_CHUNK_BYTES = 1 << 20


def list_folder(root: Path, links_inside: bool = False) -> Listing:
    """Return every file below `root` and every folder; nothing if `root` is not a folder.

    Args:
        root: The folder.
        links_inside: Whether links may lead only to places below `root`.

    Raises:
        UnsafeKey: For a link that is broken, circular or leads out, or a device, socket or pipe.
        StoreDenied: Naming a folder that this user may not read.
    """
    files, folders = [], []
    for entry in walk(root, links_inside):
        if isinstance(entry, Entry):
            files.append(entry)
        else:
            folders.append(entry)
    return Listing(tuple(files), tuple(folders))


def walk(root: Path, links_inside: bool = False) -> Iterator[Entry | str]:
    """Yield files as entries and folders as their path; see `list_folder`."""
    if not root.is_dir():
        return
    real_root = root.resolve()
    pending = [(root, "", frozenset([real_root]))]
    while pending:
        folder, prefix, above = pending.pop()
        try:
            with os.scandir(folder) as found:
                items = sorted(found, key=lambda item: item.name)
        except FileNotFoundError:  # deleted since it was seen
            continue
        except PermissionError as error:
            raise local_failure(str(folder), error) from error
        for item in items:
            path = prefix + item.name
            if item.is_symlink() and (reason := wrong_link(item, real_root, links_inside)):
                raise _refused(root, path, reason)
            if item.is_dir():
                if (real := real_path(item)) in above:
                    raise _refused(root, path, "is a link to a folder that it is in")
                yield path
                pending.append((Path(item.path), path + "/", above | {real}))
            elif item.is_file():
                with suppress(FileNotFoundError):  # deleted since it was seen
                    yield entry_of(path, item.stat())
            else:
                raise _refused(root, path, "is not a regular file")


def wrong_link(item: os.DirEntry[str], real_root: Path, stays_inside: bool = True) -> str | None:
    """Say why a link cannot be followed; None if it can.

    Args:
        item: The link.
        real_root: The folder that is read.
        stays_inside: Whether it may lead only to places below that folder.

    Raises:
        PermissionError: If this user may not look at what it leads to.
    """
    if stays_inside and not (real := real_path(item)).is_relative_to(real_root):
        return f"is a link out of the folder, to {str(real)!r}"
    try:
        item.stat()
    except PermissionError:
        raise
    except OSError:  # a loop, too, and a name that no disk takes
        return "is a link that leads to nothing"
    return None


def real_path(item: os.DirEntry[str]) -> Path:
    """Return where something in a folder really is."""
    # Not Path.resolve, which raises a RuntimeError for a loop until Python 3.13.
    return Path(os.path.realpath(item.path))


def entry_of(path: str, stat: os.stat_result) -> Entry:
    """Return the entry of a file of this machine in a listing."""
    return Entry(path, stat.st_size, _version(stat))


def copy_file(file: Path, entry: Entry, copy: BinaryIO | None, meter: Meter) -> FileRecord:
    """Read `file`, write it to `copy` if one is given, and say what was read.

    Args:
        file: The file to read.
        entry: The file as it was listed.
        copy: An open file; it stays open.
        meter: Counts the bytes.

    Raises:
        TreeChanged: If the file is not, or no longer, the one that was listed.
    """
    digest = hashlib.sha256()
    try:
        with open_listed(file, entry) as source:
            while chunk := source.read(_CHUNK_BYTES):
                check_deadline(str(file))
                digest.update(chunk)
                if copy is not None:
                    copy.write(chunk)
                meter.add_bytes(len(chunk))
        if version_of(file) != entry.version:
            raise changed(file)
    except FileNotFoundError as error:
        raise changed(file) from error
    return FileRecord(entry.path, entry.size_bytes, digest.hexdigest())


def open_listed(file: Path, entry: Entry) -> BufferedReader:
    """Open a file to read if it is the very one that was listed; who calls closes it.

    A script that still runs may have put a link in its place, to what is not to be copied.

    Raises:
        TreeChanged: If it is another one.
        FileNotFoundError: If there is none any more.
    """
    # Without O_NONBLOCK, a pipe would be waited for.
    opened = os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if os.fstat(opened.fileno()).st_ino != _inode_of(entry):
        opened.close()
        raise changed(file)
    return opened


def digest_file(file: Path) -> str:
    """Return the sha256 of what `file` holds."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_back(file: Path) -> None:
    """Have the disk hold what was written to `file`, so that its version tells of what comes later.

    A store through a memory map changes the time of a file only if its page was written back since
    the one before it (mmap(2), on ``st_mtime``); a file system in memory never does that.
    """
    with suppress(OSError):  # it is gone, or of a kind that the disk does not hold
        opened = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def version_of(file: Path) -> str:
    """Return text that changes when the content of `file` does, without reading it."""
    return _version(file.stat())


def mtime_ns_of(entry: Entry) -> int:
    """Return when a listed file of this machine was last written, in nanoseconds."""
    # There is a minus before the time of a file that was written before 1970.
    _, _, rest = entry.version.partition("-")
    return int(rest.rpartition("-")[0])


def _inode_of(entry: Entry) -> int:
    return int(entry.version.rpartition("-")[2])


def changed(file: Path) -> TreeChanged:
    """Return the error for a file that changed while it was read."""
    return failure(
        TreeChanged,
        str(file),
        "the file changed while it was copied",
        "run again when nothing writes to it",
    )


def _version(stat: os.stat_result) -> str:
    return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"


def _refused(root: Path, path: str, reason: str) -> UnsafeKey:
    return failure(UnsafeKey, str(root), f"{path!r} {reason}", "remove it or put a file there")
