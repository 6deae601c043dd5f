"""Strict reading of a value in the type that a rule asks for.

A text that says a value of the type is read as one; what would lose or change something is not.
"""

import math
import re
from collections.abc import Callable

from trainjob.parameters import Scalar

_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_INTEGERS = range(-(2**63), 2**63)  # as `trainjob.parameters.scalar_problems` asks
_FLOAT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_EXACT_INTEGERS = 2**53  # above it, not every whole number is a float


def in_type(value: Scalar, kind: str) -> Scalar | None:
    """Return the value in a type, if it is one or a text that says one; else None."""
    return _READERS[kind](value)


def _as_text(value: Scalar) -> str | None:
    return value if isinstance(value, str) else None


def _as_integer(value: Scalar) -> int | None:
    if isinstance(value, str):
        number = int(value) if _INTEGER.fullmatch(value) else None
    elif isinstance(value, float):  # such as 1e3
        number = int(value) if value.is_integer() and abs(value) <= _EXACT_INTEGERS else None
    else:
        number = None if isinstance(value, bool) else value
    return number if number is not None and number in _INTEGERS else None


def _as_float(value: Scalar) -> float | None:
    if isinstance(value, bool) or (isinstance(value, str) and not _FLOAT.fullmatch(value)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer that is larger than every float
        return None
    return number if math.isfinite(number) else None


def _as_boolean(value: Scalar) -> bool | None:
    if isinstance(value, str):  # bool("False") is True
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


_READERS: dict[str, Callable[[Scalar], Scalar | None]] = {
    "string": _as_text,
    "integer": _as_integer,
    "float": _as_float,
    "boolean": _as_boolean,
}
