"""Unpacks a dataset that is one archive: .zip, .tar, .tar.gz, .tgz and .tar.zst.

What the archive holds is examined by `trainjob.storage.archive_tree`; here is said how large it
may become, and what a person can do about one that is refused. Used by staging.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from trainjob.errors import StoreError, StoreNotFound, UnsafeKey
from trainjob.storage.archive_members import BadArchive, Member
from trainjob.storage.archive_tree import BadMembers, Fault, is_stream, unpack_tree
from trainjob.storage.failures import failure, local_failures
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.replace import check_space
from trainjob.values import format_size

DATASET_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst")
MAX_RATIO = 100
"""How often its size an archive may unpack to; images and texts stay below 20."""

UNSUSPICIOUS_BYTES = 1 << 30
"""What any archive may unpack to; so much of zeros or labels is nothing odd."""

_MEMBER_BYTES = 512  # what an empty file costs at least; a bomb may be made of nothing else
_LARGE_BYTES = 1 << 20  # to ask the disk before smaller files would cost more than it saves
_OTHER_NAMES = ("gbk", "big5", "shift_jis", "euc_kr")
_ADVICE = {
    "is encrypted": "without a password",
    "which is not known": "with the method Deflate (7-Zip: -mm=Deflate)",
    # As Compress-Archive of Windows PowerShell 5 writes them; APPNOTE.TXT 4.4.17.1 wants slashes.
    "holds a backslash": "with a tool that writes / between folders, such as 7-Zip or PowerShell 7",
}


def is_dataset_archive(path: str) -> bool:
    """Say whether a url or path names an archive that a dataset may be, by its ending."""
    return path.lower().endswith(DATASET_SUFFIXES)


def unpack_dataset(
    archive: Path,
    place: str,
    target: Path,
    names: str,
    meter: Meter,
    *,
    any_ratio: bool = False,
    reserve: Callable[[int], object] | None = None,
) -> list[FileRecord]:
    """Unpack a dataset into the new folder `target`, as a whole or not at all.

    Regular files and folders only. Of the modes, only executable or not is kept.

    Args:
        archive: The archive on this machine; its name says its kind.
        place: What messages call it, such as its url.
        target: A folder that is not there yet, in one that is.
        names: The encoding of names that are not marked as UTF-8, as ``archive_names`` has it.
        meter: Counts the files and bytes that are unpacked. It is told how many there are: of a
            compressed tar when it is read to its end.
        any_ratio: Whether it may become more than `MAX_RATIO` times as large: ``unpack: always``.
        reserve: Called with the bytes that are about to be written, of a compressed tar with those
            of its next large file; raises if they do not fit. Absent: `check_space` is asked.

    Returns:
        What every file holds, in the order of the archive.

    Raises:
        UnsafeKey: If members are encrypted, links, absolute, lead out of the folder, exclude one
            another, or have names in another encoding; they are named.
        StoreError: If it cannot be read as an archive, holds no file, or does not fit.
    """
    with local_failures(place):
        archive_bytes = archive.stat().st_size
    most_bytes = max(UNSUSPICIOUS_BYTES, MAX_RATIO * archive_bytes)
    limits = _DatasetLimits(
        place,
        archive_bytes,
        most_bytes=None if any_ratio else most_bytes,
        is_stream=is_stream(archive),
        reserve=reserve or partial(check_space, target.parent),
        meter=meter,
    )
    with _told(place, names):
        return unpack_tree(archive, place, target, limits, meter, names)


class _DatasetLimits:
    """Adds up what is declared, and stops before the disk is full or a bomb goes off."""

    def __init__(
        self,
        place: str,
        archive_bytes: int,
        *,
        most_bytes: int | None,
        is_stream: bool,
        reserve: Callable[[int], object],
        meter: Meter,
    ) -> None:
        self._place = place
        self._archive_bytes = archive_bytes
        self._most_bytes = most_bytes
        self._is_stream = is_stream
        self._reserve = reserve
        self._meter = meter
        self._num_files = 0
        self._size_bytes = 0
        self._needed_bytes = 0

    def admit(self, member: Member) -> None:
        self._num_files += not member.is_folder
        self._size_bytes += member.size_bytes
        self._needed_bytes += member.size_bytes + _MEMBER_BYTES
        if self._most_bytes is not None and self._needed_bytes > self._most_bytes:
            # Of a zip only so much was read of its table; the whole may be larger still.
            found = (
                f"{format_size(self._archive_bytes)} that unpack to "
                f"{format_size(self._needed_bytes)} or more, which is above {MAX_RATIO} times its "
                "size"
            )
            do = "see what is in it, and say unpack: always if it is meant to be so"
            raise failure(StoreError, self._place, found, do)
        if self._is_stream and member.size_bytes >= _LARGE_BYTES:
            self._reserve(member.size_bytes)

    def finish(self) -> None:
        if not self._num_files:
            found, do = "an archive without a file", "put the files into it"
            raise failure(StoreNotFound, self._place, found, do)
        if not self._is_stream:
            self._reserve(self._needed_bytes)
        self._meter.expect(self._num_files, self._size_bytes)


@contextmanager
def _told(place: str, names: str) -> Iterator[None]:
    try:
        yield
    except BadArchive as error:
        found = f"bytes that cannot be read as an archive of that name ({error})"
        raise failure(StoreError, place, found, "make or upload the archive again") from error
    except BadMembers as error:
        found = f"members of the archive that are refused: {error}"
        do = _advice_on_names(error.faults, names) or _advice_on_all(error.faults)
        raise failure(UnsafeKey, place, found, do) from error


def _advice_on_names(faults: Sequence[Fault], names: str) -> str | None:
    """Show how a name that is not in the encoding `names` reads in others."""
    raw = next((fault.name for fault in faults if not _is_text(fault.name)), None)
    if raw is None:
        return None
    readings = []
    for other in _OTHER_NAMES:
        with suppress(UnicodeDecodeError):
            text = raw.encode(names, "surrogateescape").decode(other)
            readings.append(f"{other} (reads {text!r})")
    return f"say how its names are written, as archive_names: {', '.join(readings) or 'cp437'}"


def _advice_on_all(faults: Sequence[Fault]) -> str:
    """Say what else can be done than to leave the members out, if that helps with all of them."""
    for words, advice in _ADVICE.items():
        if all(words in fault.reason for fault in faults):
            return f"make the archive again {advice}"
    return "make the archive again without them"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
