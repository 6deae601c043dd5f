"""From the records of all ranks to the one message that says what failed first, and why.

When one rank fails, the others soon fail of it: their connections break, they time out, they are
asked to leave. Those come last here, whatever the order in which a launcher noticed them.
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainjob.errors import LaunchError, TrainingFailed, TrainjobError
from trainjob.launch.launch import Launch
from trainjob.launch.rank_log import last_lines
from trainjob.launch.records import LAUNCH_ERROR, RankRecords
from trainjob.launch.supervision import Finished
from trainjob.values import counted

_NUM_LAST_LINES = 20
_MAX_HEADLINE_CHARS = 300
_CONSEQUENCE = re.compile(
    r"Connection (?:closed by peer|reset by peer|refused)|Broken pipe|Socket Timeout"
    r"|[Tt]imed out (?:waiting|after)|wait timeout|connectFullMesh|remote worker"
    r"|\bNCCL\b|\bHCCL\b|\bMPI_ERR_|DistNetworkError|DistStoreError"
)
_SIGNAL_HINTS = {
    "SIGKILL": "often out of memory",
    "SIGSEGV": "invalid memory access in native code",
    "SIGBUS": "often a full /dev/shm or disk",
    "SIGABRT": "native code gave up",
    "SIGILL": "an instruction that this processor does not have",
    "SIGTERM": "which did not come from this run",
}


class RankFailed(TrainingFailed):
    """The first failing rank of a training.

    Attributes:
        failure: Everything that is known of it.
    """

    def __init__(self, failure: "Failure") -> None:
        self.failure = failure
        super().__init__(failure.message)

    def __reduce__(self) -> "tuple[type[RankFailed], tuple[Failure]]":
        """Rebuild from the failure, since the message is not the argument."""
        return type(self), (self.failure,)


@dataclass(frozen=True, slots=True)
class Failure:
    """How a rank failed.

    Attributes:
        rank: Which one.
        headline: One line that says it.
        exit_code: Its exit code; None if a signal ended it.
        signal: Name of the signal that ended it, such as ``SIGKILL``.
        traceback: Frames of the user and the one that raised; empty if it did not raise.
        last_lines: What it wrote last, up to 20 lines, before its traceback.
        log_file: Everything it wrote.
    """

    rank: int
    headline: str
    exit_code: int | None
    signal: str | None
    traceback: str
    last_lines: tuple[str, ...]
    log_file: Path

    @property
    def message(self) -> str:
        """What a person needs to see."""
        traceback = [self.traceback.rstrip("\n")] if self.traceback else []
        last = _shown_lines(f"rank {self.rank}", self.last_lines)
        return "\n".join([self.headline, *traceback, *last, f"log: {self.log_file}"])


def training_error(
    launch: Launch, ranks: Sequence[RankRecords], finished: Finished | None
) -> TrainjobError | None:
    """Return how the training failed, or None if every rank ended well.

    Args:
        launch: What was started.
        ranks: The records of all ranks.
        finished: The word of the supervisor; None if it died without one.
    """
    failed = first_failure(ranks)
    if failed and failed.error and failed.error.type == LAUNCH_ERROR:
        return LaunchError(failed.error.message)
    if failed is None or _was_told_to_leave(failed):
        above = _failure_above_ranks(launch, ranks, finished)
        if above or failed is None:
            return above
    return RankFailed(_failure(launch, failed))


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


def _failure_above_ranks(
    launch: Launch, ranks: Sequence[RankRecords], finished: Finished | None
) -> TrainjobError | None:
    """Return how supervisor or launcher failed, if they did and not all ranks ended well."""
    if all(rank.exit is not None and rank.exit.code == 0 for rank in ranks):
        return None
    if finished is None:
        who, how = "the supervisor of the run", "died (often out of memory)"
    elif finished.reason == "stopped":
        who, how = "the supervisor of the run", "was asked by a signal to stop it"
    elif finished.code == 0 and any(rank.began for rank in ranks):
        return None
    else:
        who, how = f"the launcher ({launch.launcher})", _ending(finished.code)
    last = _shown_lines("the launcher", last_lines(launch.launcher_log, _NUM_LAST_LINES))
    log = f"log: {launch.launcher_log}"
    if any(rank.began for rank in ranks):
        headline = f"{who} {how} before the ranks had ended, and they with it"
        return TrainingFailed("\n".join([headline, *last, log]))
    return LaunchError("\n".join([f"{who} {how} before any rank began", *last, log]))


def _failure(launch: Launch, rank: RankRecords) -> Failure:
    error, code = rank.error, rank.exit.code if rank.exit else 0
    if error is not None:
        code = error.code
    log_file = launch.rank_log(rank.rank)
    return Failure(
        rank=rank.rank,
        headline=_headline(rank, launch),
        exit_code=code if code >= 0 else None,
        signal=_signal_name(-code) if code < 0 else None,
        traceback=error.traceback if error else "",
        last_lines=last_lines(log_file, _NUM_LAST_LINES, error.log_offset if error else None),
        log_file=log_file,
    )


def _headline(rank: RankRecords, launch: Launch) -> str:
    first = " first" if launch.world_size > 1 else ""
    who = f"rank {rank.rank} of {launch.world_size}"
    error = rank.error
    if error is None:
        code = rank.exit.code if rank.exit else -signal.SIGKILL
        return f"{who} {_ending(code, first)}"
    kind = "" if error.type == "SystemExit" else error.type
    said = error.message.strip().partition("\n")[0][:_MAX_HEADLINE_CHARS]
    text = ": ".join(part for part in (kind, said) if part) or "sys.exit"
    return f"{who} failed{first}: {text} (exit code {error.code})"


def _ending(code: int, first: str = "") -> str:
    """Return how a process ended as the rest of a sentence."""
    if code < 0:
        name = _signal_name(-code)
        hint = _SIGNAL_HINTS.get(name)
        return f"was killed{first} by {name}" + (f" ({hint})" if hint else "")
    said = f"failed{first} with exit code {code}"
    # A shell says so when what it started was ended by a signal.
    return f"{said}, as after {_signal_name(code - 128)}" if 128 < code <= 128 + 64 else said


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shown_lines(whose: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    return [f"last {counted(len(lines), 'line')} of {whose}:", *(f"  {line}" for line in lines)]
