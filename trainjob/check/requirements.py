"""Whether what a ``requirements.txt`` asks for is installed in the Python that runs the job.

All findings are warnings: a script may work with another version, or never use the package.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion

from trainjob.check.script_modules import is_file
from trainjob.errors import Problem

FILE = "requirements.txt"
_MAX_FILES = 20
_COMMENT = re.compile(r"(?:^|\s+)#.*")
_OPTIONS_OF_LINE = re.compile(r"\s+--(?:hash|config-settings|global-option)\b.*")
_INCLUDES = re.compile(r"(?:-r|--requirement)[\s=]*(.+)")


@dataclass(frozen=True, slots=True)
class _Line:
    file: str
    number: int
    text: str


def requirement_problems(code_dir: Path) -> tuple[list[Problem], list[str]]:
    """Return what is not installed as asked, and which lines could not be examined.

    Args:
        code_dir: The folder of the code, which need not have such a file.
    """
    problems: list[Problem] = []
    unknown: list[str] = []
    for line in _lines(code_dir.resolve()):
        try:
            asked = Requirement(line.text)
        except InvalidRequirement:
            unknown.append(f"{line.text!r} in {line.file}:{line.number}")
            continue
        problems += _unmet(asked, line)
    return problems, unknown


def _unmet(asked: Requirement, line: _Line) -> Iterator[Problem]:
    try:
        if asked.marker is not None and not asked.marker.evaluate():
            return
        found = version(asked.name)
        if asked.specifier.contains(found, prereleases=True):
            return
        found_text = f"version {found}"
    except PackageNotFoundError:
        found_text = f"none in {sys.prefix!r}"
    except (InvalidVersion, UndefinedComparison, UndefinedEnvironmentName, TypeError):
        return  # what a vendor calls its build, if anything, is not for us to compare
    do = f"install it on this machine, such as with pip install {str(asked)!r}"
    yield Problem(
        *("algorithm.code", f"{asked} ({line.file}:{line.number})", found_text, do),
        id="requirement-not-met",
        level="warning",
    )


def _lines(root: Path) -> Iterator[_Line]:
    """Yield the lines that name a package, of files that it includes as well."""
    left, seen = [root / FILE], set[Path]()
    while left and len(seen) < _MAX_FILES:
        file = left.pop(0)
        if not is_file(file):
            continue
        file = file.resolve()
        if file in seen or not file.is_relative_to(root):
            continue
        seen.add(file)
        name = str(file.relative_to(root))
        text = file.read_text(encoding="utf-8-sig", errors="replace").replace("\\\n", " ")
        for number, written in enumerate(text.splitlines(), start=1):
            line = _OPTIONS_OF_LINE.sub("", _COMMENT.sub("", written)).strip()
            if included := _INCLUDES.fullmatch(line):
                left.append(file.parent / included[1].strip())
                if not is_file(left[-1]):
                    yield _Line(name, number, line)
            elif line and not _is_option(line):
                yield _Line(name, number, line)


def _is_option(line: str) -> bool:
    """Tell whether a line says where packages come from, such as ``--index-url``."""
    return line.startswith("-") and not line.startswith(("-e", "--editable"))
