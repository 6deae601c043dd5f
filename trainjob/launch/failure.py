"""From the records of all ranks to the one error that says what failed first, and why.

When one rank fails, the others soon fail of it: their connections break, they time out, they are
asked to leave. Those come last here, whatever the order in which a launcher noticed them.
"""

import math
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from trainjob.catalogue import Ending, Rule, Signs, find_rule
from trainjob.errors import LaunchError, TrainingFailed, TrainjobError
from trainjob.failure import Failure
from trainjob.launch.endings import OFTEN_MEMORY, ending, signal_name, signal_of
from trainjob.launch.evidence import MemoryEvents, disk_evidence, memory_evidence
from trainjob.launch.hidden import without_secrets
from trainjob.launch.launch import Launch
from trainjob.launch.over_memory import OverMemory, read_over_memory
from trainjob.launch.rank_log import last_lines
from trainjob.launch.records import LAUNCH_ERROR, ErrorRecord, RankRecords
from trainjob.launch.stall import Stall, read_stall
from trainjob.launch.supervision import Finished
from trainjob.values import format_size

_NUM_LAST_LINES = 20
_NUM_SEARCHED_LINES = 60
_MAX_HEADLINE_CHARS = 300
_CONSEQUENCE = re.compile(
    r"Connection (?:closed by peer|reset by peer|refused)|Broken pipe|Socket Timeout"
    r"|[Tt]imed out (?:waiting|after)|wait timeout|connectFullMesh|remote worker"
    r"|\bNCCL\b|\bHCCL\b|\bMPI_ERR_|DistNetworkError|DistStoreError"
)
_MAY_PASS: frozenset[Ending] = frozenset({"signal", "stalled", "launcher", "supervisor", "flow"})
"""Endings that another try may not have, unless a rule of the catalogue says otherwise."""


class Explained(TrainjobError):
    """An attempt failed, and what is known of it is on record.

    Attributes:
        failure: What is known.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.message)

    def __reduce__(self) -> "tuple[type[Explained], tuple[Failure]]":
        """Rebuild from the failure, since the message is not the argument."""
        return type(self), (self.failure,)

    @property
    def restart(self) -> bool:
        """Whether another attempt can help."""
        return self.failure.restart


class RankFailed(Explained, TrainingFailed):
    """The first failing rank of a training."""


class TrainingStalled(Explained, TrainingFailed):
    """Nothing was seen of the training for as long as its limit allows."""


class RanksAbandoned(Explained, TrainingFailed):
    """Launcher, supervisor or flow process died under the ranks."""


class StartFailed(Explained, LaunchError):
    """The ranks could not be started."""


def training_error(
    launch: Launch,
    ranks: Sequence[RankRecords],
    finished: Finished | None,
    before: MemoryEvents | None = None,
) -> Explained | None:
    """Return how the training failed, or None if every rank ended well.

    Args:
        launch: What was started.
        ranks: The records of all ranks.
        finished: The word of the supervisor; None if it died without one.
        before: The kernel's account of memory before the start, to tell kills for want of it.
    """
    told = _Told(launch, before)
    ranks = [_without_secrets(rank) for rank in ranks]
    if finished is not None and finished.reason == "stalled":
        return TrainingStalled(_stalled(told))
    if finished is not None and finished.reason == "memory":
        return RankFailed(_over_memory(told))
    failed = first_failure(ranks)
    if failed and failed.error and failed.error.type == LAUNCH_ERROR:
        return StartFailed(_not_started(told, failed, failed.error))
    if failed is None or _was_told_to_leave(failed) or (not finished and _was_killed(failed)):
        above = _failure_above_ranks(told, ranks, finished)
        if above or failed is None:
            return above
    return RankFailed(_rank_failed(told, failed))


def _without_secrets(rank: RankRecords) -> RankRecords:
    """Return what is known of a rank as it may be told, before headlines and rules cut from it."""
    if rank.error is None:
        return rank
    message, traceback = map(without_secrets, (rank.error.message, rank.error.traceback))
    return replace(rank, error=replace(rank.error, message=message, traceback=traceback))


def first_failure(ranks: Sequence[RankRecords]) -> RankRecords | None:
    """Return the rank whose failure is the cause of all, or None if no rank failed."""
    failed = [rank for rank in ranks if _has_failed(rank)]
    return min(failed, key=lambda rank: (_distance(rank), _time_ns(rank)), default=None)


def _has_failed(rank: RankRecords) -> bool:
    if rank.error is not None:
        return True
    return rank.exit.code != 0 if rank.exit else rank.began


def _time_ns(rank: RankRecords) -> float:
    if rank.error:
        return rank.error.time_ns
    return rank.exit.time_ns if rank.exit else float("inf")


def _distance(rank: RankRecords) -> int:
    """Return how far from the cause a failure is: 0 may be it, 1 follows, 2 was told to leave."""
    if _was_told_to_leave(rank):
        return 2
    error = rank.error
    return int(bool(error and _CONSEQUENCE.search(f"{error.type}: {error.message}")))


def _was_told_to_leave(rank: RankRecords) -> bool:
    if rank.exit is None:
        return rank.error is None  # its stub was killed with it
    told_ns = rank.exit.terminated_ns
    return rank.exit.orphaned or (told_ns is not None and _time_ns(rank) >= told_ns)


def _was_killed(rank: RankRecords) -> bool:
    """Tell whether SIGKILL ended it, as it ends all ranks whose supervisor has died."""
    return rank.error is None and rank.exit is not None and rank.exit.code == -signal.SIGKILL


@dataclass(frozen=True, slots=True)
class _Told:
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
        signs = Signs(ended, says, signal_told, evidence.oom_killed)
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


def _not_started(told: _Told, rank: RankRecords, error: ErrorRecord) -> Failure:
    texts = (error.message,)
    return told.failure(
        error.message, "start", texts, rank=rank.rank, code=error.code, time_ns=error.time_ns
    )


def _rank_failed(told: _Told, rank: RankRecords) -> Failure:
    error, log_file = rank.error, told.launch.rank_log(rank.rank)
    code = error.code if error else rank.exit.code if rank.exit else -signal.SIGKILL
    ended: Ending = "signal" if signal_of(code) else "exit"
    if error and error.type != "SystemExit":
        ended = "exception"
    log_end = error.log_offset if error else None
    return told.failure(
        _headline(rank, told.launch, code),
        ended,
        _said_by(rank, log_file),
        rank=rank.rank,
        code=code,
        time_ns=_time_ns(rank),
        traceback=error.traceback if error else "",
        log_file=log_file,
        log_end=log_end,
    )


def _said_by(rank: RankRecords, log_file: Path) -> tuple[str, ...]:
    """Return what a rank said about its failure, the most telling text first."""
    error = rank.error
    if error is None or (error.type == "SystemExit" and not error.message):
        return ("\n".join(last_lines(log_file, _NUM_SEARCHED_LINES)),)
    said = ": ".join(part for part in (error.type, error.message) if part)
    # The exceptions that it came from stand in the traceback, at the start of a line.
    causes = [line for line in error.traceback.splitlines() if line[:1].strip()]
    return said, "\n".join(causes)


def _failure_above_ranks(
    told: _Told, ranks: Sequence[RankRecords], finished: Finished | None
) -> Explained | None:
    """Return how supervisor or launcher failed, if they did and not all ranks ended well."""
    if all(rank.exit is not None and rank.exit.code == 0 for rank in ranks):
        return None
    log_file = told.launch.launcher_log
    any_began = any(rank.began for rank in ranks)
    ended: Ending = "supervisor"
    texts: tuple[str, ...] = ()
    code: int | None = None
    if finished is None:
        who, how = "the supervisor of the run", f"died ({OFTEN_MEMORY})"
    elif finished.reason == "stopped":
        who, how = "the supervisor of the run", "was asked by a signal to stop it"
    elif finished.reason == "orphaned":
        ended, who = "flow", "the flow process"
        how = "died (it was killed, or its machine went down)"
    elif finished.code == 0 and any_began:
        return None
    else:
        code = finished.code
        ended = "launcher" if any_began or code < 0 else "start"
        who, how = f"the launcher ({told.launch.launcher})", ending(code)
        # What it wrote before it was killed is not why.
        texts = ("\n".join(last_lines(log_file, _NUM_SEARCHED_LINES)),) if code > 0 else ()
    when = "before the ranks had ended, and they with it" if any_began else "before any rank began"
    failure = told.failure(f"{who} {how} {when}", ended, texts, code=code, log_file=log_file)
    return RanksAbandoned(failure) if any_began else StartFailed(failure)


def _stalled(told: _Told) -> Failure:
    stall_s = told.launch.stall_s or 0.0
    stall = read_stall(told.launch.records_dir) or Stall(quiet_s=stall_s, behind=None, ranks=())
    rank = stall.behind or 0
    log_file = told.launch.rank_log(rank)
    return told.failure(stall.headline, "stalled", (), rank=rank, log_file=log_file, stall=stall)


def _over_memory(told: _Told) -> Failure:
    limit_bytes = told.launch.memory_bytes or 0
    over = read_over_memory(told.launch.records_dir) or OverMemory(limit_bytes, limit_bytes, {})
    log_file = None if over.most is None else told.launch.rank_log(over.most)
    return told.failure(over.headline, "memory", (), rank=over.most, log_file=log_file)


def _headline(rank: RankRecords, launch: Launch, code: int) -> str:
    first = " first" if launch.world_size > 1 else ""
    who = f"rank {rank.rank} of {launch.world_size}"
    error = rank.error
    if error is None:
        return f"{who} {ending(code, first)}"
    kind = "" if error.type == "SystemExit" else error.type
    said = error.message.strip().partition("\n")[0][:_MAX_HEADLINE_CHARS]
    text = ": ".join(part for part in (kind, said) if part) or "sys.exit"
    return f"{who} failed{first}: {text} (exit code {error.code})"
