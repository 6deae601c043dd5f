"""Reads ``requirements.txt`` of code as pip does: lines that go on, comments, included files.

Used by the check and by the environments in which requirements are installed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

FILE = "requirements.txt"
_MAX_FILES = 20
_COMMENT = re.compile(r"(?:^|\s+)#.*")
_OPTIONS_OF_LINE = re.compile(r"\s+--(?:hash|config-settings|global-option)\b.*")
_INCLUDES = re.compile(r"(?:-r|--requirement|-c|--constraint)[\s=]*(.+)")
_CONSTRAINS = re.compile(r"-c|--constraint")
_EDITABLE = re.compile(r"(?:-e|--editable)\b")


@dataclass(frozen=True, slots=True)
class RequirementLine:
    """A line that is not blank.

    Attributes:
        file: The file, relative to the code.
        number: Its number there, from 1.
        text: It without its comment, and without spaces around it.
        is_constraint: Whether its file says which versions are allowed, and installs nothing.
    """

    file: str
    number: int
    text: str
    is_constraint: bool = False

    @property
    def is_option(self) -> bool:
        """Whether it says where packages come from, such as ``--index-url``, and names none."""
        return self.text.startswith("-") and not self.is_editable

    @property
    def is_unread_file(self) -> bool:
        """Whether it includes a file that is not there to be read; pip itself reads a url."""
        return _INCLUDES.fullmatch(self.text) is not None and "://" not in self.text

    @property
    def is_editable(self) -> bool:
        """Whether it asks for a package that stays where it lies."""
        return _EDITABLE.match(self.text) is not None

    @property
    def requirement(self) -> Requirement | None:
        """The package that it names, if it names one as PEP 508 does."""
        try:
            return Requirement(_OPTIONS_OF_LINE.sub("", self.text))
        except InvalidRequirement:
            return None


def requirement_lines(code_dir: Path) -> list[RequirementLine]:
    """Return the lines of the file and of those that it includes; none if it is not there.

    A line that includes a file which is there gives way to that file's lines, of which those
    outside of the code are not read.
    """
    root = code_dir.resolve()
    first = _file_within(root, root / FILE)
    left = [(first, False)] if first else []
    seen, lines = set[Path](), list[RequirementLine]()
    while left and len(seen) < _MAX_FILES:
        file, is_constraint = left.pop(0)
        if file in seen:
            continue
        seen.add(file)
        for line in _lines(file, str(file.relative_to(root)), is_constraint):
            included = _INCLUDES.fullmatch(line.text)
            path = _file_within(root, file.parent / included[1].strip()) if included else None
            if path is not None:
                left.append((path, is_constraint or bool(_CONSTRAINS.match(line.text))))
            else:
                lines.append(line)
    return lines


def _file_within(root: Path, path: Path) -> Path | None:
    """Return where a file really is; None if it is none, or lies outside of `root`."""
    try:
        real = path.resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # not there, no name of a file, a circle of links
        return None
    return real if real.is_file() and real.is_relative_to(root) else None


def _lines(file: Path, name: str, is_constraint: bool) -> Iterator[RequirementLine]:
    text = file.read_text(encoding="utf-8-sig", errors="replace").replace("\\\n", " ")
    for number, written in enumerate(text.splitlines(), start=1):
        if line := _COMMENT.sub("", written).strip():
            yield RequirementLine(name, number, line, is_constraint)
