"""Reads metrics from the lines that a script writes, by the regular expressions of the job.

A pattern has one group that holds the number, and may have a group named ``step``. The rules that
a pattern must keep are here too: the model of the job asks for them.
"""

import logging
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

# Through Prefect it is there anyway. Unlike re it gives up after a time: a pattern such as (a+)+$
# would take years on one line, holding the lock of the interpreter.
import regex

from trainjob.errors import Problem

_logger = logging.getLogger(__name__)
_MAX_LINE_CHARS = 2000
_TIMEOUT_S = 0.5
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_LOOKS_AROUND = re.compile(r"(?<!\[)\^|\$|\\[AZzGK]|\(\?(?!:|P<|i\))|\(\*|[*+?}]\+|\{[^\d,]")
"""Anything by which a match may depend on what stands before or behind it; rather too much."""

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""What colors text or moves the cursor: control sequences as ECMA-48, 5.4 writes them."""


class NamedRegex(Protocol):
    """A metric as the job writes it."""

    @property
    def name(self) -> str:
        """What the metric is called."""

    @property
    def regex(self) -> str:
        """How it is found in a line."""


@dataclass(frozen=True, slots=True)
class Found:
    """The metrics of one line, and the step that it names."""

    values: dict[str, float]
    step: int | None


def metric_problems(metrics: Sequence[NamedRegex]) -> list[Problem]:
    """Return everything that is wrong with the metrics of a job."""
    problems: list[Problem] = []
    first_of: dict[str, int] = {}
    for i, metric in enumerate(metrics):
        problems += regex_problems(f"metrics[{i}].regex", metric.regex)
        first = first_of.setdefault(metric.name, i)
        if first != i:
            found = f"the same name at metrics[{first}].name"
            asked = f"the metric {metric.name!r}"
            problems.append(Problem(f"metrics[{i}].name", asked, found, "rename one of them"))
    return problems


def regex_problems(field: str, pattern: str) -> list[Problem]:
    """Return what is wrong with the regular expression of a metric, at most one problem.

    Args:
        field: Where it is, as a dotted path into the job file.
        pattern: The regular expression.
    """
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        found = f"{pattern!r}, which is not one: {error}"
        return [Problem(field, "a regular expression", found, "correct it")]
    num_groups = compiled.groups - ("step" in compiled.groupindex)
    if num_groups != 1:
        found = f"{num_groups or 'no'} group{'s' * (num_groups != 1)} in {pattern!r}"
        do = "put ( ) around the number alone; write (?: ) for others, (?P<step> ) for the step"
        return [Problem(field, "one group, which holds the number", found, do)]
    if compiled.match("", timeout=_TIMEOUT_S):
        found = f"{pattern!r}, which matches an empty text"
        do = "ask for a character at least, such as + instead of *"
        return [
            Problem(field, "a pattern that a line without the number does not match", found, do)
        ]
    return []


def unfound(metrics: Iterable[NamedRegex], found: Container[str]) -> list[str]:
    """Return what to tell of the metrics of a job that have no value at its end.

    Args:
        metrics: The metrics of the job.
        found: The names of those that have one, wherever it came from.
    """
    return [
        f"metric {metric.name!r}: asked for a number by its regex {metric.regex!r}, found none in "
        "any line of the ranks; compare it with a line of their logs"
        for metric in metrics
        if metric.name not in found
    ]


class MetricPatterns:
    """Finds the metrics of a job in lines of output. Used by one thread at a time.

    Args:
        metrics: The metrics of the job, without problems.
    """

    def __init__(self, metrics: Sequence[NamedRegex]) -> None:
        self._patterns = {metric.name: regex.compile(metric.regex) for metric in metrics}
        self._said: set[str] = set()

    def find_all(self, lines: Sequence[str]) -> list[Found]:
        """Return what `find` returns of each line that has metrics, in their order.

        Most lines have none, and asking each costs most of the time: a search with a timeout asks
        for the CPU time of all threads. So all lines are searched at once for those worth asking.
        """
        if not self._patterns:
            return []
        block = "\n".join(lines)
        if "\x1b" in block or max(map(len, lines), default=0) > _MAX_LINE_CHARS:
            block = "\n".join(map(self._readable, lines))
        chosen: set[tuple[int, int]] = set()
        for pattern in self._patterns.values():
            chosen.update(_lines_to_ask(pattern, block))
        texts = (block[start:end] for start, end in sorted(chosen))
        return [found for text in texts if (found := self.find(text)) is not None]

    def find(self, line: str) -> Found | None:
        """Return the metrics in a line, or None if there are none.

        Of a line that a progress bar rewrote, the caller gives the last state. What is beyond 2,000
        characters is not looked at.
        """
        values: dict[str, float] = {}
        step: int | None = None
        line = self._readable(line)
        for name, pattern in self._patterns.items():
            try:
                # Not concurrent: letting go of the interpreter takes longer than most searches.
                match = pattern.search(line, timeout=_TIMEOUT_S, concurrent=False)
            except TimeoutError:
                self._give_up(name, pattern, line)
                continue
            if match is None:
                continue
            number = self._number_in(name, match)
            if number is None:
                continue
            values[name] = number
            if step is None:
                step = _step_in(match)
        return Found(values, step) if values else None

    def _readable(self, line: str) -> str:
        if len(line) > _MAX_LINE_CHARS:
            found = f"a line of {len(line):,} characters"
            self._say_once(f"metrics are looked for in the first {_MAX_LINE_CHARS:,} of {found}")
            line = line[:_MAX_LINE_CHARS]
        return _CONTROL.sub("", line) if "\x1b" in line else line

    def _give_up(self, name: str, pattern: "regex.Pattern[str]", text: str) -> None:
        # A new one, since somebody goes through the old one.
        self._patterns = {other: of for other, of in self._patterns.items() if other != name}
        _logger.warning(
            "metric %r is not read from here on: its regex %r took more than %s s on the line "
            "%r; write it without a repeat inside a repeat",
            *(name, pattern.pattern, _TIMEOUT_S, text[:200]),
        )

    def _number_in(self, name: str, match: "regex.Match[str]") -> float | None:
        text = _value_of(match)
        if text is None:  # the group is an optional part of the pattern
            return None
        number = parse_number(text)
        if number is None:
            self._say_once(
                f"metric {name!r}: asked for a number, found {text[:100]!r} by its regex "
                f"{match.re.pattern!r}; put the ( ) around the number alone",
                key=name,
            )
        return number

    def _say_once(self, message: str, key: str = "line") -> None:
        if key not in self._said:
            self._said.add(key)
            _logger.warning("%s", message)


def _lines_to_ask(pattern: "regex.Pattern[str]", block: str) -> Iterable[tuple[int, int]]:
    """Return begin and end of all lines in which a pattern matches, and perhaps of some more."""
    if _LOOKS_AROUND.search(pattern.pattern):
        return _all_lines(block)
    asked = []
    start = 0
    try:
        while start <= len(block):
            match = pattern.search(block, start, timeout=_TIMEOUT_S, concurrent=False)
            if match is None:
                break
            # It may go over the end of a line and hide what matches in the next one.
            begin = block.rfind("\n", 0, match.start()) + 1
            end = block.find("\n", match.start())
            end = len(block) if end < 0 else end
            asked.append((begin, end))
            start = end + 1
    except TimeoutError:
        return _all_lines(block)  # on so much text at once that says nothing against the pattern
    return asked


def _all_lines(block: str) -> Iterable[tuple[int, int]]:
    ends = accumulate((len(line) + 1 for line in block.split("\n")), initial=0)
    return ((begin, end - 1) for begin, end in pairwise(ends))


def parse_number(text: str) -> float | None:
    """Read a number as programs print it, or return None.

    ``0.5``, ``1e-3``, ``nan``, ``-inf``, ``1,234.5`` (thousands), ``97%`` (is 97); a full stop or
    comma behind it is left out. A decimal comma is not a number: ``0,5`` could mean anything.
    """
    word = text.strip().rstrip(".,;:%")
    if _THOUSANDS.fullmatch(word):
        word = word.replace(",", "")
    try:
        return float(word)
    except ValueError:
        return None


def _value_of(match: "regex.Match[str]") -> str | None:
    step_group = match.re.groupindex.get("step")
    texts: list[str | None] = [t for i, t in enumerate(match.groups(), 1) if i != step_group]
    return texts[0]


def _step_in(match: "regex.Match[str]") -> int | None:
    if "step" not in match.re.groupindex:
        return None
    number = parse_number(match["step"] or "")
    try:
        return None if number is None else int(number)
    except (ValueError, OverflowError):  # nan, inf
        return None
