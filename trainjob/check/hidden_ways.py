"""Ways in which a script can do what its text does not show.

One principle for all scans of this package: an error is only said of a script whose whole code has
none of these. They are found by their mere names, so that another name for them, a call in a
function or a value that is handed on makes no difference: too many are found, never too few.
"""

import ast
import builtins
import sys
from collections.abc import Collection, Iterator, Sequence

from trainjob.check.script_modules import Module, imports_of, last_name

_RUNS_OTHER_CODE = {
    *("exec", "execfile", "eval", "compile", "__import__", "globals", "locals", "__builtins__"),
    *("import_module", "exec_module", "load_module", "load_source", "run_path", "run_module"),
    *("pkgutil", "runpy", "builtins", "walk_packages", "iter_modules", "entry_points", "settrace"),
}
_ONLY_AS_NAMES = {"exec", "eval", "compile"}  # model.eval() and re.compile() are something else
_PATH = {"path", "modules", "meta_path", "path_hooks", "path_importer_cache", "__dict__"}
_SITE = {"addsitedir", "addsitepackages", "install_aliases", "pyximport", "zipimport"}
_LEAVING = {
    *("exit", "_exit", "quit", "abort", "SystemExit", "kill", "killpg", "raise_signal"),
    *("execl", "execle", "execlp", "execlpe", "execv", "execve", "execvp", "execvpe"),
    *("run_path", "run_module", "Fire"),
}
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def other_code(modules: Sequence[Module]) -> Iterator[str]:
    """Yield where code may run that was not read, or the outcome of parsing is caught."""
    for module in modules:
        types = {k.value for k in ast.walk(module.tree) if isinstance(k, ast.keyword)}
        for node in ast.walk(module.tree):
            word = word_of(node)
            is_attribute = isinstance(node, ast.Attribute)
            if word in _RUNS_OTHER_CODE and not (is_attribute and word in _ONLY_AS_NAMES):
                if node not in types:  # type=eval of an argument
                    yield _at(word, module, node)
            elif word in ("SystemExit", "BaseException"):
                yield _at(word, module, node)
        for imported in imports_of(module.tree):
            for name in _imported_words(imported) & (_RUNS_OTHER_CODE - _ONLY_AS_NAMES):
                yield _at(name, module, imported)


def changes_import_path(modules: Sequence[Module]) -> bool:
    """Tell whether the code may change where modules come from."""
    return any(_touches_path(module.tree) for module in modules)


def leaving_words(modules: Sequence[Module]) -> frozenset[str]:
    """Return the names whose mention may end the script, those of its own functions included.

    Args:
        modules: The boot file first; a module that may end the script when it is imported counts
            by its name.
    """
    pieces: list[tuple[str, set[str]]] = []
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, _Definition):
                pieces.append((node.name, words_of(node)))
            elif isinstance(node, ast.Import | ast.ImportFrom):
                pieces += [(a.asname, {a.name}) for a in node.names if a.asname]
    for module in modules[1:]:
        parts = module.path.removesuffix(".py").removesuffix("/__init__").split("/")
        words = {word for node in module.tree.body for word in words_when_run(node)}
        pieces.append((f"import {parts[-1]}", words))
    leaving, before = set(_LEAVING), 0
    while len(leaving) != before:
        before = len(leaving)
        leaving |= {name for name, words in pieces if words & leaving}
    return frozenset(leaving)


def words_of(node: ast.AST) -> set[str]:
    """Return all names, attributes and short texts in a node, and ``import x`` of an import."""
    words: set[str] = set()
    for child in ast.walk(node):
        words.add(word_of(child))
        if isinstance(child, ast.Import | ast.ImportFrom):
            words |= {f"import {word}" for word in _imported_words(child)}
    return words - {""}


def words_when_run(node: ast.stmt) -> set[str]:
    """Return the words of what a statement evaluates, without the bodies of functions."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        evaluated = [
            *node.decorator_list,
            *node.args.defaults,
            *filter(None, node.args.kw_defaults),
        ]
        return {word for child in evaluated for word in words_of(child)}
    if isinstance(node, ast.ClassDef):
        outer = [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]
        words = {word for child in outer for word in words_of(child)}
        return words.union(*(words_when_run(child) for child in node.body))
    return words_of(node)


def word_of(node: ast.AST) -> str:
    """Return the name, attribute or short text that a node is; empty for anything else."""
    if isinstance(node, ast.Constant):  # getattr(sys, "exit")
        return node.value if isinstance(node.value, str) and len(node.value) < 100 else ""
    return last_name(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def bound_names(tree: ast.AST) -> set[str]:
    """Return the names that a module gives a meaning, and ``*`` if it takes all of another one."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, _Definition):
            names.add(node.name)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return names


def _imported_words(node: ast.Import | ast.ImportFrom) -> set[str]:
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        names.append(node.module)
    return {part for name in names for part in name.split(".")}


def _touches_path(tree: ast.Module) -> bool:
    """Look for ``sys.path`` and its like, and for ``sys`` where it is handed on."""
    names = {"sys"}
    for node in imports_of(tree):
        if _imported_words(node) & _SITE:
            return True
        names |= {alias.asname for alias in node.names if alias.asname and alias.name == "sys"}
        is_of_sys = isinstance(node, ast.ImportFrom) and node.module == "sys"
        if is_of_sys and {alias.name for alias in node.names} & {*_PATH, "*"}:
            return True
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    for read in attributes:
        if read.attr in _SITE or (read.attr in _PATH and last_name(read.value) in names):
            return True
    looked_into = {read.value for read in attributes}
    return any(
        isinstance(node, ast.Name) and node.id in names and node not in looked_into
        for node in ast.walk(tree)
    )


def names_of_python(tree: ast.Module) -> set[str]:
    """Return the names in a module that are of the standard library, or its own functions."""
    names = {*dir(builtins), *(node.name for node in tree.body if isinstance(node, _Definition))}
    for node in imports_of(tree):
        for alias in node.names:
            source = alias.name
            if isinstance(node, ast.ImportFrom):
                source = "" if node.level else node.module or ""
            bound = alias.asname or alias.name.partition(".")[0]
            is_python = source.partition(".")[0] in sys.stdlib_module_names
            names = names | {bound} if is_python else names - {bound}
    return names


def is_call_of(call: ast.Call, names: Collection[str]) -> bool:
    """Tell whether what is called begins with one of the names, or is a method of a text."""
    func: ast.AST = call.func
    while isinstance(func, ast.Attribute | ast.Call | ast.Subscript):
        func = func.func if isinstance(func, ast.Call) else func.value
    return isinstance(func, ast.Constant) or (isinstance(func, ast.Name) and func.id in names)


def _at(word: str, module: Module, node: ast.AST) -> str:
    return f"{word} in {module.path}:{getattr(node, 'lineno', 1)}"
