"""Values that a job file writes the way people do: ``1h``, ``16GiB``.

What reads a text has a counterpart that writes it again, so that the job file, the form, the
receipt and every message show one spelling.
"""

import re
from contextlib import suppress
from datetime import timedelta
from typing import Any

_DURATION_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?\s*[smhd]\s*)+")
_SIZE_UNITS_BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B)", re.IGNORECASE)
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")  # ECMA-48, control sequences
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def parse_duration(value: Any) -> Any:
    """Read ``90s``, ``15m``, ``1h30m`` or ``2d`` as a timedelta; a bare number is refused."""
    if isinstance(value, timedelta):
        return value
    text = str(value).strip().lower()
    if isinstance(value, str) and _DURATION.fullmatch(text):
        parts = _DURATION_PART.findall(text)
        with suppress(OverflowError):  # more than timedelta can hold
            return timedelta(seconds=sum(float(n) * _DURATION_UNITS_S[unit] for n, unit in parts))
    raise ValueError("write a duration with its unit, such as 90s, 15m, 1h30m or 2d")


def format_duration(value: timedelta) -> str:
    """Write a timedelta the way a job file does, with whole units where they fit."""
    seconds = value.total_seconds()
    if seconds != int(seconds):
        return f"{seconds:g}s"
    text, rest = "", int(seconds)
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, _DURATION_UNITS_S[unit])
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_size(text: str) -> int:
    """Read ``16GiB``, ``500 MB`` or ``12B`` as a number of bytes.

    Raises:
        ValueError: If the text is not a size with its unit.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("write a size with its unit, such as 16GiB or 500MB")
    return int(float(match[1]) * _SIZE_UNITS_BYTES[match[2].upper()])


def format_size(size_bytes: float) -> str:
    """Write a number of bytes for a person: ``0 B``, ``449.4 KiB``, ``16 GiB``."""
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(size) >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} {units[0]}" if size == int(size) else f"{size:.1f} {units[0]}"


def counted(count: int, noun: str) -> str:
    """Write a number with its noun: ``1 file``, ``2 files``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# What `parse_duration` reads, so that a form can refuse anything else at once.
DURATION_SCHEMA: dict[str, Any] = {
    "type": "string",
    "pattern": "^ *([0-9.]+ *[smhdSMHD] *)+$",  # is shown to people, so as short as may be
    "examples": ["90s", "15m", "1h30m", "2d"],
}


def lacks_a_slash(url: str) -> bool:
    """Say whether a url has one slash behind its scheme, by which it would be taken for a path."""
    return re.match("[A-Za-z][A-Za-z0-9+.-]+:/(?!/)", url) is not None


def printable(text: str) -> str:
    """Return a text with what would change the terminal written as escapes; line ends stay."""
    return "".join(map(_escaped, text))


def storable(text: str) -> str:
    """Return what a program said as every database and page can take it.

    Control characters and lone surrogates, by which Python names bytes that are no text, become
    escapes; tabs and line ends stay, and colours go.
    """
    return _NO_TEXT.sub(lambda found: _escaped(found[0]), _COLOUR.sub("", text))


def _escaped(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    return character.encode("unicode_escape").decode("ascii")
