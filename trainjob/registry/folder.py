"""Keeps saved versions as files of a folder, which needs no server.

Version 3 of the dataset ``digits`` is ``dataset/digits/3.yaml``. A file appears whole, by link(2),
which fails where a file of that name is: of two processes that save at once each gets a number of
its own. The file of a version that was deleted stays and says so, so that ``digits@3`` never
becomes another thing.
"""

import os
import re
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from trainjob.registry.records import Kind, RegistryError
from trainjob.registry.registry import Registry
from trainjob.storage.failures import local_failures

_VERSION_FILE = re.compile(r"([1-9][0-9]*)\.yaml")
_OWN_PART = re.compile(r"\.[0-9a-f]{32}\.part")
_STALE_S = 3600.0
"""After this time a file that was not finished is that of a process that was killed."""


class FolderPlace:
    """A folder that keeps versions.

    Args:
        root: The folder; it need not exist.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def __str__(self) -> str:
        """Return the path of the folder."""
        return str(self._root)

    def names(self, kind: Kind) -> list[str]:
        """Return all names of which there ever was a version."""
        folder = self._root / kind
        with local_failures(str(folder)):
            return [path.name for path in folder.iterdir()] if folder.is_dir() else []

    def numbers(self, kind: Kind, name: str) -> list[int]:
        """Return all numbers that were ever given, in order."""
        folder = self._root / kind / name
        with local_failures(str(folder)):
            files = list(folder.iterdir()) if folder.is_dir() else []
        matches = (_VERSION_FILE.fullmatch(file.name) for file in files)
        return sorted(int(match[1]) for match in matches if match)

    def read(self, kind: Kind, name: str, number: int) -> Any:
        """Return the values in the file of a version.

        Raises:
            RegistryError: If it is no YAML.
        """
        file = self._file(kind, name, number)
        with local_failures(str(file)):
            text = file.read_bytes()
        try:
            return yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of a date
            found, do = "no YAML", "restore the file from a backup, or move it away"
            raise RegistryError(f"a saved version in {str(file)!r}", found, do) from error

    def create(self, kind: Kind, name: str, number: int, values: dict[str, Any]) -> None:
        """Write the file of a new version, whole or not at all.

        Raises:
            FileExistsError: If there is one.
        """
        file = self._file(kind, name, number)
        is_taken = False
        with local_failures(str(file)):
            file.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale_parts(file.parent)
            part = _written_part(file.parent, values)
            try:
                file.hardlink_to(part)
            except FileExistsError:
                is_taken = True
            finally:
                part.unlink()
        if is_taken:
            raise FileExistsError(file)

    def replace(self, kind: Kind, name: str, number: int, values: dict[str, Any]) -> None:
        """Write the file of a version anew, whole or not at all."""
        file = self._file(kind, name, number)
        with local_failures(str(file)):
            _written_part(file.parent, values).replace(file)

    def _file(self, kind: Kind, name: str, number: int) -> Path:
        return self._root / kind / name / f"{number}.yaml"


def registry_of_machine() -> Registry:
    """Return the registry in the folder ``TRAINJOB_REGISTRY``, or ``~/.trainjob/registry``."""
    chosen = os.environ.get("TRAINJOB_REGISTRY")
    root = Path(chosen).absolute() if chosen else Path.home() / ".trainjob" / "registry"
    return Registry(FolderPlace(root))


def _written_part(folder: Path, values: dict[str, Any]) -> Path:
    """Write values to a new file beside those of the versions, and return its path."""
    part = folder / f".{uuid.uuid4().hex}.part"
    with part.open("w", encoding="utf-8") as file:
        yaml.safe_dump(values, file, sort_keys=False, allow_unicode=True)
        file.flush()
        os.fsync(file.fileno())
    return part


def _remove_stale_parts(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if _OWN_PART.fullmatch(path.name) and time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()
