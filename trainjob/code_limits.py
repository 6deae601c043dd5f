"""What a code folder may hold, asked of a list of its files before the first byte is copied.

ModelArts, "Creating an Algorithm": the code directory has at most 1,024 files and folders together
and at most 5 GB; we read GB as GiB. Used by the modules that fetch code.
"""

from collections import Counter
from pathlib import PurePosixPath

from trainjob.errors import Problem, SourceError
from trainjob.storage.listing import Listing
from trainjob.values import format_size

URL_FIELD = "algorithm.code.url"
MAX_ENTRIES = 1024
MAX_CODE_BYTES = 5 << 30

_USE_A_CHANNEL = "leave out what the training does not import, and give data as an input channel"


def check_limits(place: str, listing: Listing) -> int:
    """Return the number of files and folders below a code folder.

    Args:
        place: Where the code is, for the message.
        listing: Everything below it; folders that are only part of a path are counted too.

    Raises:
        SourceError: If it holds no file, too many or too large ones.
    """
    if not listing.files:
        raise refused("code", f"no file in {place!r}", "check the url and put the code there")
    entries = _entries(listing)
    if len(entries) > MAX_ENTRIES:
        folder, count = Counter(path.partition("/")[0] for path in entries).most_common(1)[0]
        most = f", {count:,} of them in {folder!r}" if count > 1 else ""
        raise too_many_entries(place, f"{len(entries):,}", most)
    if listing.size_bytes > MAX_CODE_BYTES:
        largest = max(listing.files, key=lambda file: file.size_bytes)
        raise too_large(place, listing.size_bytes, largest.path)
    return len(entries)


def too_many_entries(place: str, count: str, most: str = "") -> SourceError:
    """Return the error for a code folder with `count` files and folders."""
    asked = f"code of at most {MAX_ENTRIES:,} files and folders"
    return refused(asked, f"{count} in {place!r}{most}", _USE_A_CHANNEL)


def too_large(place: str, size_bytes: int, largest: str) -> SourceError:
    """Return the error for a code folder of `size_bytes` with the path of its largest file."""
    asked = f"code of at most {format_size(MAX_CODE_BYTES)}"
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
