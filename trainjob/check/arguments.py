"""Whether a script accepts the arguments that a job gives it.

The script is not run: its declarations are put into a parser of our own, which then says what
argparse would say. An argument that argparse would refuse is an error only if the script parses
its command line whenever it is started; else it is a warning.
"""

import argparse
import ast
import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from trainjob.check.declared_arguments import Argument, Declared
from trainjob.errors import Level, Problem


@dataclass(frozen=True, slots=True)
class Given:
    """What a job gives a script under one name.

    Attributes:
        field: Where it stands in the job file.
        words: All words of the command line that are of it, such as ``--lr 0.1``.
        value: What the job says; of a channel its url.
    """

    field: str
    words: tuple[str, ...]
    value: object


class _Refused(Exception):
    """What argparse would print before it ends the script."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Refused(message)


def argument_problems(
    declared: Declared,
    given: Mapping[str, Given],
    certain: Collection[ast.AST],
    written: Sequence[str] = (),
) -> list[Problem]:
    """Return what the script would refuse, or read as something else than the job says.

    Args:
        declared: What the script declares, by a parser that there is.
        given: What the job gives it, by name, in the order of the command line.
        certain: The nodes that are evaluated in any case; see `trainjob.check.certain_path`.
        written: Further words, which a startup command gives the script.
    """
    parsers = [node for node in declared.parse_calls if node in certain]
    level: Level = "error" if parsers else "warning"
    problems: list[Problem] = []
    seen = _names_given(declared, written)
    for name, argument in given.items():
        parser = _parser_of(declared)
        try:
            values, left = parser.parse_known_args(list(argument.words))
        except _Refused as error:
            problems += _refused(name, argument, str(error), declared, level)
            continue
        seen |= set(vars(values))
        if left:
            problems += _left_over(name, argument, left, declared, level)
        problems += _read_as_true(name, argument, declared)
    if any(not word.startswith("-") for word in written):  # it may be a positional argument
        seen |= {argument.name for argument in declared.arguments if argument.is_positional}
    return [*problems, *_missing(declared, seen, certain, level)]


def _names_given(declared: Declared, words: Sequence[str]) -> set[str]:
    try:
        values, _ = _parser_of(declared).parse_known_args(list(words))
    except _Refused:
        return {argument.name for argument in declared.arguments}
    return set(vars(values))


def _parser_of(declared: Declared) -> _Parser:
    parser = _Parser(
        add_help=False,
        allow_abbrev=declared.allows_abbreviations,
        argument_default=argparse.SUPPRESS,
        conflict_handler="resolve",
    )
    for argument in declared.arguments:
        if argument.is_positional:
            continue
        settings: dict[str, Any] = {"dest": argument.name}
        if not argument.is_understood:
            settings["nargs"] = "*"
        elif argument.action == "boolean":
            settings["action"] = argparse.BooleanOptionalAction
        elif argument.action in ("store", "append", "extend"):
            settings |= _value_settings(argument)
        else:
            settings["nargs"] = 0
            settings["action"] = _Flag
        parser.add_argument(*argument.flags, **settings)
    return parser


class _Flag(argparse.Action):
    """Takes no word, whatever the script makes of it."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
        setattr(namespace, self.dest, True)


def _value_settings(argument: Argument) -> dict[str, Any]:
    settings: dict[str, Any] = {"nargs": argument.nargs}
    if argument.type in (int, float, str):
        settings["type"] = argument.type
    if argument.choices is not None and argument.type is not bool:
        settings["choices"] = argument.choices
    return settings


def _refused(
    name: str, given: Given, message: str, declared: Declared, level: Level
) -> Iterator[Problem]:
    """Say what argparse would; of a name that is declared twice, which one counts is not known."""
    same = [a for a in declared.arguments if f"--{name}" in a.flags]
    if len(same) > 1 or declared.doubts:
        return
    where = f" ({same[0].where})" if same else ""
    found = f"that argparse refuses it: {re.sub(r'^argument [^:]*: ', '', message)}{where}"
    do = "write a value that the script accepts, or change the script"
    asked = " ".join(given.words)
    yield Problem(given.field, _shown(asked), found, do, id="script-refuses-argument", level=level)


def _left_over(
    name: str, given: Given, left: list[str], declared: Declared, level: Level
) -> Iterator[Problem]:
    takes_rest = any(a.is_positional and a.nargs in ("*", "+", "...") for a in declared.arguments)
    if declared.doubts or declared.accepts_unknown or takes_rest:
        return
    if left[0] == given.words[0]:
        flags = [flag for argument in declared.arguments for flag in argument.flags]
        near = difflib.get_close_matches(f"--{name}", flags, n=1, cutoff=0.7)
        found = "no such argument in the script, which refuses what it does not declare"
        do = f"did you mean {near[0]!r}?" if near else _declare(given.field, name)
        rule = "script-undeclared-argument"
    else:
        found = f"that the script takes fewer words of it, and refuses {_shown(left[0])}"
        do = _style(name, given, declared)
        rule = "script-refuses-argument"
    yield Problem(given.field, _shown(" ".join(given.words)), found, do, id=rule, level=level)


def _style(name: str, given: Given, declared: Declared) -> str:
    """Return how the words can be made fit for what the script declares."""
    actions = {a.action for a in declared.arguments if f"--{name}" in a.flags}
    if isinstance(given.value, bool) and actions & {"boolean", "store_true"}:
        style = "pair" if "boolean" in actions else "flag"
        return f"write arguments: {{booleans: {style}}} below algorithm"
    return "declare it with a type or nargs that takes the value, or write another one"


def _declare(field: str, name: str) -> str:
    what = "remove the hyperparameter" if field.startswith("hyperparameters") else "rename it"
    return f"declare --{name}, read the line with parse_known_args(), or {what}"


def _read_as_true(name: str, given: Given, declared: Declared) -> Iterator[Problem]:
    for argument in declared.arguments:
        if f"--{name}" in argument.flags and argument.type is bool and given.value is False:
            found = f"type=bool ({argument.where}), by which every text but an empty one is True"
            do = "declare it with action=argparse.BooleanOptionalAction or a function that reads it"
            yield Problem(given.field, "false", found, do, id="script-type-bool", level="warning")


def _missing(
    declared: Declared, seen: set[str], certain: Collection[ast.AST], level: Level
) -> Iterator[Problem]:
    """Find what the script requires and the job does not give."""
    if declared.doubts:
        return
    for argument in declared.arguments:
        is_needed = argument.is_required or (
            argument.is_positional and argument.nargs not in ("*", "?", "...")
        )
        if not is_needed or argument.name in seen:
            continue
        is_certain = level == "error" and argument.node in certain
        flag = argument.flags[0]
        if argument.is_positional:
            do = "declare it with -- before its name: arguments of a job have names"
        else:
            do = f"give a channel or a hyperparameter of the name {argument.name!r}"
        asked = f"{flag} by the script ({argument.where})"
        yield Problem(
            *("hyperparameters", asked, "nothing of that name in the job", do),
            id="script-required-argument",
            level="error" if is_certain else "warning",
        )


def _shown(text: str) -> str:
    quoted = repr(text)
    return quoted if len(quoted) <= 80 else f"{quoted[:77]}..."
