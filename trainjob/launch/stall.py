"""What the supervisor saw of a training that stood still, and the one line that says it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from trainjob.launch.rank_files import open_rank_file
from trainjob.launch.stacks import HAS_ENDED, LEAVING_CALLS
from trainjob.values import format_duration

_FRAME = re.compile(
    r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$', re.MULTILINE
)
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib/python3|/trainjob/launch/|^<")


@dataclass(frozen=True, slots=True)
class StalledRank:
    """What a rank was doing when the training stood still.

    Attributes:
        rank: Which one.
        last_step: The last step it reported.
        waits_in: The collective that it waits in, such as ``all_reduce``.
        state: Whether it waits in a collective, computes or is idle, in words.
        cpu_s: CPU time that it had used.
        stack: The stacks of its threads, the latest call first (faulthandler).
    """

    rank: int
    last_step: int | None
    waits_in: str | None
    state: str
    cpu_s: float
    stack: str

    @property
    def where(self) -> str | None:
        """The line of the user that it is in, such as ``loader.py:88 next_batch``."""
        _, found, main_thread = self.stack.rpartition("Current thread")
        if not found:
            main_thread = self.stack.rpartition("Thread 0x")[2]
        frames = list(_FRAME.finditer(main_thread))
        own = [frame for frame in frames if not _LIBRARY.search(frame["file"])]
        for frame in own or frames:
            return f"{Path(frame['file']).name}:{frame['line']} {frame['function']}"
        return None


@dataclass(frozen=True, slots=True)
class Stall:
    """A training that stood still.

    Attributes:
        quiet_s: For how long nothing was seen of it.
        behind: The rank that the others wait for; None if that cannot be told.
        ranks: What each was doing.
    """

    quiet_s: float
    behind: int | None
    ranks: tuple[StalledRank, ...]

    @property
    def left_early(self) -> bool:
        """Whether the rank that is behind came to its end while the others wait for it."""
        slow = next((rank for rank in self.ranks if rank.rank == self.behind), None)
        if slow is None or not any(rank.waits_in for rank in self.ranks if rank is not slow):
            return False
        return slow.state == HAS_ENDED or slow.waits_in in LEAVING_CALLS

    @property
    def headline(self) -> str:
        """One line: for how long, which rank is behind, where, and what the others wait for."""
        quiet = format_duration(timedelta(seconds=round(self.quiet_s)))
        said = f"stalled: nothing was seen of the training for {quiet}"
        slow = next((rank for rank in self.ranks if rank.rank == self.behind), None)
        others = [rank for rank in self.ranks if rank is not slow]
        waiting = _common_wait(others)
        if slow is None:
            return f"{said}; all ranks {waiting}" if waiting else said
        facts = []
        if slow.last_step is not None:
            facts.append(", ".join([f"step {slow.last_step}", *_steps(others)]))
        if slow.where:
            waits_in = f"waits in {slow.waits_in} at" if slow.waits_in else "is in"
            meanwhile = f" while the others {waiting}" if waiting else ""
            facts.append(f"it {waits_in} {slow.where}{meanwhile}")
        is_behind = " left early" if self.left_early else " is behind" if others else ""
        of_it = f" ({'; '.join(facts)})" if facts else ""
        return f"{said}; rank {slow.rank}{is_behind}{of_it}"


def read_stall(records_dir: Path) -> Stall | None:
    """Return what the supervisor wrote of a training that stood still, or None."""
    try:
        with open_rank_file(records_dir / "stall.json") as opened:
            said = json.loads(opened.read())
        ranks = tuple(StalledRank(**rank) for rank in said["ranks"])
        return Stall(quiet_s=said["quiet_s"], behind=said["behind"], ranks=ranks)
    except (OSError, ValueError, LookupError, TypeError):  # not there, or cut short by a full disk
        return None


def _common_wait(ranks: Sequence[StalledRank]) -> str:
    waits = {rank.waits_in for rank in ranks}
    return f"wait in {waits.pop()}" if len(waits) == 1 and None not in waits else ""


def _steps(others: Sequence[StalledRank]) -> list[str]:
    steps = sorted({rank.last_step for rank in others if rank.last_step is not None})
    if not steps:
        return []
    return [f"the others {steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "")]
