"""Keeps saved versions as files of a folder, which needs no server.

Version 3 of the dataset ``digits`` is ``dataset/digits/3.yaml``. A file appears whole, by link(2),
which fails where a file of that name is: of two processes that save at once each gets a number of
its own. The file of a version that was deleted stays and says so, and the empty file ``.given-3``
tells that 3 was given where somebody took the file away: ``digits@3`` never becomes another thing.
The files of a fingerprint are listed in ``files/FINGERPRINT.jsonl.gz``. ``flavors.yaml`` has the
flavors of the platform (`trainjob.flavor_catalogue`), written by its people.
"""

import os
import re
import time
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from trainjob.jobfile import read_job_file
from trainjob.registry.records import Kind, RegistryError
from trainjob.registry.registry import Kept, KeptFlavors, Registry
from trainjob.storage.failures import local_failures

_VERSION_FILE = re.compile(r"([1-9][0-9]*)\.yaml")
_GIVEN_FILE = re.compile(r"\.given-([1-9][0-9]*)")
_OWN_PART = re.compile(r"\.[0-9a-f]{32}\.part")
IN_PREFECT = "prefect"
"""What ``TRAINJOB_REGISTRY`` says if saved versions are kept by the server, and not in a folder."""
_FLAVORS = "flavors.yaml"
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

    def versions(self, kind: Kind, name: str | None = None) -> list[Kept]:
        """Return all versions of a name, or of all names, by name and number."""
        folder = self._root / kind
        with local_failures(str(folder)):
            names = [path.name for path in _entries(folder)] if name is None else [name]
            return [
                Kept(each, number, partial(self._read, kind, each, number))
                for each in sorted(names)
                for number in _numbers(folder / each, _VERSION_FILE)
            ]

    def last_number(self, kind: Kind, name: str) -> int:
        """Return the highest number that was ever given; 0 if there was none."""
        folder = self._root / kind / name
        with local_failures(str(folder)):
            given = _numbers(folder, _VERSION_FILE) + _numbers(folder, _GIVEN_FILE)
        return max(given, default=0)

    def create(self, kind: Kind, name: str, number: int, values: dict[str, Any]) -> None:
        """Write the file of a new version, whole or not at all; its number is given from then on.

        Raises:
            FileExistsError: If there is one.
        """
        file = self._file(kind, name, number)
        is_taken = False
        with local_failures(str(file)):
            file.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale_parts(file.parent)
            _note_given(file.parent, number)
            part = _written_part(file.parent, _yaml(values))
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
            _written_part(file.parent, _yaml(values)).replace(file)

    def keep_files(self, key: str, packed: bytes) -> None:
        """Write the list of the files with a fingerprint; what is there already stays."""
        file = self._files_file(key)
        with local_failures(str(file)):
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                _remove_stale_parts(file.parent)
                _written_part(file.parent, packed).replace(file)

    def files_of(self, key: str) -> bytes | None:
        """Return what was kept for a fingerprint; None if nothing was."""
        file = self._files_file(key)
        with local_failures(str(file)):
            return file.read_bytes() if file.exists() else None

    def flavors(self) -> KeptFlavors:
        """Return what ``flavors.yaml`` says; without that file there are none."""
        file = self._root / _FLAVORS
        lines = read_job_file(file, "flavors") if file.exists() else {}
        return KeptFlavors(str(file), list(lines.items()))

    def _read(self, kind: Kind, name: str, number: int) -> Any:
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
            delete = f"python -m flows {kind} delete {name}@{number} --force"
            do = f"restore the file from a backup, or `{delete}`"
            raise RegistryError(f"a saved version in {str(file)!r}", "no YAML", do) from error

    def _files_file(self, key: str) -> Path:
        return self._root / "files" / f"{key.removeprefix('sha256:')}.jsonl.gz"

    def _file(self, kind: Kind, name: str, number: int) -> Path:
        return self._root / kind / name / f"{number}.yaml"


def registry_folder() -> Path:
    """Return the folder ``TRAINJOB_REGISTRY``, or ``~/.trainjob/registry``."""
    chosen = os.environ.get("TRAINJOB_REGISTRY")
    is_folder = chosen not in (None, "", IN_PREFECT)
    return Path(str(chosen)).absolute() if is_folder else Path.home() / ".trainjob" / "registry"


def flavors_file() -> Path:
    """Return the file with the flavors of the platform on this machine; it need not exist."""
    return registry_folder() / _FLAVORS


def registry_of_machine() -> Registry:
    """Return the registry in `registry_folder`."""
    return Registry(FolderPlace(registry_folder()))


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _numbers(folder: Path, form: re.Pattern[str]) -> list[int]:
    """Return the numbers in the names of those files that have this form, in order."""
    matches = (form.fullmatch(file.name) for file in _entries(folder))
    return sorted(int(match[1]) for match in matches if match)


def _note_given(folder: Path, number: int) -> None:
    """Note that a number is given; of all notes that of the highest is enough."""
    (folder / f".given-{number}").touch()
    for older in _numbers(folder, _GIVEN_FILE):
        if older < number:
            (folder / f".given-{older}").unlink(missing_ok=True)


def _yaml(values: dict[str, Any]) -> bytes:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, encoding="utf-8")


def _written_part(folder: Path, content: bytes) -> Path:
    """Write a new file beside those of the versions, and return its path."""
    part = folder / f".{uuid.uuid4().hex}.part"
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return part


def _remove_stale_parts(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if _OWN_PART.fullmatch(path.name) and time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()
