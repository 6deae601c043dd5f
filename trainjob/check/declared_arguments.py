"""Which arguments a script declares to argparse, read from its text.

Everything that any module of the script declares counts, so that too much is taken for declared
and never too little. A construct that could declare more than can be read is a doubt, and with one
`trainjob.check.arguments` says nothing of arguments that seem not to be declared.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from trainjob.check.hidden_ways import bound_names, other_code
from trainjob.check.script_modules import Module, Script, dotted_name, imports_of, last_name

_OTHER_PARSERS = {
    *("absl", "click", "configargparse", "docopt", "draccus", "fire", "hydra", "jsonargparse"),
    *("plac", "sacred", "simple_parsing", "tap", "typer", "tyro"),
}
"""Packages that read the command line in ways of their own."""

_PARSER_SETTINGS = {
    *("add_help", "allow_abbrev", "description", "epilog", "formatter_class", "prog"),
    "usage",
}
_ACTIONS = {
    *("store", "store_true", "store_false", "store_const", "append", "append_const", "count"),
    *("extend", "help", "version"),
}
_METHODS = {
    *("add_argument", "add_argument_group", "add_mutually_exclusive_group", "format_help"),
    *(
        "parse_args",
        "parse_known_args",
        "print_help",
        "print_usage",
        "set_defaults",
        "error",
        "exit",
    ),
}
"""Methods of a parser that are known; what else is done with one is a doubt."""
_TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}
_NARGS = {"argparse.REMAINDER": "...", "REMAINDER": "..."}


@dataclass(frozen=True, slots=True)
class Argument:
    """One call of ``add_argument``.

    Attributes:
        flags: Its option strings, such as ``--lr``, or the one name of a positional.
        name: The attribute that gets the value.
        where: File and line.
        node: The call.
        action: What ``action`` says; None if it is a class of its own.
        nargs: What ``nargs`` says.
        type: The type, if it is one of Python's own.
        choices: The values that it accepts, if they are written out.
        is_required: Whether ``required=True``.
        default: The default, if it is written out.
        is_understood: Whether it is known how many words it takes.
    """

    flags: tuple[str, ...]
    name: str
    where: str
    node: ast.Call
    action: str | None
    nargs: str | int | None
    type: type | None
    choices: tuple[Any, ...] | None
    is_required: bool
    default: Any
    is_understood: bool

    @property
    def is_positional(self) -> bool:
        """Whether it is given without a name."""
        return not self.flags[0].startswith("-")


@dataclass(slots=True)
class Declared:
    """What the parser of a script accepts.

    Attributes:
        arguments: In the order of the text.
        num_parsers: How many are made.
        parse_calls: The calls of ``parse_args`` and its like.
        attributes: Names that ``set_defaults`` adds.
        allows_abbreviations: Whether ``--batch`` may stand for ``--batch_size``.
        has_unknown_defaults: Whether ``set_defaults(**mapping)`` adds others.
        doubts: Where something was not understood, and what.
    """

    arguments: list[Argument] = field(default_factory=list)
    num_parsers: int = 0
    parse_calls: list[ast.Call] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    allows_abbreviations: bool = True
    has_unknown_defaults: bool = False
    doubts: list[str] = field(default_factory=list)

    @property
    def accepts_unknown(self) -> bool:
        """Whether ``parse_known_args`` may be what reads the command line."""
        return any(_method(call) == "parse_known_args" for call in self.parse_calls)


def declared_arguments(script: Script) -> Declared:
    """Return what the modules of a script declare."""
    modules, declared = script.modules, Declared()
    if not script.is_whole:
        declared.doubts.append("modules of the code that were not read")
    declared.doubts += other_code(modules)
    functions = {
        node.name
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for module in modules:
        _ModuleScan(module, functions, declared).scan()
    names = set().union(*(bound_names(module.tree) for module in modules))
    if names & _TYPES.keys() or "*" in names:  # int may be anything
        declared.arguments = [replace(a, type=None, choices=None) for a in declared.arguments]
    if declared.num_parsers > 1:
        declared.doubts.append(f"{declared.num_parsers} parsers")
    return declared


def is_parse_call(node: ast.AST) -> bool:
    """Tell whether a node calls ``parse_args`` or ``parse_known_args``."""
    return isinstance(node, ast.Call) and _method(node) in ("parse_args", "parse_known_args")


def _method(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


class _ModuleScan:
    def __init__(self, module: Module, functions: set[str], declared: Declared) -> None:
        self._module = module
        self._functions = functions
        self._declared = declared
        self._makers = set(_parser_makers(module.tree))
        calls = [node for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
        self._calls = sorted(calls, key=lambda call: (call.lineno, call.col_offset))
        self._parsers = set(self._parser_names()) - {""}
        self._called = {
            call.func
            for call in self._calls
            if dotted_name(getattr(call.func, "value", call)) not in self._parsers
            or _method(call) in _METHODS
        }

    def scan(self) -> None:
        """Add what the module declares."""
        for node in ast.walk(self._module.tree):
            self._doubt_other_ways(node)
        for node in self._classes_handed_on():
            self._doubt(node, "another use of ArgumentParser")
        for call in self._calls:
            if dotted_name(call.func) in self._makers:
                self._made(call)
            elif _method(call) == "add_argument":
                self._added(call)
            elif _method(call) in ("parse_args", "parse_known_args"):
                self._parsed(call)
            elif _method(call) == "set_defaults":
                self._declared.attributes |= {k.arg for k in call.keywords if k.arg}
                self._declared.has_unknown_defaults |= any(not k.arg for k in call.keywords)
            elif _method(call) in ("add_subparsers", "parse_intermixed_args", "_add_action"):
                self._doubt(call, _method(call))
            elif self._gives_parser_away(call):
                self._doubt(call, f"a parser is given to {ast.unparse(call.func)}")

    def _parser_names(self) -> Iterator[str]:
        methods = ("add_argument", "parse_args", "parse_known_args")
        for call in self._calls:
            if isinstance(call.func, ast.Attribute) and call.func.attr in methods:
                yield dotted_name(call.func.value)
        for node in ast.walk(self._module.tree):
            value = node.value if isinstance(node, ast.Assign) else None
            is_made = isinstance(value, ast.Call) and dotted_name(value.func) in self._makers
            if isinstance(node, ast.Assign) and is_made:
                yield from map(dotted_name, node.targets)

    def _gives_parser_away(self, call: ast.Call) -> bool:
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        if not any(dotted_name(value) in self._parsers for value in given):
            return False
        return last_name(call.func) not in self._functions

    def _doubt_other_ways(self, node: ast.AST) -> None:
        if isinstance(node, ast.ClassDef):
            if any(dotted_name(base) in self._makers for base in node.bases):
                self._doubt(node, "a parser class of its own")
        elif isinstance(node, ast.Try | ast.With) and any(map(is_parse_call, ast.walk(node))):
            self._doubt(node, "parsing whose end may be caught")
        elif isinstance(node, ast.Attribute):
            self._doubt_attribute(node)
        elif isinstance(node, ast.FunctionDef) and node.name in _METHODS:
            if node not in self._module.tree.body or node.name == "add_argument":
                self._doubt(node, f"a method {node.name} of its own")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = _imported_names(node)
            if {"sys.argv", "sys.*"} & names or {
                n.partition(".")[0] for n in names
            } & _OTHER_PARSERS:
                self._doubt(node, ast.unparse(node))

    def _doubt_attribute(self, node: ast.Attribute) -> None:
        if node.attr == "argv":
            if not any(_is_whole_line(call, node) for call in self._calls):
                self._doubt(node, "sys.argv")
        elif node not in self._called and (
            node.attr in _METHODS - {"error", "exit"} or dotted_name(node.value) in self._parsers
        ):
            self._doubt(node, ast.unparse(node))

    def _classes_handed_on(self) -> Iterator[ast.AST]:
        """Yield the places that name the class and neither call it nor annotate with it."""
        known: set[ast.AST] = {call.func for call in self._calls}
        for node in ast.walk(self._module.tree):
            for part in ("annotation", "returns"):
                known |= set(ast.walk(getattr(node, part, None) or ast.Pass()))
        for node in ast.walk(self._module.tree):
            if dotted_name(node) in self._makers and node not in known:
                yield node

    def _made(self, call: ast.Call) -> None:
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if call.args or not given.keys() <= _PARSER_SETTINGS:
            self._doubt(call, "settings of the parser")
        self._declared.num_parsers += 1
        abbreviations = given.get("allow_abbrev")
        if isinstance(abbreviations, ast.Constant) and abbreviations.value is False:
            self._declared.allows_abbreviations = False

    def _parsed(self, call: ast.Call) -> None:
        self._declared.parse_calls.append(call)
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        if any(ast.unparse(value) not in ("sys.argv[1:]", "None") for value in given):
            self._doubt(call, "another command line")

    def _added(self, call: ast.Call) -> None:
        flags = tuple(
            arg.value
            for arg in call.args
            if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
        )
        given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        is_whole = len(flags) == len(call.args) and len(given) == len(call.keywords)
        nargs = _literal(given.get("nargs"), None)
        is_possible = nargs in (None, "?", "*", "+") or (type(nargs) is int and 0 < nargs < 1000)
        is_mixed = len(flags) > 1 and not all(flag.startswith("-") for flag in flags)
        if not is_whole or not flags or not is_possible or is_mixed:
            self._doubt(call, "an argument that is made at run time")
            return
        where = f"{self._module.path}:{call.lineno}"
        self._declared.arguments.append(_argument(flags, given, where, call))

    def _doubt(self, node: ast.AST, what: str) -> None:
        line = getattr(node, "lineno", 1)
        self._declared.doubts.append(f"{what} in {self._module.path}:{line}")


def _argument(
    flags: tuple[str, ...], given: dict[str, ast.expr], where: str, call: ast.Call
) -> Argument:
    action = _literal(given.get("action"), "store")
    if ast.unparse(given["action"]).endswith("BooleanOptionalAction") if action is None else False:
        action = "boolean"
    type_name = ast.unparse(given["type"]) if "type" in given else "str"
    nargs = _literal(given.get("nargs"), None)
    is_nargs_known = nargs is not None or "nargs" not in given
    if not is_nargs_known and (text := _NARGS.get(ast.unparse(given["nargs"]))):
        nargs, is_nargs_known = text, True
    name = _literal(given.get("dest"), None) or _name_of(flags)
    choices = _choices(given.get("choices")) if type_name in _TYPES else None
    return Argument(
        flags=flags,
        name=str(name),
        where=where,
        node=call,
        action=action,
        nargs=nargs,
        type=_TYPES.get(type_name),
        choices=choices,
        is_required=_literal(given.get("required"), False) is True,
        default=_literal(given.get("default"), None),
        is_understood=is_nargs_known and action in {*_ACTIONS, "boolean"},
    )


def _name_of(flags: tuple[str, ...]) -> str:
    long = [flag for flag in flags if flag.startswith("--")]
    return (long or list(flags))[0].lstrip("-").replace("-", "_")


def _literal(node: ast.expr | None, absent: Any) -> Any:
    """Return the value that is written out, or None if it is computed."""
    if node is None:
        return absent
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _choices(node: ast.expr | None) -> tuple[Any, ...] | None:
    value = _literal(node, None)
    return tuple(value) if isinstance(value, list | tuple | set | dict) else None


def _parser_makers(tree: ast.AST) -> Iterator[str]:
    """Yield what the module calls ``argparse.ArgumentParser``."""
    for node in imports_of(tree):
        for alias in node.names:
            name = alias.asname or alias.name
            if isinstance(node, ast.Import) and alias.name == "argparse":
                yield f"{name}.ArgumentParser"
            elif alias.name == "ArgumentParser" and _is_from_argparse(node):
                yield name


def _is_from_argparse(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "argparse"


def _imported_names(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if node.level:
        return set()
    return {f"{node.module}.{alias.name}" for alias in node.names}


def _is_whole_line(call: ast.Call, argv: ast.Attribute) -> bool:
    """Tell whether the node is that of ``parse_args(sys.argv[1:])``."""
    if not is_parse_call(call) or not call.args:
        return False
    value = call.args[0]
    return isinstance(value, ast.Subscript) and value.value is argv
