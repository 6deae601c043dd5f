"""What a job's ``requirements.txt`` asks for, told apart from all that asks for something else."""

import hashlib
import json
import re
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.utils import canonicalize_name

from trainjob.environments.worker import installed_names, kept_versions, site_folders
from trainjob.errors import Problem
from trainjob.requirements_file import FILE, RequirementLine, requirement_lines
from trainjob.storage.local_tree import digest_file, list_folder
from trainjob.storage.manifest import FileRecord, fingerprint

_FIELD = "environment.requirements"
_PLACE_OF_PACKAGES = re.compile(r"-f|--find-links|-i|--index-url|--extra-index-url")
_FORMAT = 2
"""Changes when environments are made in another way."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An environment that is asked for.

    Attributes:
        code_dir: The code, whose file asks for it.
        key: The same for all that get the same: what the file and those it includes say, the
            Python, and what the worker has, on which it builds.
        lines: What is installed, for a person.
    """

    code_dir: Path
    key: str
    lines: tuple[str, ...]


def asked_by(code_dir: Path) -> Asked:
    """Return what the requirements of the code ask for on this machine."""
    lines = requirement_lines(code_dir)
    parts = [
        *(_FORMAT, sys.version, sysconfig.get_platform(), sys.prefix),
        *(site_folders(), installed_names()),
        [(line.text, line.is_constraint) for line in lines],
        _content(code_dir) if any(map(_may_be_in_code, lines)) else "",
    ]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return Asked(code_dir, key, tuple(line.text for line in lines if not line.is_constraint))


def requirements_problems(code_dir: Path) -> list[Problem]:
    """Return what keeps the requirements of the code from being installed, as far as can be seen.

    Whether there are such packages is known to pip alone.
    """
    if not (code_dir / FILE).is_file():
        do = f"put {FILE} at the top of the code, or write requirements: false"
        return [Problem(_FIELD, "true", f"no {FILE} in the code", do)]
    problems = []
    if not _has_pip():
        do = "install it on this machine, such as with python -m ensurepip"
        problems.append(Problem(_FIELD, "true", f"no pip in {sys.prefix!r}", do))
    kept = kept_versions()
    for line in requirement_lines(code_dir):
        problems += _problems_of(line, kept)
    return problems


def _has_pip() -> bool:
    """Tell whether pip is installed; to look for the module makes setuptools patch distutils."""
    try:
        version("pip")
    except PackageNotFoundError:
        return False
    return True


def _problems_of(line: RequirementLine, kept: dict[str, str]) -> list[Problem]:
    asked = f"{line.text} ({line.file}:{line.number})"
    if line.is_editable:
        found = "an editable install, whose code is gone with the run"
        return [Problem(_FIELD, asked, found, "write the path without -e")]
    if line.is_unread_file:
        return [Problem(_FIELD, asked, "no such file in the code", "put it there")]
    requirement = line.requirement
    name = canonicalize_name(requirement.name) if requirement else None
    if requirement is None or name not in kept:
        return []
    if requirement.marker is not None and not requirement.marker.evaluate():
        return []
    if not requirement.url and requirement.specifier.contains(kept[name], prereleases=True):
        return []
    found = f"version {kept[name]} of the worker, which is not replaced"
    do = f"ask for {name} without a version, or run on a worker that has the other one"
    return [Problem(_FIELD, asked, found, do)]


def _may_be_in_code(line: RequirementLine) -> bool:
    """Tell whether a line may name a file of the code, such as ``./wheels/x.whl``."""
    if line.requirement is not None:
        return "file:" in line.text
    is_place = not line.is_option or _PLACE_OF_PACKAGES.match(line.text) is not None
    return is_place and "://" not in line.text


def _content(code_dir: Path) -> str:
    """Return the fingerprint of the code, but for what a script that ran has left."""
    paths = [file.path for file in list_folder(code_dir).files if "__pycache__" not in file.path]
    files = ((path, code_dir / path) for path in paths)
    return fingerprint(
        FileRecord(path, file.stat().st_size, digest_file(file)) for path, file in files
    )
