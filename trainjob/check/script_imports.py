"""Imports of a script that are not installed in the Python that runs it.

Nothing is imported: only the first name of each is looked up, as looking up more would execute the
package.
"""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from trainjob.check.certain_path import unconditional_statements
from trainjob.check.hidden_ways import (
    changes_import_path,
    is_call_of,
    leaving_words,
    names_of_python,
    other_code,
)
from trainjob.check.script_modules import Script
from trainjob.errors import Problem

_INSTALLS = re.compile(r"\bpip['\"]?\s*,?\s*['\"]?(?:install|main)\b")
_PACKAGES = {
    "Crypto": "pycryptodome",
    "PIL": "pillow",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""The packages of modules that are called otherwise."""


def import_problems(script: Script, code_dir: Path, boot_file: str) -> list[Problem]:
    """Return the packages that a script imports whenever it is started, and that are not there.

    Of a script that changes where modules come from, or installs packages itself, nothing is said.

    Args:
        script: The boot file and the modules of the code that it imports.
        code_dir: The folder of the code.
        boot_file: Its path below the folder.
    """
    modules = script.modules
    if changes_import_path(modules) or any(_INSTALLS.search(m.text) for m in modules):
        return []
    is_plain = script.is_whole and next(other_code(modules), None) is None
    leaving = leaving_words(modules)
    script_dir = (code_dir / boot_file).resolve().parent
    problems: dict[str, Problem] = {}
    for module in modules:
        is_boot = module is modules[0]
        for name, line, is_certain in _imported(module.tree, leaving):
            if name in problems or _is_there(name, script_dir, code_dir):
                continue
            problems[name] = Problem(
                "algorithm.code",
                f"the module {name!r} ({module.path}:{line})",
                f"none in the code and none installed in {sys.prefix!r}",
                _install(name),
                id="script-import-missing",
                # A module of the script may itself be imported under a condition.
                level="error" if is_boot and is_plain and is_certain else "warning",
            )
    return list(problems.values())


def _install(name: str) -> str:
    if name in _PACKAGES:
        return f"install it on this machine, such as with pip install {_PACKAGES[name]}"
    return "install the package that has it on this machine"


def _imported(tree: ast.Module, leaving: frozenset[str]) -> Iterator[tuple[str, int, bool]]:
    """Yield the first name of every absolute import that is executed in any case, and its line.

    And whether nothing of a library was called before it, which may have made the module.
    """
    is_certain, names = True, names_of_python(tree)
    for node in unconditional_statements(tree, leaving):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno, is_certain
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0], node.lineno, is_certain
        calls = [child for child in ast.walk(node) if isinstance(child, ast.Call)]
        is_certain = is_certain and all(is_call_of(call, names) for call in calls)


def _is_there(name: str, *folders: Path) -> bool:
    if name in sys.stdlib_module_names or name in sys.builtin_module_names:
        return True
    for folder in folders:
        if any(file.name.partition(".")[0] == name for file in folder.iterdir()):
            return True
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError, AttributeError, OSError):
        return True  # it is there in a form that cannot be looked up
