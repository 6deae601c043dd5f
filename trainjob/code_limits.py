"""What a code folder may hold, asked of a list of its files before the first byte is copied.

How much that is says the product that a job is written for (`trainjob.profiles`), or the
environment of the machine. Used by the modules that fetch code.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

from trainjob.errors import Problem, SourceError
from trainjob.storage.listing import Listing
from trainjob.values import counted, format_size, parse_size

MAX_FILES_ENV, MAX_SIZE_ENV = "TRAINJOB_CODE_MAX_FILES", "TRAINJOB_CODE_MAX_SIZE"
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


_MUCH_BYTES = 500 * 10**6
_LARGE_BYTES = 100 * 10**6
"""No file of code is so large: GitHub, "About large files", takes none above 100 MB."""


def limits_of_machine(limits: CodeLimits) -> CodeLimits:
    """Return limits with those that the environment of this process has in their place.

    Args:
        limits: Those of the product that a job is written for.

    Raises:
        SourceError: If ``TRAINJOB_CODE_MAX_FILES`` is no number, or ``TRAINJOB_CODE_MAX_SIZE`` no
            size.
    """
    files, size = os.environ.get(MAX_FILES_ENV), os.environ.get(MAX_SIZE_ENV)
    if files and not (files.isdecimal() and int(files)):
        do = "write how many files and folders the code of a job may have"
        raise refused("a number above 0", repr(files), do, MAX_FILES_ENV)
    try:
        max_bytes = parse_size(size) if size else limits.max_bytes
    except ValueError as error:
        raise refused("a size", repr(size), str(error), MAX_SIZE_ENV) from error
    return CodeLimits(int(files) if files else limits.max_entries, max_bytes)


def data_problems(listing: Listing) -> list[Problem]:
    """Warn of code that is so large that there must be data in it.

    ModelArts, "Creating an Algorithm": "Do not store training data in the code directory".
    """
    largest = max(listing.files, key=lambda file: file.size_bytes)
    if listing.size_bytes <= _MUCH_BYTES and largest.size_bytes <= _LARGE_BYTES:
        return []
    found = f"{format_size(listing.size_bytes)} in {counted(len(listing.files), 'file')}, the "
    found += f"largest being {largest.path!r} ({format_size(largest.size_bytes)})"
    do = "every run copies all of it: give data and weights as inputs, which stay in the cache, "
    do += "and name in a file .trainignore what of a folder of this machine is no code"
    asked = "a folder of code"
    return [Problem(URL_FIELD, asked, found, do, id="code-data", level="warning")]


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
