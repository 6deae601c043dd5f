"""Whether what a ``requirements.txt`` asks for is installed in the Python that runs the job.

All findings are warnings, since a script may work with another version, or never use the package:
but for a job that has them installed.
"""

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import Requirement
from packaging.version import InvalidVersion

from trainjob.environments.asked import requirements_problems
from trainjob.errors import Problem
from trainjob.requirements_file import RequirementLine, requirement_lines


def requirement_problems(
    code_dir: Path, *, are_installed_first: bool = False
) -> tuple[list[Problem], list[str]]:
    """Return what is not installed as asked, and what could not be examined.

    Args:
        code_dir: The folder of the code, which need not have such a file.
        are_installed_first: Whether a run installs them, so that only what keeps it from that
            counts.
    """
    if are_installed_first:
        return requirements_problems(code_dir), [
            "whether pip finds what requirements.txt asks for: a run installs it, in an "
            "environment that later runs find in the cache"
        ]
    problems: list[Problem] = []
    unknown: list[str] = []
    for line in requirement_lines(code_dir):
        if (line.is_option or line.is_constraint) and not line.is_unread_file:
            continue
        asked = line.requirement
        if asked is None:
            unknown.append(f"the requirement {line.text!r} in {line.file}:{line.number}")
        else:
            problems += _unmet(asked, line)
    return problems, unknown


def _unmet(asked: Requirement, line: RequirementLine) -> Iterator[Problem]:
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
    do = f"write environment: {{requirements: true}}, or install it: pip install {str(asked)!r}"
    yield Problem(
        *("algorithm.code", f"{asked} ({line.file}:{line.number})", found_text, do),
        id="requirement-not-met",
        level="warning",
    )
