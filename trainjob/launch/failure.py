"""From the records of all ranks to the one error that says what failed first, and why.

Which rank that is, `trainjob.launch.first_failure` tells; here it gets its words, its rule of the
catalogue and its evidence.
"""

import signal
from collections.abc import Sequence
from dataclasses import replace

from trainjob.catalogue import Ending
from trainjob.errors import LaunchError, TrainingFailed, TrainjobError
from trainjob.failure import Failure
from trainjob.launch.endings import OFTEN_MEMORY, ending, signal_of
from trainjob.launch.evidence import MemoryEvents
from trainjob.launch.explainer import Explainer
from trainjob.launch.first_failure import (
    failure_time_ns,
    first_failure,
    left_before,
    was_told_to_leave,
)
from trainjob.launch.hidden import without_secrets
from trainjob.launch.launch import Launch
from trainjob.launch.over_memory import OverMemory, read_over_memory
from trainjob.launch.rank_log import last_lines
from trainjob.launch.records import LAUNCH_ERROR, ErrorRecord, RankRecords
from trainjob.launch.said import Said, said_by
from trainjob.launch.stall import Stall, read_stall
from trainjob.launch.supervision import Finished

_NUM_SEARCHED_LINES = 60
_MAX_HEADLINE_CHARS = 300


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
    told = Explainer(launch, before)
    ranks = [_without_secrets(rank) for rank in ranks]
    if finished is not None and finished.reason == "stalled":
        return TrainingStalled(_stalled(told))
    if finished is not None and finished.reason == "memory":
        return RankFailed(_over_memory(told))
    failed = first_failure(ranks)
    if failed and failed.error and failed.error.type == LAUNCH_ERROR:
        return StartFailed(_not_started(told, failed, failed.error))
    if failed and finished and (of_another := _failed_of_another(told, ranks, failed, finished)):
        return RankFailed(of_another)
    if failed is None or _follows(failed, finished):
        above = _failure_above_ranks(told, ranks, finished)
        if above or failed is None:
            return above or _asked_by_another(told, ranks, finished)
    return RankFailed(_rank_failed(told, failed))


def _without_secrets(rank: RankRecords) -> RankRecords:
    """Return what is known of a rank as it may be told, before headlines and rules cut from it."""
    if rank.error is None:
        return rank
    message, traceback = map(without_secrets, (rank.error.message, rank.error.traceback))
    return replace(rank, error=replace(rank.error, message=message, traceback=traceback))


def _follows(failed: RankRecords, finished: Finished | None) -> bool:
    """Tell whether a rank failed of what happened above it, if anything did."""
    if finished is None:
        return was_told_to_leave(failed) or _was_killed(failed)
    return was_told_to_leave(failed) and finished.reason not in ("auto_stop", "target")


def _was_killed(rank: RankRecords) -> bool:
    """Tell whether SIGKILL ended it, as it ends all ranks whose supervisor has died."""
    return rank.error is None and rank.exit is not None and rank.exit.code == -signal.SIGKILL


def _not_started(told: Explainer, rank: RankRecords, error: ErrorRecord) -> Failure:
    texts = (error.message,)
    return told.failure(
        error.message, "start", texts, rank=rank.rank, code=error.code, time_ns=error.time_ns
    )


def _failed_of_another(
    told: Explainer, ranks: Sequence[RankRecords], failed: RankRecords, finished: Finished
) -> Failure | None:
    """Return the failure of ranks that needed one which had left by itself, or None if none had."""
    left = left_before(ranks, failed) if finished.reason == "finished" else None
    if left is None:
        return None
    if _was_killed_by_mpirun(told.launch, left, failed, finished):
        headline = f"{_left_early(left, told.launch)} MPI_Finalize; mpirun killed the others for it"
        log_file = told.launch.rank_log(left.rank)
        return told.failure(headline, "left", (), rank=left.rank, log_file=log_file)
    rule = _rank_failed(told, failed).rule
    return _rank_failed(told, failed, left) if rule and rule.between_ranks else None


def _was_killed_by_mpirun(
    launch: Launch, left: RankRecords, failed: RankRecords, finished: Finished
) -> bool:
    """Tell whether a rank was killed with its stub since another had left by os._exit."""
    is_killed = failed.exit is None and failed.error is None
    return launch.launcher == "mpi" and is_killed and left.done_ns is None and finished.code >= 0


def _left_early(rank: RankRecords, launch: Launch) -> str:
    return f"rank {rank.rank} of {launch.world_size} left early, without"


def _rank_failed(told: Explainer, rank: RankRecords, left: RankRecords | None = None) -> Failure:
    """Return the failure of a rank.

    Args:
        told: What is known of the attempt.
        rank: Which one failed.
        left: The one that had left before, which is why.
    """
    error, log_file = rank.error, told.launch.rank_log(rank.rank)
    code = error.code if error else rank.exit.code if rank.exit else -signal.SIGKILL
    ended: Ending = "signal" if signal_of(code) else "exit"
    if error and error.type != "SystemExit":
        ended = "exception"
    said = said_by(rank, code, log_file)
    headline = _headline(rank, told.launch, code)
    if left:
        how = _how(rank, code)
        headline = f"{_left_early(left, told.launch)} an error; then rank {rank.rank} {how}"
        ended, said = "left", Said()
    log_end = error.log_offset if error else None
    return told.failure(
        headline,
        ended,
        said.texts,
        earlier=said.earlier,
        rank=rank.rank,
        code=code,
        time_ns=failure_time_ns(rank),
        traceback=error.traceback if error else "",
        log_file=log_file,
        log_end=log_end,
    )


def _failure_above_ranks(
    told: Explainer, ranks: Sequence[RankRecords], finished: Finished | None
) -> Explained | None:
    """Return how supervisor or launcher failed, if they did and not all ranks ended well."""
    is_stopped = finished is not None and finished.reason == "stopped"
    all_left = all(rank.exit is not None and rank.exit.code == 0 for rank in ranks)
    # Ranks that save when they are asked to leave with 0, too.
    if all_left and not is_stopped:
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


def _asked_by_another(
    told: Explainer, ranks: Sequence[RankRecords], finished: Finished | None
) -> Explained | None:
    """Return that ranks left with 0 before their end, since somebody else had sent SIGTERM."""
    if finished is not None and finished.reason != "finished":
        return None
    asked = [rank for rank in ranks if _left_when_told(rank)]
    if not asked:
        return None
    who = f"rank {asked[0].rank} of {told.launch.world_size}"
    headline = f"{who} was asked to leave by SIGTERM, which did not come from this run, and left"
    log_file = told.launch.rank_log(asked[0].rank)
    return RankFailed(
        told.failure(
            headline,
            "signal",
            (),
            rank=asked[0].rank,
            code=-signal.SIGTERM,
            time_ns=failure_time_ns(asked[0]),
            log_file=log_file,
        )
    )


def _left_when_told(rank: RankRecords) -> bool:
    """Tell whether a rank was sent SIGTERM before its script had come to its end."""
    told_ns = rank.exit.terminated_ns if rank.exit else None
    return told_ns is not None and (rank.done_ns is None or rank.done_ns > told_ns)


def _stalled(told: Explainer) -> Failure:
    stall_s = told.launch.stall_s or 0.0
    stall = read_stall(told.launch.records_dir) or Stall(quiet_s=stall_s, behind=None, ranks=())
    # Who is not known to be behind is not blamed, but rank 0 may have said something.
    log_file = told.launch.rank_log(stall.behind or 0)
    ended: Ending = "left" if stall.left_early else "stalled"
    return told.failure(
        stall.headline, ended, (), rank=stall.behind, log_file=log_file, stall=stall
    )


def _over_memory(told: Explainer) -> Failure:
    limit_bytes = told.launch.memory_bytes or 0
    over = read_over_memory(told.launch.records_dir) or OverMemory(limit_bytes, limit_bytes, {})
    log_file = None if over.most is None else told.launch.rank_log(over.most)
    return told.failure(over.headline, "memory", (), rank=over.most, log_file=log_file)


def _headline(rank: RankRecords, launch: Launch, code: int) -> str:
    first = " first" if launch.world_size > 1 else ""
    return f"rank {rank.rank} of {launch.world_size} {_how(rank, code, first)}"


def _how(rank: RankRecords, code: int, first: str = "") -> str:
    """Return how a rank failed as the rest of a sentence."""
    error = rank.error
    if error is None:
        return ending(code, first)
    kind = "" if error.type == "SystemExit" else error.type
    said = error.message.strip().partition("\n")[0][:_MAX_HEADLINE_CHARS]
    text = ": ".join(part for part in (kind, said) if part) or "sys.exit"
    return f"failed{first}: {text} (exit code {error.code})"
