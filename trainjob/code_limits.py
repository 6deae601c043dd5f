"""What a code folder may hold, asked of a list of its files before the first byte is copied.

How much that is says the product that a job is written for (`trainjob.profiles`). Used by the
modules that fetch code.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

from trainjob.errors import Problem, SourceError
from trainjob.storage.listing import Listing
from trainjob.values import format_size

URL_FIELD = "algorithm.code.url"
_USE_A_CHANNEL = "leave out what the training does not import, and give data as an input channel"


@dataclass(frozen=True, slots=True)
class CodeLimits:
    """How much code a job may have.

    Attributes:
        max_entries: Files and folders together.
        max_bytes: Size of all files.
    """

    max_entries: int
    max_bytes: int


MODELARTS_LIMITS = CodeLimits(1024, 5 << 30)
"""ModelArts, "Creating an Algorithm": "The number of files (including files and folders) cannot
exceed 1,024", "The total file size cannot exceed 5 GB"; we read GB as GiB."""

OWN_LIMITS = CodeLimits(100_000, 5 << 30)
"""Of products that tell no limits. Every run copies its code: more than this is data, or a home
folder that was given by mistake."""


def check_limits(place: str, listing: Listing, limits: CodeLimits) -> int:
    """Return the number of files and folders below a code folder.

    Args:
        place: Where the code is, for the message.
        listing: Everything below it; folders that are only part of a path are counted too.
        limits: What is allowed.

    Raises:
        SourceError: If it holds no file, too many or too large ones.
    """
    if not listing.files:
        raise refused("code", f"no file in {place!r}", "check the url and put the code there")
    entries = _entries(listing)
    if len(entries) > limits.max_entries:
        folder, count = Counter(path.partition("/")[0] for path in entries).most_common(1)[0]
        most = f", {count:,} of them in {folder!r}" if count > 1 else ""
        raise too_many_entries(place, f"{len(entries):,}", limits, most)
    if listing.size_bytes > limits.max_bytes:
        largest = max(listing.files, key=lambda file: file.size_bytes)
        raise too_large(place, listing.size_bytes, largest.path, limits)
    return len(entries)


def too_many_entries(place: str, count: str, limits: CodeLimits, most: str = "") -> SourceError:
    """Return the error for a code folder with `count` files and folders."""
    asked = f"code of at most {limits.max_entries:,} files and folders"
    return refused(asked, f"{count} in {place!r}{most}", _USE_A_CHANNEL)


def too_large(place: str, size_bytes: int, largest: str, limits: CodeLimits) -> SourceError:
    """Return the error for a code folder of `size_bytes` with the path of its largest file."""
    asked = f"code of at most {format_size(limits.max_bytes)}"
    found = f"{format_size(size_bytes)} in {place!r}, the largest file being {largest!r}"
    return refused(asked, found, _USE_A_CHANNEL)


def refused(asked: str, found: str, do: str, field: str = URL_FIELD) -> SourceError:
    """Return the error whose only argument is the problem of the job that it is."""
    return SourceError(Problem(field, asked, found, do))


def _entries(listing: Listing) -> set[str]:
    entries = set(listing.folders)
    for path in [*(file.path for file in listing.files), *listing.folders]:
        entries.update((path, *(str(parent) for parent in PurePosixPath(path).parents)))
    return entries - {"."}
