"""Imports of a script that are not installed in the Python that runs it.

Nothing is imported: only the first name of each is looked up, as looking up more would execute the
package.
"""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from trainjob.check.certain_path import unconditional_statements
from trainjob.check.script_modules import Module
from trainjob.errors import Problem

_CHANGES_PATH = re.compile(r"\bsys\.path\b|\bsite\.addsitedir\b|\bsys\.modules\b|\bmeta_path\b")
_INSTALLS = re.compile(r"\bpip['\"]?\s*,?\s*['\"]?(?:install|main)\b")


def import_problems(modules: Sequence[Module], code_dir: Path, boot_file: str) -> list[Problem]:
    """Return the packages that a script imports whenever it is started, and that are not there.

    Of a script that changes where modules come from, or installs packages itself, nothing is said.

    Args:
        modules: The boot file and the modules of the code that it imports.
        code_dir: The folder of the code.
        boot_file: Its path below the folder.
    """
    if any(_CHANGES_PATH.search(m.text) or _INSTALLS.search(m.text) for m in modules):
        return []
    script_dir = (code_dir / boot_file).resolve().parent
    problems: dict[str, Problem] = {}
    for module in modules:
        is_boot = module is modules[0]
        for name, line in _imported(module.tree):
            if name in problems or _is_there(name, script_dir, code_dir):
                continue
            problems[name] = Problem(
                "algorithm.code",
                f"the module {name!r} ({module.path}:{line})",
                f"none in the code and none installed in {sys.prefix!r}",
                f"install it on this machine, such as with pip install {name}",
                id="script-import-missing",
                # A module of the script may itself be imported under a condition.
                level="error" if is_boot else "warning",
            )
    return list(problems.values())


def _imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the first name of every absolute import that is executed in any case."""
    for node in unconditional_statements(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0], node.lineno


def _is_there(name: str, *folders: Path) -> bool:
    if name in sys.stdlib_module_names or name in sys.builtin_module_names:
        return True
    for folder in folders:
        if (folder / name).exists() or any(folder.glob(f"{name}.*")):
            return True
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return True  # it is there in a form that cannot be looked up
