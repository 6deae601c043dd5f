"""Rules of an algorithm for hyperparameters, and the merge of its defaults with a job's values.

A rule says what a hyperparameter may be and what it is by default. `rule_problems` finds rules
that contradict themselves, `merge` applies the others to the values of a job. What the values look
like for the script is said by `trainjob.parameters`.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, StrictFloat, StrictInt

from trainjob.errors import Problem
from trainjob.hyperparameter_types import in_type
from trainjob.parameters import (
    ARGPARSE_STYLE,
    ArgumentStyle,
    HyperparameterValue,
    Scalar,
    hyperparameter_env_name,
    scalar_problems,
    shown,
    value_problems,
)
from trainjob.spec import Name, Spec

_MAX_SHOWN = 20  # choices in a message
_WRITE_SMALLER = "write one of at most 64 bits"


def _small_letters(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _plain_words(text: str) -> str:
    if not re.fullmatch(r"[\w ,.\-]*", text):
        raise ValueError("write letters, digits, spaces, hyphens, underscores, commas and periods")
    return text


class HyperparameterRule(Spec):
    """What one hyperparameter may be, and what it is where a job does not say."""

    model_config = ConfigDict(title="Hyperparameter")  # the form's heading

    name: Name
    """The script gets the value as `--NAME value`."""

    type: Annotated[
        Literal["string", "integer", "float", "boolean"], BeforeValidator(_small_letters)
    ]
    """What a value is. A text that is a number or true or false is read as it, where that is
    asked; nothing else is turned into something else."""

    is_list: bool = False
    """Whether the value is a list; type, range and choices are then those of its items."""

    default: HyperparameterValue | None = None
    """The value where a job does not give one; absent: then the script gets none."""

    minimum: StrictInt | StrictFloat | None = None
    """The smallest value, of an integer or float."""

    maximum: StrictInt | StrictFloat | None = None
    """The largest value, of an integer or float."""

    choices: tuple[Scalar, ...] = ()
    """The only values; none: any of the type."""

    required: bool = False
    """Whether the script must get a value: a job cannot remove the default, and has to give one
    where there is none. Others a job removes by `NAME: null`."""

    restricted: bool = False
    """Whether the default is the only value: a job may not change it."""

    description: Annotated[str, AfterValidator(_plain_words)] = ""
    """What it does, in letters, digits, spaces, hyphens, underscores, commas and periods."""

    def allowed(self) -> str:
        """Return what a value may be, as words of a message."""
        nouns = {
            "string": ("a text", "texts"),
            "integer": ("an integer", "integers"),
            "float": ("a finite number", "finite numbers"),
            "boolean": ("true or false", "true or false"),
        }[self.type]
        if self.choices:
            choices = ", ".join(shown(choice) for choice in self.choices[:_MAX_SHOWN])
            if len(self.choices) > _MAX_SHOWN:
                choices += f" and {len(self.choices) - _MAX_SHOWN:,} more"
            return f"a list of {choices}" if self.is_list else f"one of {choices}"
        noun = f"a list of {nouns[1]}" if self.is_list else nouns[0]
        if self.minimum is not None and self.maximum is not None:
            return f"{noun} from {self.minimum} to {self.maximum}"
        if self.minimum is not None:
            return f"{noun} of at least {self.minimum}"
        return noun if self.maximum is None else f"{noun} of at most {self.maximum}"


HyperparameterRules = Sequence[HyperparameterRule]


@dataclass(frozen=True, slots=True)
class Merged:
    """The hyperparameters of a job under the rules of its algorithm.

    Attributes:
        values: What the script gets, each of the type of its rule: those with a rule in the order
            of the rules, then the job's own. Without those that a problem is about.
        problems: Every value that a rule does not allow.
    """

    values: dict[str, HyperparameterValue]
    problems: list[Problem]


def merge(
    rules: HyperparameterRules,
    given: Mapping[str, HyperparameterValue | None],
    *,
    allows_custom: bool | None = None,
    style: ArgumentStyle = ARGPARSE_STYLE,
) -> Merged:
    """Return the defaults of the rules with the values of a job over them.

    Args:
        rules: Those that are broken themselves judge no value.
        given: The values of a job; None removes a default.
        allows_custom: Whether a job may give others than the rules name; None: if there are none.
        style: How the script reads them.
    """
    merged = Merged({}, [])
    for rule in rules:
        if not _problems_of_rule("", rule, style):
            _apply(rule, given, merged)
    known = [rule.name for rule in rules]
    for name, value in given.items():
        if name in known:
            continue
        field = f"hyperparameters.{name}"
        if not (not rules if allows_custom is None else allows_custom):
            merged.problems.append(_unknown(field, name, known))
        elif value is None:
            asked = "a text, a number, true or false, or a list of these"
            merged.problems.append(Problem(field, asked, "None", "change it"))
        else:
            merged.values[name] = value
    return merged


def rule_problems(
    field: str, rules: HyperparameterRules, style: ArgumentStyle = ARGPARSE_STYLE
) -> list[Problem]:
    """Return what in the rules at `field` contradicts itself, or could not reach a script."""
    problems: list[Problem] = []
    taken: dict[str, int] = {}
    for i, rule in enumerate(rules):
        env_name = hyperparameter_env_name(rule.name)
        if env_name in taken:
            other = rules[taken[env_name]].name
            found = f"{other!r} at {field}[{taken[env_name]}], which has the same variable"
            do = "rename or remove one of them"
            problems.append(Problem(f"{field}[{i}].name", repr(rule.name), found, do))
        taken.setdefault(env_name, i)
        problems += _problems_of_rule(f"{field}[{i}]", rule, style)
    return problems


def _apply(
    rule: HyperparameterRule, given: Mapping[str, HyperparameterValue | None], merged: Merged
) -> None:
    field = f"hyperparameters.{rule.name}"
    value = given.get(rule.name)
    default = None if rule.default is None else _read("", rule.default, rule)[0]
    if value is not None:
        read, problems = _read(field, value, rule)
        if rule.restricted and (problems or read != default):
            asked = f"{shown(rule.default)}, which the algorithm fixes"
            problems = [
                Problem(field, asked, shown(value), "remove it", id="hyperparameter-restricted")
            ]
        merged.problems.extend(problems)
        if not problems:
            merged.values[rule.name] = read
    elif rule.name not in given and default is not None:
        merged.values[rule.name] = default
    elif rule.required or rule.restricted:
        merged.problems.append(_missing(field, rule, is_removed=rule.name in given))


def _missing(field: str, rule: HyperparameterRule, *, is_removed: bool) -> Problem:
    found = "null, which removes it" if is_removed else "nothing"
    do = f"add {rule.name}: to hyperparameters"
    if is_removed:
        do = "give a value" if rule.default is None else "remove the line, for the default"
    if rule.restricted:
        asked = f"{shown(rule.default)}, which the algorithm fixes"
        return Problem(field, asked, found, do, id="hyperparameter-restricted")
    asked = f"{rule.allowed()}, which the algorithm requires"
    return Problem(field, asked, found, do, id="hyperparameter-required")


def _unknown(field: str, name: str, known: Sequence[str]) -> Problem:
    near = difflib.get_close_matches(name, known, n=1)
    do = f"remove it; known: {', '.join(known)}" if known else "remove it; it takes none"
    if near:
        do = f"did you mean {near[0]!r}?"
    asked = "a hyperparameter of the algorithm"
    return Problem(field, asked, repr(name), do, id="hyperparameter-unknown")


def _read(
    field: str, value: HyperparameterValue, rule: HyperparameterRule
) -> tuple[HyperparameterValue, list[Problem]]:
    """Return the value in the type of the rule, and what in it the rule does not allow."""
    if isinstance(value, list) != rule.is_list:
        do = f"write [{shown(value)}]" if rule.is_list else "write one value"
        return value, [Problem(field, rule.allowed(), shown(value), do)]
    if not isinstance(value, list):
        read = _allowed_value(value, rule)
        if read is None:
            return value, [Problem(field, rule.allowed(), shown(value), _advice(value, rule))]
        return read, []
    of_item = rule.model_copy(update={"is_list": False})
    items = [_read(f"{field}[{i}]", item, of_item) for i, item in enumerate(value)]
    scalars = [item for item, _ in items if not isinstance(item, list)]
    return scalars, [problem for _, problems in items for problem in problems]


def _allowed_value(value: Scalar, rule: HyperparameterRule) -> Scalar | None:
    """Return the value in the type of the rule; None if the rule does not allow it."""
    read = in_type(value, rule.type)
    if read is None:
        return None
    if rule.choices and read not in [in_type(choice, rule.type) for choice in rule.choices]:
        return None
    if isinstance(read, str):
        return read
    too_small = rule.minimum is not None and read < rule.minimum
    too_large = rule.maximum is not None and read > rule.maximum
    return None if too_small or too_large else read


def _advice(value: Scalar, rule: HyperparameterRule) -> str:
    if rule.type == "string" and not rule.choices and not isinstance(value, str):
        return "write it in quotes"
    is_whole = re.fullmatch(r"[+-]?[0-9]+", str(value))
    if rule.type == "integer" and is_whole and in_type(value, rule.type) is None:
        return _WRITE_SMALLER
    names = [choice for choice in rule.choices if isinstance(choice, str)]
    near = difflib.get_close_matches(str(value), names, n=1)
    return f"did you mean {near[0]!r}?" if near else "change it"


def _problems_of_rule(field: str, rule: HyperparameterRule, style: ArgumentStyle) -> list[Problem]:
    """Return what in one rule is wrong: first the bounds alone, then what they are for."""
    problems = [*_bound_problems(field, rule), *_choice_problems(field, rule)]
    if problems:
        return problems
    if rule.minimum is not None and rule.maximum is not None and rule.minimum > rule.maximum:
        asked, found = f"at most the maximum {rule.maximum}", str(rule.minimum)
        return [Problem(f"{field}.minimum", asked, found, "change one of them")]
    if rule.default is not None:
        at_default = f"{field}.default"
        _, problems = _read(at_default, rule.default, rule)
        return problems or value_problems(at_default, rule.default, style)
    if rule.restricted:
        do = "add default: or remove restricted"
        return [Problem(f"{field}.default", "the one value", "nothing", do)]
    return []


def _bound_problems(field: str, rule: HyperparameterRule) -> Iterator[Problem]:
    bounds = {"minimum": rule.minimum, "maximum": rule.maximum}
    for key, bound in bounds.items():
        if bound is None:
            continue
        if rule.type not in ("integer", "float"):
            asked, found = "a bound of an integer or float", f"the type {rule.type}"
            yield Problem(f"{field}.{key}", asked, found, "remove it")
        elif rule.choices:
            asked = "either choices or a range"
            yield Problem(f"{field}.{key}", asked, "both", "remove one of them")
        elif problems := scalar_problems(f"{field}.{key}", bound):
            yield from (replace(problem, do=_WRITE_SMALLER) for problem in problems)
        elif in_type(bound, rule.type) is None:
            yield Problem(f"{field}.{key}", "an integer", shown(bound), "change it")


def _choice_problems(field: str, rule: HyperparameterRule) -> Iterator[Problem]:
    if rule.choices and rule.type == "boolean":
        asked, found = "true and false, which are all choices", "choices"
        yield Problem(f"{field}.choices", asked, found, "remove choices")
        return
    seen: list[Scalar] = []
    of_type = rule.model_copy(update={"choices": (), "is_list": False})
    for i, choice in enumerate(rule.choices):
        at_choice = f"{field}.choices[{i}]"
        read = in_type(choice, rule.type)
        if read is None:
            advice = _advice(choice, of_type)
            yield Problem(at_choice, of_type.allowed(), shown(choice), advice)
        elif read in seen:
            yield Problem(at_choice, "every choice once", f"{shown(choice)} again", "remove it")
        else:
            seen.append(read)
            yield from scalar_problems(at_choice, read)
