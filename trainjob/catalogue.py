"""The catalogue of failures that have a name: what each means and whether another try can help.

The rules are data, `failure_catalogue.yaml`; the first one that matches what is known of a failure
counts. Asked by `trainjob.launch.failure`; nothing here reads a log or decides a restart.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

Ending = Literal[
    "exception",
    "exit",
    "signal",
    "stalled",
    "left",
    "memory",
    "start",
    "launcher",
    "supervisor",
    "flow",
]
"""How an attempt ended: a rank raised, left with a code or was killed; the training stalled; a rank
left without an error while others needed it; all took more memory than their flavor has; the
launcher failed before the ranks began; launcher, supervisor or flow process died under them."""

_FILE = Path(__file__).with_name("failure_catalogue.yaml")
_MAX_SEARCHED_CHARS = 20_000
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Signs:
    """What is known of a failure, to find its rule by.

    Attributes:
        ended: How the attempt ended.
        texts: What was said, the most telling text first: a rule for it goes before any other.
        signal: Name of the signal that ended a rank.
        oom_killed: Whether the kernel killed for want of memory meanwhile.
        earlier: What was written up to the last words: if those have no name, it gives one to a
            failure that would come again, but is no reason to try again.
    """

    ended: Ending
    texts: tuple[str, ...] = ()
    signal: str | None = None
    oom_killed: bool = False
    earlier: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A failure that has a name.

    Attributes:
        name: What it is called.
        meaning: What happened, for whoever wrote the script.
        next_step: What to do about it.
        restart: Whether another try can help.
        says: Regular expression that is found in what was said.
        ended: How the attempt ended, any of these; empty: in any way.
        signal: The signal that ended the rank.
        oom_killed: True: only if the kernel killed for want of memory.
        last_words: Whether what was written before the last words is not searched, as it is not
            for any rule by which another try can help.
        between_ranks: Whether the ranks lost each other, of which one that left is the cause.
    """

    name: str
    meaning: str
    next_step: str
    restart: bool
    says: str | None = None
    ended: tuple[Ending, ...] = ()
    signal: str | None = None
    oom_killed: bool = False
    last_words: bool = False
    between_ranks: bool = False

    def matched(self, signs: Signs, text: str) -> "Rule | None":
        """Return this rule with its placeholders filled if it fits, or None."""
        if not self._conditions_hold(signs):
            return None
        if self.says is None:
            return self
        found = re.search(self.says, text[-_MAX_SEARCHED_CHARS:], re.MULTILINE)
        return self._filled(found.groupdict()) if found else None

    @property
    def needs_last_words(self) -> bool:
        """Whether it has to be the last words that it is found in, of a rank that left."""
        of_rank = not self.ended or "exit" in self.ended
        return of_rank and self.says is not None and (self.restart or self.last_words)

    def _conditions_hold(self, signs: Signs) -> bool:
        return (
            (not self.ended or signs.ended in self.ended)
            and self.signal in (None, signs.signal)
            and (signs.oom_killed or not self.oom_killed)
        )

    def _filled(self, values: Mapping[str, str | None]) -> "Rule":
        def fill(text: str) -> str:
            return _PLACEHOLDER.sub(lambda found: values[found[1]] or found[1], text)

        return replace(self, meaning=fill(self.meaning), next_step=fill(self.next_step))


@cache
def rules() -> tuple[Rule, ...]:
    """Return all rules in the order in which they are tried."""
    return tuple(map(_rule, yaml.safe_load(_FILE.read_text(encoding="utf-8"))))


def find_rule(signs: Signs) -> Rule | None:
    """Return the first rule that matches, its placeholders filled, or None."""
    for text in signs.texts or ("",):
        for rule in rules():
            matched = rule.matched(signs, text)
            if matched is not None:
                return matched
    if not signs.earlier:
        return None
    told = (rule.matched(signs, signs.earlier) for rule in rules() if not rule.needs_last_words)
    return next((rule for rule in told if rule is not None), None)


def catalogue_markdown() -> str:
    """Return the catalogue as a page for people: ``docs/failures.md``."""
    head = [
        "# Failures that have a name",
        "",
        "When a training fails, the run names the failure by the first rule below that matches,",
        "with its meaning, what to do, and whether another try can help: `limits.auto_restart`",
        "tries again where it can, `limits.restart_on: any` in any case. What no rule matches is",
        "tried again if a rank was killed or hung, not if it raised or left with an exit code.",
        "What a rank had written before it was killed does not name the failure; what it wrote",
        "before it gave up by itself (SIGABRT, SIGBUS) or left with a code does, its last words",
        "first. An exception in whose handling another one was raised is not its cause, unless the",
        "script says so by `raise ... from`.",
        "",
        "Made from `trainjob/failure_catalogue.yaml`; a new rule needs an example in",
        "`tests/core/test_catalogue.py`.",
        "",
    ]
    return "\n".join([*head, *(line for rule in rules() for line in _section(rule))])


def _rule(data: dict[str, Any]) -> Rule:
    ended: Sequence[Ending] = data.pop("ended", ())
    return Rule(**data, ended=tuple(ended))


def _section(rule: Rule) -> list[str]:
    meaning, next_step = (
        _PLACEHOLDER.sub(lambda found: found[1].upper(), text)
        for text in (rule.meaning, rule.next_step)
    )
    again = "can help" if rule.restart else "cannot help"
    seen = "; ".join(_conditions(rule))
    return [
        *(f"## {rule.name}", ""),
        *(meaning, ""),
        *(f"**Next:** {next_step}", ""),
        *(f"**Another try** {again}. **Seen as:** {seen}.", ""),
    ]


def _conditions(rule: Rule) -> list[str]:
    found = []
    if rule.ended:
        found.append(f"ended by {' or '.join(rule.ended)}")
    if rule.signal:
        found.append(f"signal {rule.signal}")
    if rule.oom_killed:
        found.append("the kernel counted a kill for want of memory")
    if rule.says:
        where = " in the last words of a rank that left" if rule.needs_last_words else ""
        text = f"``{rule.says}``" if "`" in rule.says else f"`{rule.says}`"
        found.append(f"text{where} {text}")
    return found
