"""Protects folders of the cache from being written to, and removes them all the same."""

import errno
import logging
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

_LOGGER = logging.getLogger(__name__)
_WRITABLE = 0o700


def protect(folder: Path) -> dict[str, int]:
    """Take the right to write from a folder and everything in it; what can be run stays so.

    Permissions do not bind root, and some disks let nobody set them, such as shares of Windows and
    some of FUSE: what a script writes there is found by `Snapshot.differences`.

    Returns:
        When each file was written last, in nanoseconds since 1970, by its path below the folder.
    """
    times: dict[str, int] = {}
    refused: OSError | None = None
    pending = [(str(folder), "")]
    while pending:
        path, prefix = pending.pop()
        with os.scandir(path) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    pending.append((item.path, f"{prefix}{item.name}/"))
                    continue
                stat = item.stat(follow_symlinks=False)
                mode = 0o444 | stat.st_mode & 0o111
                if stat.st_mode & 0o7777 != mode:  # files of an older snapshot have it
                    refused = _refusal(item.path, mode) or refused
                times[prefix + item.name] = stat.st_mtime_ns
        refused = _refusal(path, 0o555) or refused
    if refused is not None:
        _LOGGER.warning(
            "the disk of %s lets nobody set permissions (%s), so that scripts could write into "
            "data that runs share",
            folder,
            refused.strerror,
        )
    return times


def open_folders(folder: Path) -> None:
    """Give the right to write back to a folder and all below it, not to the files in them."""
    for path, _, _ in os.walk(folder, onerror=None):
        with suppress(OSError):
            Path(path).chmod(_WRITABLE)


def remove(folder: Path, trash: Path) -> bool:
    """Remove a folder; it is gone from its place at once, and never there in part.

    Args:
        folder: What to remove.
        trash: A folder on the same file system, for the time that it takes.

    Returns:
        Whether it was there.
    """
    trash.mkdir(parents=True, exist_ok=True)
    try:
        aside = set_aside(folder, trash / uuid.uuid4().hex)
    except FileNotFoundError:
        return False
    destroy(aside)
    return True


def set_aside(folder: Path, moved: Path) -> Path:
    """Let a folder of the cache be none at once, so that it can be removed bit by bit.

    Args:
        folder: The folder.
        moved: What it is to be called meanwhile.

    Returns:
        Where it is.

    Raises:
        OSError: If it is not there, or this user may not.
    """
    try:
        folder.rename(moved)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A folder of a lower layer of overlayfs, as one in the image of a container, has to stay
        # (overlayfs.rst of Linux, "Renaming directories"). Its files say what it is, `used` first.
        for file in sorted(folder.iterdir(), reverse=True):
            if file.is_file():
                file.unlink()
        return folder
    return moved


def destroy(folder: Path) -> None:
    """Remove a folder whatever its permissions; another process may be doing the same."""
    open_folders(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _refusal(path: str, mode: int) -> OSError | None:
    """Set the permissions of a file or folder; return why that cannot be done, if so."""
    try:
        os.chmod(path, mode)  # noqa: PTH101 - half the time of Path, for each file
    except OSError as error:
        return error
    return None
