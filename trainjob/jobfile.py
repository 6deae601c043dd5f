"""Reading a job file: YAML or JSON text to plain values, with the place of every mistake.

YAML is read by the rules of YAML 1.2, the way people expect: ``no`` is text, ``1e-3`` is a number,
``2026-11-21`` is text, and a key given twice is an error. Used by `trainjob.job`, and for values
that are typed in a terminal.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from trainjob.errors import JobError, Problem


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalar types of YAML 1.2's core schema (section 10.3)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dict; refuse a key that is given twice, of which one would be lost."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_CORE_SCHEMA = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
)
for _tag, _pattern, _first in _CORE_SCHEMA:
    _Yaml12Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), [*_first, ""]
    )


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(
        loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan")
    )


_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def read_job_file(path: Path, what: str = "job") -> dict[str, Any]:
    """Return the keys and values of a job file; JSON when the name ends in ``.json``.

    Args:
        path: The file.
        what: What it describes, for messages.

    Raises:
        JobError: If the file is missing, is not text, or is not a mapping in its syntax.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise _unreadable(path, what, "no such file", "check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, what, str(error), "give a readable UTF-8 text file") from error
    try:
        data = _load_json(text) if path.suffix == ".json" else _load_yaml(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise _unreadable(path, what, found, "fix the JSON") from error
    except yaml.YAMLError as error:
        raise _unreadable(path, what, _describe(error), "fix the YAML") from error
    except RecursionError as error:
        raise _unreadable(path, what, "values that are nested too deep", "flatten them") from error
    except ValueError as error:
        raise _unreadable(path, what, str(error), "correct the value") from error
    if not isinstance(data, dict):
        found = "an empty file" if data is None else f"a {type(data).__name__}"
        start = ", starting with name:" if what == "job" else ""
        raise _unreadable(path, what, found, f"write the {what} as keys and values{start}")
    return data


def read_value(text: str) -> Any:
    """Return one value as a job file has it: a number, true, null, a list, or the text itself."""
    try:
        return _load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _load_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_repeated_keys)


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} is given twice")
        values[key] = value
    return values


def _load_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Yaml12Loader)  # noqa: S506  (a subclass of the safe loader)


def _describe(error: yaml.YAMLError) -> str:
    problem = (getattr(error, "problem", None) or "a syntax error").removeprefix("found ")
    mark = getattr(error, "problem_mark", None)
    return f"{problem} at line {mark.line + 1}, column {mark.column + 1}" if mark else problem


def _unreadable(path: Path, what: str, found: str, do: str) -> JobError:
    asked = f"the {what} in {str(path)!r}"
    return JobError(str(path), [Problem(f"{what} file", asked, found, do)])
