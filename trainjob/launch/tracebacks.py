"""Reads tracebacks as Python prints them: which of their lines tell why, and which only when.

Of an exception that was raised while another one was handled, Python prints both. The other one is
the cause only if the script says so (`raise … from error`). Asked by `trainjob.launch.said`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"
_TRACEBACK = re.compile(r"(?:Exception Group )?Traceback \(most recent call last\):")
_RANK = re.compile(r"(?:\[\w+\]: ?)*")
"""What torch puts before each line of a traceback where there are several ranks."""

_GROUP = re.compile(r" +\+ (?=Exception Group Traceback )")
_IN_GROUP = re.compile(r" +\| ?")
_PLACE = re.compile(r'^ +File "(?:.*[/\\])?([^/\\"]+[/\\][^/\\"]+)", line \d+', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Line:
    rank: str
    level: str
    text: str

    @property
    def chain(self) -> tuple[str, str]:
        """What it shares with the lines of exceptions that it may be joined with."""
        return self.rank, self.level


def without_contexts(lines: Sequence[str]) -> list[str]:
    """Return the lines without exceptions in whose handling another one was raised.

    Their causes go with them; those of the exception that was raised stay. Lines of exception
    groups lose what Python draws before them, so that they look as those of one exception do.

    Args:
        lines: Of one traceback, or of a log with any number of them.
    """
    kept: list[_Line | None] = []
    starts: dict[tuple[str, str], int] = {}
    joined: set[tuple[str, str]] = set()
    for line in map(_parsed, lines):
        if line.text == _CONTEXT:
            start = starts.get(line.chain, 0)
            kept[start:] = [old if old and old.rank != line.rank else None for old in kept[start:]]
        if line.text in (_CAUSE, _CONTEXT):
            joined.add(line.chain)
        if line.text == _CONTEXT:
            continue
        if _TRACEBACK.match(line.text):
            if line.chain not in joined:
                starts[line.chain] = len(kept)
            joined.discard(line.chain)
        kept.append(line)
    return [line.rank + line.text for line in kept if line]


def last_chain(lines: Sequence[str]) -> Sequence[str]:
    """Return the lines from the last traceback on, with those of its causes; none without one.

    Args:
        lines: Of a log, without contexts.
    """
    starts = [
        index
        for index, line in enumerate(lines)
        if _TRACEBACK.match(line[len(_rank(line)) :]) and not _is_joined(lines[:index])
    ]
    return lines[starts[-1] :] if starts else ()


def place_raised(traceback: str) -> str | None:
    """Return the file in which the last exception of a traceback was raised, with its folder."""
    places = _PLACE.findall(traceback)
    return places[-1].replace("\\", "/") if places else None


def _is_joined(before: Sequence[str]) -> bool:
    """Tell whether the last line with anything in it says that its exception is a cause."""
    return next((line.endswith(_CAUSE) for line in reversed(before) if line.strip()), False)


def _rank(line: str) -> str:
    found = _RANK.match(line)
    return found.group() if found else ""


def _parsed(line: str) -> _Line:
    rank = _rank(line)
    text = line[len(rank) :]
    if group := _GROUP.match(text):  # not searched for: a message may hold a million blanks
        text = text[group.end() :]
    in_group = _IN_GROUP.match(text)
    level = in_group.group().rstrip() if in_group else ""
    return _Line(rank, level, text[in_group.end() :] if in_group else text)
