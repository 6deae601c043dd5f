"""Which rank failed first, and whether another one had left before it.

When one rank fails, the others soon fail of it: their connections break, they time out, they are
asked to leave. Those come last here, whatever the order in which a launcher noticed them. Told from
the records of all ranks; what a failure is called is told by `trainjob.launch.failure`.
"""

import re
from collections.abc import Sequence

from trainjob.launch.records import RankRecords

_CONSEQUENCE = re.compile(
    r"Connection (?:closed by peer|reset by peer|refused)|Broken pipe|Socket Timeout"
    r"|[Tt]imed out (?:waiting|after)|wait timeout|connectFullMesh|remote worker"
    r"|Application timeout caused pair closure"
    r"|\bNCCL\b|\bHCCL\b|\bMPI_ERR_|DistNetworkError|DistStoreError"
)
_LEAVING_NS = 10**9
"""Others notice the lost connection of a rank that leaves before its leaving is on record."""


def first_failure(ranks: Sequence[RankRecords]) -> RankRecords | None:
    """Return the rank whose failure is the cause of all, or None if no rank failed."""
    failed = [rank for rank in ranks if _has_failed(rank)]
    return min(failed, key=lambda rank: (_distance(rank), failure_time_ns(rank)), default=None)


def left_before(ranks: Sequence[RankRecords], failed: RankRecords) -> RankRecords | None:
    """Return the rank that had left with 0 when another one failed, though nobody asked it to.

    Args:
        ranks: The records of all ranks.
        failed: The one that failed.

    Returns:
        The first to leave; None if nobody had left.
    """
    until_ns = failure_time_ns(failed) + _LEAVING_NS
    left = [(_left_ns(rank), rank) for rank in ranks if rank is not failed and not rank.error]
    earlier = [(time_ns, rank) for time_ns, rank in left if time_ns and time_ns < until_ns]
    return min(earlier, key=lambda pair: pair[0], default=(0, None))[1]


def failure_time_ns(rank: RankRecords) -> float:
    """Return when a rank failed; infinity if that is not on record."""
    if rank.error:
        return rank.error.time_ns
    return rank.exit.time_ns if rank.exit else float("inf")


def was_told_to_leave(rank: RankRecords) -> bool:
    """Tell whether a rank failed only after it was asked to leave, or was ended with others."""
    if rank.exit is None:
        return rank.error is None  # its stub was killed with it
    told_ns = rank.exit.terminated_ns
    return rank.exit.orphaned or (told_ns is not None and failure_time_ns(rank) >= told_ns)


def _has_failed(rank: RankRecords) -> bool:
    if rank.error is not None:
        return True
    return rank.exit.code != 0 if rank.exit else rank.began


def _distance(rank: RankRecords) -> int:
    """Return how far from the cause a failure is: 0 may be it, 1 follows, 2 was told to leave."""
    if was_told_to_leave(rank):
        return 2
    error = rank.error
    return int(bool(error and _CONSEQUENCE.search(f"{error.type}: {error.message}")))


def _left_ns(rank: RankRecords) -> int | None:
    """Return when a rank left by itself and without a failure, or None if it did not."""
    told_ns = rank.exit.terminated_ns if rank.exit else None
    left_ns = rank.done_ns
    if left_ns is None and rank.exit and rank.exit.code == 0:  # os._exit, or no Python
        left_ns = rank.exit.time_ns
    return None if left_ns is None or (told_ns is not None and told_ns <= left_ns) else left_ns
