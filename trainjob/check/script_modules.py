"""The boot file of a job and what it imports from the code folder, parsed and never executed.

Read by the scans in this package. What they conclude from it is meant to be right or not to be
said: a construct that they do not know makes them silent.
"""

import ast
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MAX_MODULES = 100
_PARSES = 10
_MAX_MODULE_BYTES = 2_000_000


@dataclass(frozen=True, slots=True)
class Module:
    """One Python file of the code.

    Attributes:
        path: Where it is, relative to the code folder.
        text: What it says.
        tree: The same, parsed. Of a module that is imported without what it does as a script.
    """

    path: str
    text: str
    tree: ast.Module


@dataclass(frozen=True, slots=True)
class Script:
    """A boot file and what it imports from the code folder.

    Attributes:
        modules: The boot file first.
        is_whole: Whether every module that may be imported was read.
    """

    modules: tuple[Module, ...]
    is_whole: bool


class UnreadableScript(Exception):
    """A file cannot be parsed; the message says what was found in it.

    Args:
        path: The file, relative to the code folder.
        found: What is wrong with it.
        is_wrong: Whether Python refuses it too; else it is only not for us to read.
    """

    def __init__(self, path: str, found: str, *, is_wrong: bool = False) -> None:
        self.path, self.found, self.is_wrong = path, found, is_wrong
        super().__init__(f"{path}: {found}")


def read_script(code_dir: Path, boot_file: str) -> Script:
    """Return the boot file, and every module of the code that it imports.

    Args:
        code_dir: The folder of the code.
        boot_file: Its path below the folder; a .py file that exists.

    Raises:
        UnreadableScript: If the boot file is no Python, or cannot be read.
    """
    root = code_dir.resolve()
    boot = root / boot_file
    first = _parse(root, boot)
    modules, seen, left = [first], {boot.resolve()}, [(boot, first)]
    is_whole = True
    while left:
        file, module = left.pop(0)
        for found in _imported_files(file, module.tree, boot.resolve().parent):
            real = found.resolve()
            if real in seen or not real.is_relative_to(root):
                continue
            seen.add(real)
            imported = _imported(root, real) if len(modules) < _MAX_MODULES else None
            if imported is None:
                is_whole = False
                continue
            modules.append(imported)
            left.append((real, imported))
    return Script(tuple(modules), is_whole)


def is_file(path: Path) -> bool:
    """Tell whether there is such a file; of a name that cannot be one as well."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def imports_of(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield every import statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def is_main_guard(node: ast.stmt) -> bool:
    """Tell whether a statement is ``if __name__ == "__main__":``."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "__name__ == '__main__'",
        "'__main__' == __name__",
    )


def dotted_name(node: ast.AST) -> str:
    """Return ``a.b.c`` of names and attributes; empty for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def last_name(node: ast.AST) -> str:
    """Return the name or attribute that is called, ``c`` of ``a.b.c`` or ``f().c``."""
    return node.attr if isinstance(node, ast.Attribute) else dotted_name(node)


def _parse(root: Path, file: Path) -> Module:
    path = str(file.relative_to(root)) if file.is_relative_to(root) else file.name
    try:
        if file.stat().st_size > _MAX_MODULE_BYTES:
            raise UnreadableScript(path, f"more than {_MAX_MODULE_BYTES:,} bytes")
        with tokenize.open(file) as opened:  # it heeds the line that names an encoding
            text = opened.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d" in a text, which a run shows by itself
            return Module(path, text, _tree_of(text))
    except SyntaxError as error:
        where = f" in line {error.lineno}" if error.lineno else ""
        found = f"no Python that this Python reads{where}: {error.msg}"
        raise UnreadableScript(path, found, is_wrong=True) from error
    except (OSError, ValueError, RecursionError, MemoryError, SystemError) as error:
        raise UnreadableScript(path, str(error)) from error


def _tree_of(text: str) -> ast.Module:
    """Parse a module, again if another thread has done so meanwhile, which it may in any import.

    CPython counts for all threads together how deep it is in a tree, and then finds that it came
    out at another depth than it went in. https://github.com/python/cpython/issues/106905 (3.11.7).
    """
    for _ in range(_PARSES - 1):
        with suppress(SystemError):
            return ast.parse(text)
    return ast.parse(text)


def _imported(root: Path, file: Path) -> Module | None:
    """Return a module that is imported; None if it is no Python: nobody may import it."""
    try:
        module = _parse(root, file)
    except UnreadableScript:
        return None
    body = [node for node in module.tree.body if not is_main_guard(node)]
    return Module(module.path, module.text, ast.Module(body, []))


def _imported_files(file: Path, tree: ast.AST, script_dir: Path) -> Iterator[Path]:
    """Yield the files of the code that a module imports, packages above them included."""
    for node in imports_of(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_of(script_dir, alias.name.split("."))
            continue
        start = script_dir
        if node.level:
            if node.level > len(file.parts):
                continue
            start = file.parents[node.level - 1]
        base = node.module.split(".") if node.module else []
        yield from _files_of(start, base)
        for alias in node.names:
            yield from _files_of(start, [*base, alias.name])


def _files_of(start: Path, parts: Iterable[str]) -> Iterator[Path]:
    place = start
    for part in parts:
        place = place / part
        for file in (place.with_name(f"{part}.py"), place / "__init__.py"):
            if is_file(file):
                yield file
