"""The list of the files of a saved version: path, size and digest of each, kept beside the version.

A list belongs to a fingerprint, which is computed from nothing else: versions of the same data
share one, and a list that was cut or changed is found by computing it again. Above `MAX_LISTED`
files only the summary in the version (`trainjob.registry.contents`) says what there is.
"""

import gzip
import json
import zlib
from collections.abc import Sequence

from trainjob.registry.contents import ListedFile
from trainjob.registry.records import RegistryError, SavedDataset, SavedModel
from trainjob.registry.registry import Registry
from trainjob.storage.manifest import FileRecord, has_fingerprint

MAX_LISTED = 100_000
"""A list takes about 60 bytes a file; the blocks of Prefect's server hold it as a whole."""


def keep_list(registry: Registry, key: str, files: Sequence[ListedFile]) -> bool:
    """Keep the list of the files with a fingerprint; return whether there were not too many.

    Args:
        registry: Where the version will be.
        key: The fingerprint of the files.
        files: All of them.

    Raises:
        TrainjobError: If the registry cannot be written.
    """
    if len(files) > MAX_LISTED:
        return False
    rows = "".join(f"{json.dumps(file)}\n" for file in sorted(files))
    registry.place.keep_files(key, gzip.compress(rows.encode(), mtime=0))
    return True


def listed_files(registry: Registry, version: SavedDataset | SavedModel) -> list[ListedFile]:
    """Return the files of a version, by path.

    Raises:
        RegistryError: If no list was kept, or it is not that of the version any more.
        TrainjobError: If the registry cannot be read.
    """
    asked = f"the files of the saved {version.kind} {version} in {registry.place}"
    packed = registry.place.files_of(version.fingerprint)
    if packed is None:
        found = _why_none(version)
        do = f"list {version.url!r} itself, or register it again as a new version"
        raise RegistryError(asked, found, do)
    try:
        files = [ListedFile(*json.loads(row)) for row in gzip.decompress(packed).splitlines()]
        is_right = has_fingerprint([FileRecord(*file) for file in files], version.fingerprint)
    except (OSError, EOFError, zlib.error, ValueError, TypeError):  # of gzip, JSON and other rows
        is_right = False
    if not is_right:
        found = f"a list that is not that of {version.fingerprint}"
        raise RegistryError(asked, found, "restore it from a backup, or list the place itself")
    return files


def _why_none(version: SavedDataset | SavedModel) -> str:
    if not version.is_read:
        return "none, since the data was not read but said to be right by --expect"
    if version.num_files is not None and version.num_files > MAX_LISTED:
        return f"none, since there are {version.num_files:,}, more than {MAX_LISTED:,}"
    return "none"
