"""Attributes that a script reads of its arguments though nothing declares them.

``args.batch_size`` without ``--batch_size`` ends a script with an AttributeError, often after the
data was copied and the first model built. An attribute that is set anywhere in the script counts
as there.
"""

import ast
from collections.abc import Collection, Iterator, Sequence

from trainjob.check.declared_arguments import Declared, is_parse_call
from trainjob.check.hidden_ways import word_of
from trainjob.check.script_modules import Module, last_name
from trainjob.errors import Problem

_FIELD = "algorithm.code"
_SET_OTHERWISE = {"__dict__", "__setattr__", "Namespace", "vars"}
_ONLY_READ = {"print", "vars", "str", "repr", "dict", "getattr", "hasattr", "isinstance", "info"}
_Scope = ast.Module | ast.FunctionDef
_MAX_ROUNDS = 5  # arguments that are handed on from function to function


def namespace_problems(
    modules: Sequence[Module], declared: Declared, certain: Collection[ast.AST]
) -> list[Problem]:
    """Return the attributes that are read of parsed arguments and are not there.

    Args:
        modules: The boot file first.
        declared: What they declare.
        certain: The nodes of the boot file that are evaluated in any case.
    """
    if declared.doubts or any(not argument.action for argument in declared.arguments):
        return []
    if declared.has_unknown_defaults or any(_may_set_any(module.tree) for module in modules):
        return []
    known = {argument.name for argument in declared.arguments} | declared.attributes
    for module in modules:
        known |= set(_names_set(module.tree))
    problems: dict[str, Problem] = {}
    ours = {
        node.name
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    for module in modules:
        for node in _Reads(module.tree, ours).found():
            if node.attr not in known and not node.attr.startswith("_"):
                is_certain = node in certain
                if is_certain or node.attr not in problems:
                    problems[node.attr] = _problem(module, node, is_certain)
    return list(problems.values())


def _problem(module: Module, node: ast.Attribute, is_certain: bool) -> Problem:
    return Problem(
        _FIELD,
        f"{ast.unparse(node)} in {module.path}:{node.lineno}",
        f"no --{node.attr} among the arguments that the script declares",
        f"declare it with add_argument('--{node.attr}', ...), or correct the name",
        id="script-undeclared-attribute",
        level="error" if is_certain else "warning",
    )


def _may_set_any(tree: ast.AST) -> bool:
    """Tell whether attributes may be set whose names do not show, such as by ``vars(args)``."""
    harmless: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            is_only_read = last_name(node.func) in _ONLY_READ - {"vars"}
            shown = [*node.args, *(k.value for k in node.keywords)] if is_only_read else []
            given = [*shown, *(k.value for k in node.keywords if k.arg is None)]
            harmless |= {child.func for child in given if isinstance(child, ast.Call)}
            name = node.args[1] if len(node.args) > 1 else None
            if last_name(node.func) == "setattr" and not isinstance(name, ast.Constant):
                return True
    return any(word_of(n) in _SET_OTHERWISE and n not in harmless for n in ast.walk(tree))


def _names_set(tree: ast.AST) -> Iterator[str]:
    """Yield every attribute that is set, tried, or asked for with care, on any object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant):
            yield str(node.left.value)  # if "lr" in args
        elif isinstance(node, ast.Try):
            yield from (n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            is_by_name = node.func.id in ("setattr", "hasattr", "getattr")
            if is_by_name and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                yield str(node.args[1].value)


class _Reads:
    """The attributes that one module reads of names that hold nothing but parsed arguments.

    Args:
        tree: The module.
        ours: Names of all functions and classes of the script; what these set is known.
    """

    def __init__(self, tree: ast.Module, ours: set[str]) -> None:
        self._tree = tree
        self._ours = ours
        self._functions = {f.name: f for f in _functions(tree)}
        self._shared = {
            name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names
        }
        self._makers: set[str] = set()
        self._makers = {f.name for f in self._functions.values() if self._returns_arguments(f)}

    def found(self) -> Iterator[ast.Attribute]:
        """Yield every read."""
        of_module = self._assigned(self._tree)
        held = {name: self._assigned(f) for name, f in self._functions.items()}
        for _ in range(_MAX_ROUNDS):
            visible = {
                name: held[name] | (of_module - _local_names(function))
                for name, function in self._functions.items()
            }
            for name, function in self._functions.items():
                held[name] |= self._handed(function, of_module, visible)
        yield from _attributes(self._tree, of_module)
        for name, function in self._functions.items():
            yield from _attributes(function, visible[name])

    def _returns_arguments(self, function: ast.FunctionDef) -> bool:
        names = self._assigned(function)
        returned = [node.value for node in _own_nodes(function) if isinstance(node, ast.Return)]
        return bool(returned) and all(
            value is not None and (_is_parsed(value) or _name(value) in names) for value in returned
        )

    def _assigned(self, scope: _Scope) -> set[str]:
        """Return the names of a scope that are set once, to what parsing returns."""
        found = set()
        for node in _own_nodes(scope):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target, value = node.targets[0], node.value
                if isinstance(target, ast.Tuple) and _calls(value, "parse_known_args"):
                    target = target.elts[0]
                elif not (_is_parsed(value) or self._is_made(value)):
                    continue
                found.add(_name(target))
        stored = _stored(scope)
        return {
            name
            for name in found - self._shared
            if stored.count(name) == 1 and not self._may_be_set(scope, name)
        }

    def _is_made(self, value: ast.expr) -> bool:
        """Tell whether a function of this module is called that returns parsed arguments."""
        return isinstance(value, ast.Call) and _name(value.func) in self._makers

    def _may_be_set(self, scope: _Scope, name: str) -> bool:
        """Tell whether the arguments are given to code that is not read and may add some."""
        for node in _own_nodes(scope):
            if isinstance(node, ast.Call):
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                callee = last_name(node.func)
                if any(_name(g) == name for g in given) and callee not in self._ours | _ONLY_READ:
                    return True
        return False

    def _handed(
        self, function: ast.FunctionDef, of_module: set[str], visible: dict[str, set[str]]
    ) -> set[str]:
        """Return the parameters that are parsed arguments in every call of the function."""
        scopes: list[tuple[_Scope, set[str]]] = [(self._tree, of_module)]
        scopes += [(f, visible[name]) for name, f in self._functions.items()]
        calls = [
            (node, names)
            for scope, names in scopes
            for node in _own_nodes(scope)
            if isinstance(node, ast.Call) and _name(node.func) == function.name
        ]
        stored = _stored(function)
        return {
            parameter.arg
            for i, parameter in enumerate(function.args.args)
            if calls
            and all(i < len(call.args) and _name(call.args[i]) in names for call, names in calls)
            and parameter.arg not in stored
            and not self._may_be_set(function, parameter.arg)
        }


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Return the functions of a module, without those of a name that is taken twice."""
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    names = [function.name for function in found]
    return [function for function in found if names.count(function.name) == 1]


def _is_parsed(value: ast.expr) -> bool:
    """Tell whether an expression is the namespace that argparse returns."""
    if isinstance(value, ast.Subscript) and ast.unparse(value.slice) == "0":
        return _calls(value.value, "parse_known_args")
    return _calls(value, "parse_args")


def _calls(value: ast.expr, name: str) -> bool:
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
        return False
    return is_parse_call(value) and value.func.attr == name


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _attributes(scope: _Scope, names: set[str]) -> Iterator[ast.Attribute]:
    for node in _own_nodes(scope):
        is_read = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        if isinstance(node, ast.Attribute) and is_read and _name(node.value) in names - {""}:
            yield node


def _own_nodes(scope: _Scope) -> Iterator[ast.AST]:
    """Yield the nodes of a scope without those of functions and classes in it."""
    left: list[ast.AST] = list(scope.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        yield node
        left += ast.iter_child_nodes(node)


def _stored(scope: _Scope) -> list[str]:
    return [
        node.id
        for node in _own_nodes(scope)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    ]


def _local_names(function: ast.FunctionDef) -> set[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return {argument.arg for argument in every} | set(_stored(function))
