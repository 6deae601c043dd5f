"""Makes the failure of an attempt of what is known of it: with its rule, evidence and last lines.

Used by `trainjob.launch.failure`, which knows who failed.
"""

import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from trainjob.catalogue import Ending, Rule, Signs, find_rule
from trainjob.failure import Failure
from trainjob.launch.endings import OFTEN_MEMORY, signal_name, signal_of
from trainjob.launch.evidence import MemoryEvents, disk_evidence, memory_evidence
from trainjob.launch.launch import Launch
from trainjob.launch.rank_log import last_lines
from trainjob.launch.stall import Stall
from trainjob.values import format_size

_NUM_LAST_LINES = 20
_MAY_PASS: frozenset[Ending] = frozenset({"signal", "stalled", "launcher", "supervisor", "flow"})
"""Endings that another try may not have, unless a rule of the catalogue says otherwise."""


@dataclass(frozen=True, slots=True)
class Explainer:
    """Makes failures of what is known of one attempt.

    Attributes:
        launch: What was started.
        before: The kernel's account of memory before it.
    """

    launch: Launch
    before: MemoryEvents | None

    def failure(
        self,
        headline: str,
        ended: Ending,
        texts: Sequence[str],
        *,
        earlier: str = "",
        rank: int | None = None,
        code: int | None = None,
        time_ns: float | None = None,
        traceback: str = "",
        log_file: Path | None = None,
        log_end: int | None = None,
        stall: Stall | None = None,
    ) -> Failure:
        """Return the failure with its rule, its evidence and its last lines.

        Args:
            headline: One line that says it.
            ended: Who failed and how.
            texts: What was said about it, to find the rule by.
            earlier: What was written up to that, which only names what would come again.
            rank: The rank that is the cause.
            code: Its exit code, or the negative number of the signal that ended it; None if it was
                not its end that failed.
            time_ns: When; None: now.
            traceback: What it raised.
            log_file: What it wrote.
            log_end: Where in that file its traceback begins.
            stall: What all ranks were doing.
        """
        launch = self.launch
        evidence = memory_evidence(self.before, was_killed=signal_of(code) == "SIGKILL")
        limit_bytes = launch.memory_bytes if launch.memory_group and evidence.oom_killed else None
        # A launcher that is killed says nothing of the ranks, whose signals the rules are about.
        signal_told = None if rank is None else signal_of(code)
        if evidence.oom_killed:
            headline = headline.replace(f"({OFTEN_MEMORY})", "(out of memory)")
        disk = disk_evidence(launch.log_dir)
        disk_full = (disk,) if disk else ()
        # On a full disk no record of a rank's end can be written, as if its launcher had died.
        says = (*texts, *disk_full) if rank is not None else (*disk_full, *texts)
        signs = Signs(ended, says, signal_told, evidence.oom_killed, earlier)
        rule = find_rule(signs)
        if limit_bytes and _tells_of_memory(ended, rule):
            ended = "memory"
            rule = find_rule(replace(signs, ended=ended))
            headline += f"; the ranks took all {format_size(limit_bytes)} that their flavor has"
        return Failure(
            headline=headline,
            ended=ended,
            rank=rank,
            world_size=launch.world_size,
            attempt=launch.attempt,
            node=socket.gethostname(),
            time=_utc(time_ns),
            exit_code=None if code is None or code < 0 else code,
            signal=None if code is None or code >= 0 else signal_name(-code),
            traceback=traceback,
            last_lines=last_lines(log_file, _NUM_LAST_LINES, log_end) if log_file else (),
            log_file=log_file,
            log_files=_log_files(launch),
            rule=rule,
            restart=rule.restart if rule else ended in _MAY_PASS,
            evidence=(*evidence.lines, *disk_full),
            stall=stall,
        )


def _tells_of_memory(ended: Ending, rule: Rule | None) -> bool:
    """Tell whether a failure comes from the kernel's kill of a process of the ranks' own cgroup.

    It mostly kills one below a rank, such as a DataLoader worker, and the rank raises what the rule
    knows. Supervisor and flow process are in no such cgroup.
    """
    if ended in ("exception", "exit"):
        return rule is not None and rule.oom_killed
    return ended in ("signal", "launcher")


def _utc(time_ns: float | None) -> str:
    """Return a time of the records as text; None or infinity: now."""
    seconds = time.time() if time_ns is None or math.isinf(time_ns) else time_ns / 1e9
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _log_files(launch: Launch) -> tuple[Path, ...]:
    logs = (*map(launch.rank_log, range(launch.world_size)), launch.launcher_log)
    return tuple(file for file in logs if file.exists())
