"""Brings what the ranks write to the watchers of the run while it goes on.

The files are the truth and are complete; this follows them on a thread of its own, so that no
watcher ever slows a rank.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from trainjob.background import in_background
from trainjob.events import RankOutput, StepReported, emit
from trainjob.launch.hidden import lines_without_secrets
from trainjob.launch.launch import Launch
from trainjob.launch.rank_log import LogTail

_POLL_S = 0.3  # for a person, that is at once


@contextmanager
def following_output(launch: Launch) -> Iterator[None]:
    """Emit output and progress of all ranks; when the block ends, all of it was emitted."""
    follower = _Follower(launch)
    with in_background(follower.run, "follow-ranks", follower.ended):
        yield


class _Follower:
    """Follows the logs of all ranks, and the progress of rank 0.

    Attributes:
        ended: To be set when no rank writes any more.
    """

    def __init__(self, launch: Launch) -> None:
        self.ended = threading.Event()
        self._launch = launch
        self._logs = {rank: LogTail(launch.rank_log(rank)) for rank in range(launch.world_size)}
        self._progress = LogTail(launch.records_dir / "progress-0.jsonl")

    def run(self) -> None:
        """Follow until the ranks have ended and everything they wrote was emitted."""
        is_final = False
        while not is_final:
            is_final = self.ended.wait(_POLL_S)
            self._follow(is_final=is_final)
        if not any(self._launch.records_dir.glob("begin-*.json")):
            # Otherwise the launcher only repeats how the ranks failed.
            self._emit_lines(None, LogTail(self._launch.launcher_log), is_final=True)

    def _follow(self, *, is_final: bool) -> None:
        has_more = True
        while has_more:
            # Before the lines, which are said to belong to the step that was reported last.
            self._emit_progress()
            for rank, log in self._logs.items():
                self._emit_lines(rank, log, is_final=is_final)
            has_more = any(log.has_more for log in self._logs.values())

    def _emit_lines(self, rank: int | None, log: LogTail, *, is_final: bool) -> None:
        lines = log.read(is_final=is_final)
        if lines:
            emit(RankOutput(rank, lines_without_secrets(lines)))

    def _emit_progress(self) -> None:
        for line in self._progress.read():
            reported = _step_in(line)
            if reported is not None:
                emit(reported)


def _step_in(line: str) -> StepReported | None:
    """Return what a line of progress says; None of one that a full disk cut short."""
    try:
        said = json.loads(line)
        step, total, epoch = (said[key] for key in ("step", "total", "epoch"))
        return StepReported(0, step, total, epoch, said["metrics"])
    except (ValueError, LookupError, TypeError):
        return None
