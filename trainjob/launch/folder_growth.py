"""Notices that files in some folders grow or change, however many there are.

Used by `liveness`; standard library alone.
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_LOOKS_A_WINDOW = 4
_MAX_SHARE = 0.02
_MAX_ENTRIES = 100_000


class FolderGrowth:
    """What the folders held when they were last looked at.

    Args:
        folders: Where to look, with all that is below; they need not be there.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._seen: tuple[int, int, int] | None = None
        self._look_at = 0.0

    def look(self, window_s: float, *, at_once: bool = False) -> bool:
        """Tell whether anything has changed since the last look.

        Looks four times in `window_s`, and for 2 % of the time at most, except `at_once`.
        """
        begun = time.monotonic()
        if begun < self._look_at and not at_once:
            return False
        before, self._seen = self._seen, self._scan()
        ended = time.monotonic()
        self._look_at = ended + max(window_s / _LOOKS_A_WINDOW, (ended - begun) / _MAX_SHARE)
        return before is not None and self._seen != before

    def _scan(self) -> tuple[int, int, int]:
        """Return number and size of all files, and the time of the last change."""
        num_files = size_bytes = changed_ns = 0
        for folder in self._folders:
            for entry in _files_below(folder):
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:  # removed meanwhile
                    continue
                num_files += 1
                size_bytes += found.st_size
                changed_ns = max(changed_ns, found.st_mtime_ns)
                if num_files >= _MAX_ENTRIES:
                    return num_files, size_bytes, changed_ns
        return num_files, size_bytes, changed_ns


def _files_below(folder: Path) -> Iterator["os.DirEntry[str]"]:
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        yield entry
        except OSError:  # removed meanwhile, or not there
            continue
