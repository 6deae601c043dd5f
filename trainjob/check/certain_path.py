"""What a script does in any case when it is started, as far as its text shows.

A statement behind a condition, in a loop, a ``try``, a ``with`` (which may swallow an exception) or
a decorated function may never run, so it is not on this path; nor is anything behind a statement
that names what may leave. What is found wrong on the
path keeps the script from working; elsewhere it only may.
"""

import ast
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from trainjob.check.hidden_ways import leaving_words, word_of, words_of, words_when_run
from trainjob.check.script_modules import Module, is_main_guard

_MAX_DEPTH = 10
_CONDITIONAL = (ast.If, ast.While, ast.For, ast.Try, ast.TryStar, ast.Match, ast.With)
_Function = ast.FunctionDef


class _Left(Exception):
    """The path cannot be followed any further."""


class _Returned(Exception):
    """A function ends here."""


@dataclass(slots=True)
class _Walk:
    """Follows one module."""

    functions: dict[str, _Function]
    leaving: frozenset[str]
    nodes: list[ast.AST] = field(default_factory=list)
    active: list[str] = field(default_factory=list)
    followed: set[ast.AST] = field(default_factory=set)

    def block(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if words_when_run(node) & self.leaving:
                raise _Left
        elif isinstance(node, ast.If) and is_main_guard(node):
            self.block(node.body)
        elif isinstance(node, _CONDITIONAL):
            self._perhaps(node)
        else:
            self._simple(node)

    def expression(self, node: ast.AST) -> None:
        """Add what is evaluated in any case, in about its order."""
        for child in _certain_children(node):
            self.expression(child)
        self.nodes.append(node)
        if isinstance(node, ast.Call):
            self._call(node)

    def _simple(self, node: ast.stmt) -> None:
        for child in _certain_children(node):
            self.expression(child)
        self.nodes.append(node)
        if isinstance(node, ast.Return):
            raise _Returned
        if isinstance(node, ast.Raise | ast.AsyncFor | ast.AsyncWith | ast.Assert):
            raise _Left
        if self._may_leave(node):
            raise _Left

    def _perhaps(self, node: ast.stmt) -> None:
        first = getattr(node, "test", None) or getattr(node, "iter", None)
        if first is not None:
            self.expression(first)
        if self._may_leave(node):
            raise _Left

    def _may_leave(self, node: ast.stmt) -> bool:
        """Tell whether a statement names what ends the script, or functions that may.

        Of a function that was followed to its end it is known that it does not.
        """
        if any(isinstance(child, ast.Return | ast.Raise) for child in ast.walk(node)):
            return True
        if isinstance(node, ast.Import | ast.ImportFrom):
            return bool({w for w in words_of(node) if w.startswith("import ")} & self.leaving)
        return any(
            word_of(child) in self.leaving and child not in self.followed
            for child in ast.walk(node)
        )

    def _call(self, call: ast.Call) -> None:
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        function = self.functions.get(name)
        if function is None or name in self.active or len(self.active) >= _MAX_DEPTH:
            return
        self.active.append(name)
        with suppress(_Returned):
            self.block(function.body)
        self.active.pop()
        self.followed.add(call.func)


def certain_nodes(modules: Sequence[Module]) -> frozenset[ast.AST]:
    """Return the nodes of the boot file that are evaluated whenever it is started.

    Args:
        modules: The boot file, and the modules of the code that it imports.
    """
    boot = modules[0]
    return frozenset(_walked(boot.tree, _plain_functions(boot.tree), leaving_words(modules)))


def unconditional_statements(tree: ast.Module, leaving: frozenset[str]) -> list[ast.stmt]:
    """Return the statements of a module that are executed in any case, in order.

    Those of functions are left out, even of ones that are called.

    Args:
        tree: The module.
        leaving: See `trainjob.check.hidden_ways.leaving_words`.
    """
    return [node for node in _walked(tree, {}, leaving) if isinstance(node, ast.stmt)]


def _walked(
    tree: ast.Module, functions: dict[str, _Function], leaving: frozenset[str]
) -> list[ast.AST]:
    walk = _Walk(functions, leaving)
    with suppress(_Left, _Returned, RecursionError):
        walk.block(tree.body)
    return walk.nodes


def _plain_functions(tree: ast.Module) -> dict[str, _Function]:
    """Return the functions of a module by name, those whose body runs when they are called."""
    found: dict[str, _Function] = {}
    taken: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            is_plain = isinstance(node, ast.FunctionDef) and not node.decorator_list
            if isinstance(node, ast.FunctionDef) and is_plain and not _is_generator(node):
                found[node.name] = node
            if node.name in taken:
                found.pop(node.name, None)
            taken.add(node.name)
    return found


def _is_generator(function: _Function) -> bool:
    return any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(function))


def _certain_children(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return
    if isinstance(node, ast.IfExp):
        yield node.test
    elif isinstance(node, ast.BoolOp):
        yield node.values[0]
    elif isinstance(node, ast.Compare):
        yield from (node.left, node.comparators[0])
    else:
        yield from ast.iter_child_nodes(node)
