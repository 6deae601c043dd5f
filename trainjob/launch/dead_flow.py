"""How an attempt ended whose flow process did not live to hear it: by the word of its supervisor.

The next process of the run asks, or the one that finishes it, on the machine that trained.
"""

import json
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trainjob.catalogue import Rule, Signs, find_rule
from trainjob.failure import Failure
from trainjob.launch.rank_files import open_rank_file


@dataclass(frozen=True, slots=True)
class Unheard:
    """The end of such an attempt.

    Attributes:
        rule: The named failure, if its supervisor ended it since nobody was left.
        seconds: How long it trained.
    """

    rule: Rule | None
    seconds: float | None


def end_of_dead_flow(records_dir: Path) -> Unheard | None:
    """Return how an attempt ended of which the process of its flow has not told.

    Args:
        records_dir: What the attempt recorded.

    Returns:
        The word of its supervisor; None if that died, too.
    """
    told = records_dir / "outcome.json"
    try:
        with open_rank_file(told) as opened:
            outcome = json.loads(opened.read())
        if not isinstance(outcome, dict):
            return None
        ended_at = told.stat().st_mtime
    except (OSError, ValueError):
        return None
    try:
        seconds = max(0.0, ended_at - (records_dir / "order.json").stat().st_mtime)
    except OSError:
        seconds = None
    return Unheard(_rule() if outcome.get("reason") == "orphaned" else None, seconds)


def failure_of_dead_flow(headline: str, log_dir: Path, attempt: int, world_size: int) -> Failure:
    """Return what is known of an attempt that ended since the process of its flow was killed.

    Args:
        headline: One line that says it.
        log_dir: The logs of the attempt.
        attempt: Its number, counted from 0.
        world_size: Number of ranks.
    """
    return Failure(
        headline=headline,
        ended="flow",
        rank=None,
        world_size=world_size,
        attempt=attempt,
        node=socket.gethostname(),
        time=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        exit_code=None,
        signal=None,
        traceback="",
        last_lines=(),
        log_file=None,
        log_files=tuple(sorted(log_dir.glob("*.log"))),
        rule=_rule(headline),
        restart=True,
    )


def _rule(said: str = "") -> Rule | None:
    return find_rule(Signs("flow", (said,)))
