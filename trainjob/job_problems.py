"""From pydantic's errors to problems that a person can act on.

A job's mistakes are told by the key they are at, with what was asked, what was found and what to
do. Used by `trainjob.job` only.
"""

import copy
import difflib
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainjob.env_rules import open_secret_problems
from trainjob.errors import Problem
from trainjob.url_secrets import without_secrets

_NAME_RULE = "1 to 64 letters, digits, - and _, not starting with -"
_MAX_FILL_ROUNDS = 3  # the deepest missing value is that many models down
_STAND_IN = {
    "algorithm": {"kind": "command", "code": {"url": "."}, "command": "true"},
    "type": "string",
}
_RULES = ("algorithm", "hyperparameters")
_WORDS = {
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
}
"""What Python's types are called in a job file."""


class ProblemsFound(ValueError):
    """Raised by a validator that found several problems at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def problems_of(error: ValidationError, model: type[BaseModel], data: Any) -> list[Problem]:
    """Return every mistake in `data`, those that pydantic stopped before included.

    Validators across fields run only when every field is right. So the wrong parts are taken out
    and the rest is validated again.

    Args:
        error: What validating `data` raised.
        model: The model that was asked for.
        data: Plain keys and values; left unchanged.
    """
    details = error.errors(include_url=False)
    problems = _unique(p for detail in details for p in _problems(detail, model, data, details))
    rest = copy.deepcopy(data)
    for path in sorted({_value_path(d["loc"], data) for d in details}, key=_depth, reverse=True):
        _remove(rest, path)
    told = [problem.field for problem in problems]
    untold = set(_not_to_be_judged(details, data))
    across = (
        problem
        for problem in _problems_across_fields(model, rest)
        # Where something was taken out, the rules would find fault with what is left.
        if not any(_is_within(field, problem.field) for field in told)
        and not any(_is_within(problem.field, field) for field in untold)
    )
    return _unique([*problems, *across])


def _is_within(field: str, other: str) -> bool:
    """Tell whether a field is the other one or a part of it."""
    return field == other or field.startswith((f"{other}.", f"{other}["))


def _problems_across_fields(model: type[BaseModel], data: Any) -> list[Problem]:
    """Return what the validators across fields find, with stand-ins for missing values."""
    for _ in range(_MAX_FILL_ROUNDS):
        try:
            model.model_validate(data)
        except ValidationError as error:
            details = error.errors(include_url=False)
        else:
            return []
        causes = [detail.get("ctx", {}).get("error") for detail in details]
        found = [p for cause in causes if isinstance(cause, ProblemsFound) for p in cause.problems]
        if found:
            return found
        for detail in details:
            if not _is_of_another_kind(detail, model, data, details):
                _fill_in(data, _data_path(detail["loc"], data))
    return []


def _problems(
    detail: ErrorDetails, model: type[BaseModel], data: Any, details: Sequence[ErrorDetails]
) -> list[Problem]:
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ProblemsFound):
        return list(cause.problems)
    if _is_of_another_kind(detail, model, data, details):
        return []
    path = _data_path(detail["loc"], data)
    field = _dotted(path) or "job"
    if detail["type"] == "extra_forbidden":
        known = list(_model_at(model, detail["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        do = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return [Problem(field, "a known key", repr(path[-1]), do, id="unknown-key")]
    if detail["type"] == "missing":
        return [
            Problem(
                *(field, "a value", "nothing", f"add {path[-1]}: to the job"), id="missing-value"
            )
        ]
    if path[:1] == ("secrets",):
        return [_no_name_of_secret(field)]
    if (value := _of_many_types(path)) and not _is_bad_name(detail):
        value_path, asked = value
        found = _shown(_value_at(data, value_path))
        return [Problem(_dotted(value_path), asked, found, "change it", id="wrong-value")]
    found = _shown(detail["input"])
    if path[:1] == ("env",) and open_secret_problems({path[-1]: detail["input"]}):
        found = "something else, which may be a secret"
    return [Problem(field, _asked(detail), found, _do(detail), id="wrong-value")]


def _no_name_of_secret(field: str) -> Problem:
    """Return the problem without what was found, which may be the secret itself."""
    asked = "the name of a saved block of the type Secret: small letters, digits and -"
    do = "save the value in such a block, and write its name here: secrets: {VARIABLE: NAME}"
    return Problem(field, asked, "something else, which is not repeated", do, id="wrong-value")


def _of_many_types(path: tuple[int | str, ...]) -> tuple[tuple[int | str, ...], str] | None:
    """Return the path of a value that may be of many types, and what it may be.

    pydantic has an error for each of the types.
    """
    asked = "a text, a number, true or false"
    if path[:1] == ("hyperparameters",) and len(path) > 1:
        return path[:2], f"{asked}, or a list of these"
    if path[:2] != _RULES or len(path) < 4:
        return None
    if path[3] == "default":
        return path[:4], f"{asked}, or a list of these"
    if path[3] == "choices" and len(path) > 4:
        return path[:5], asked
    return (path[:4], "a number") if path[3] in ("minimum", "maximum") else None


def _not_to_be_judged(details: Iterable[ErrorDetails], data: Any) -> Iterator[str]:
    """Name the fields that nothing more can be said about, since their rule is not understood."""
    for detail in details:
        path = _data_path(detail["loc"], data)
        if path[:2] == ("algorithm", "allow_custom_hyperparameters"):
            yield "hyperparameters"
        elif path[:3] == ("algorithm", "constraints", "devices"):
            yield "resources.device"
        elif path[:2] == _RULES:
            rule = _value_at(data, path[:3])
            name = rule.get("name") if isinstance(rule, dict) else None
            is_known = isinstance(name, str) and path[3:] != ("name",)
            yield f"hyperparameters.{name}" if is_known else "hyperparameters"
            yield _dotted(path[:3] if len(path) > 3 else _RULES)


def _is_of_another_kind(
    detail: ErrorDetails, model: type[BaseModel], data: Any, details: Sequence[ErrorDetails]
) -> bool:
    """Tell whether the error is about a form of algorithm that the job does not use.

    pydantic tries every member of a union and reports the errors of all of them. The one that the
    job means is the one of its `kind`, or without it the one with the fewest errors.
    """
    for depth, part in enumerate(detail["loc"]):
        members = _members_at(model, detail["loc"][:depth])
        if part not in members:
            continue
        value = _value_at(data, _data_path(detail["loc"][:depth], data))
        kind = value.get("kind") if isinstance(value, dict) else None
        kinds = {name: _kind_of(member) for name, member in members.items()}
        if kind in kinds.values():
            return kinds[str(part)] != kind
        errors = {name: sum(name in d["loc"] for d in details) for name in members}
        return part != min(errors, key=lambda name: errors[name])
    return False


def _kind_of(member: type[BaseModel]) -> str:
    """Return the one value that the member's `kind` accepts."""
    return str(get_args(member.model_fields["kind"].annotation)[0])


def _asked(detail: ErrorDetails) -> str:
    if _is_bad_name(detail):
        return _NAME_RULE
    if detail["type"] in _WORDS:
        return _WORDS[detail["type"]]
    message = detail["msg"]
    for prefix in ("Input should be ", "Value error, write ", "Value error, ", "String should "):
        message = message.removeprefix(prefix)
    return message.partition(", unable to parse")[0]


def _do(detail: ErrorDetails) -> str:
    if detail["type"] == "literal_error" and detail["input"] == "gpu" and "'cuda'" in detail["msg"]:
        return "did you mean 'cuda'?"  # what products call it
    return "rename it" if _is_bad_name(detail) else "change it"


def _is_bad_name(detail: ErrorDetails) -> bool:
    return detail["type"] == "string_pattern_mismatch"


def _shown(value: Any) -> str:
    is_text = isinstance(value, str)
    text = repr(without_secrets(value)) if is_text else without_secrets(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _members_at(model: type[BaseModel], loc: Sequence[int | str]) -> dict[str, type[BaseModel]]:
    """Return the models of the union at `loc` by name, if a union of models is there."""
    annotation: Any = model
    for part in loc:
        annotation = _step(annotation, part)
    members = [m for m in get_args(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
    is_union = get_origin(annotation) in (Union, types.UnionType) and len(members) > 1
    return {m.__name__: m for m in members} if is_union else {}


def _model_at(model: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel]:
    annotation: Any = model
    for part in loc:
        annotation = _step(annotation, part)
    candidates = [annotation, *get_args(annotation)]
    return next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))


def _step(annotation: Any, part: int | str) -> Any:
    """Return the annotation below `annotation` at one part of an error's location."""
    arguments = get_args(annotation)
    if isinstance(part, int):
        return arguments[0] if arguments else Any
    for candidate in (annotation, *arguments):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            if candidate.__name__ == part and candidate is not annotation:
                return candidate
            if part in candidate.model_fields:
                return candidate.model_fields[part].annotation
    return Any


def _data_path(loc: Sequence[int | str], data: Any) -> tuple[int | str, ...]:
    """Drop what pydantic adds to a location for itself, such as names of union members."""
    path: list[int | str] = []
    value = data
    for i, part in enumerate(loc):
        is_last = i == len(loc) - 1
        is_key = isinstance(value, dict) and part in value
        if is_key or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
        elif not (isinstance(value, dict) and is_last and str(part).isidentifier()):
            continue
        path.append(part)
    return tuple(path)


def _value_path(loc: Sequence[int | str], data: Any) -> tuple[int | str, ...]:
    """Return the path of the value that is wrong as a whole."""
    path = _data_path(loc, data)
    value = _of_many_types(path)
    return value[0] if value else path


def _value_at(data: Any, path: Sequence[int | str]) -> Any:
    for part in path:
        data = data[part]
    return data


def _remove(data: Any, path: tuple[int | str, ...]) -> None:
    """Take the value at `path` out of `data`, if it is there."""
    try:
        parent = _value_at(data, path[:-1])
        del parent[path[-1]]
    except (LookupError, TypeError):
        return


def _fill_in(data: Any, path: tuple[int | str, ...]) -> None:
    """Put something valid where a required value is missing."""
    try:
        _value_at(data, path[:-1]).setdefault(path[-1], _STAND_IN.get(str(path[-1]), "missing"))
    except (LookupError, TypeError, AttributeError):
        return


def _depth(path: tuple[int | str, ...]) -> tuple[int, str]:
    last = path[-1] if path else ""
    return len(path), f"{last:08}" if isinstance(last, int) else str(last)


def _dotted(path: Sequence[int | str]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _unique(problems: Iterable[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))
