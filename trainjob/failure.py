"""What is known of an attempt that failed, as one record for programs and pages.

Made by `trainjob.launch.failure`, shown by `trainjob.failure_card`, kept in the report of the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainjob.catalogue import Ending, Rule
from trainjob.launch.stall import Stall
from trainjob.values import counted


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt failed.

    Attributes:
        headline: One line that says it.
        ended: Who failed and how.
        rank: The rank that failed first or is behind; None if no rank is the cause.
        world_size: Number of ranks.
        attempt: Which attempt of the run it was, counted from 0.
        node: Name of the machine.
        time: When, in UTC, such as ``2026-05-04T12:00:00Z``.
        exit_code: Exit code of the rank or launcher; None if a signal ended it.
        signal: Name of the signal that ended it, such as ``SIGKILL``.
        traceback: Frames of the user and the one that raised; empty if no rank raised.
        last_lines: What it wrote last, up to 20 lines, before its traceback.
        log_file: Everything it wrote; None if nothing ran.
        log_files: The logs of all ranks and of the launcher, as far as they exist.
        rule: The rule of the catalogue that names the failure; None if none does.
        restart: Whether another try can help.
        evidence: What the kernel says about it, one line each.
        stall: What every rank was doing when nothing went on any more.
    """

    headline: str
    ended: Ending
    rank: int | None
    world_size: int
    attempt: int
    node: str
    time: str
    exit_code: int | None
    signal: str | None
    traceback: str
    last_lines: tuple[str, ...]
    log_file: Path | None
    log_files: tuple[Path, ...]
    rule: Rule | None
    restart: bool
    evidence: tuple[str, ...] = ()
    stall: Stall | None = None

    @property
    def who(self) -> str:
        """Return whose lines and exit code these are."""
        if self.rank is None and self.stall is None:
            return "the launcher"
        return f"rank {self.rank or 0}"

    @property
    def message(self) -> str:
        """What a person needs to see where there is no room for a card."""
        named = []
        if self.rule and self.log_file:  # what could not be started says itself what to do
            named = [f"{self.rule.name}: {self.rule.meaning}", f"next: {self.rule.next_step}"]
        traceback = [self.traceback.rstrip("\n")] if self.traceback else []
        last = _shown_lines(self.who, self.last_lines)
        log = [f"log: {self.log_file}"] if self.log_file else []
        return "\n".join([self.headline, *named, *traceback, *last, *log])


def _shown_lines(whose: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    return [f"last {counted(len(lines), 'line')} of {whose}:", *(f"  {line}" for line in lines)]
