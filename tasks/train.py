"""Train: start the ranks, watch them, and bring their output to Prefect's log."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import Logger, LoggerAdapter

from prefect import get_run_logger

from tasks.stage import stage
from trainjob.errors import TrainjobError
from trainjob.events import Event, RankOutput, listening
from trainjob.job import TrainingJob
from trainjob.launch.training import TrainingResult, run_training
from trainjob.plan import Program, launch_of
from trainjob.workspace import Workspace

_BATCH_LINES = 200
_BATCH_S = 1.0
_BATCH_CHARS = 200_000  # Prefect cuts a record at a million bytes
_LINE_CHARS = 10_000
_MAX_LINES_A_BATCH_TIME = 1000


@dataclass(frozen=True, slots=True)
class Trained:
    """How the training ended well; `attempt` counts from 0, `log_dir` has a file a rank."""

    result: TrainingResult
    attempt: int
    log_dir: str


def _summary(trained: Trained) -> str:
    if trained.result.reason == "auto_stop":
        return "stopped by limits.auto_stop"
    return "every rank finished"


@stage(_summary)
def train(job: TrainingJob, run_id: str, program: Program) -> Trained:
    """Run the program on all ranks until they end, or limits.auto_stop ends them."""
    workspace = Workspace.of_run(run_id)
    if not workspace.code.is_dir():
        raise TrainjobError(
            f"the workspace of this run, {str(workspace.root)!r}, is not on this machine or was "
            "removed, so the run cannot be resumed: start a new run"
        )
    attempt = workspace.start_attempt(tuple(channel.name for channel in job.outputs))
    launch = launch_of(job, workspace, program, run_id=run_id, attempt=attempt)
    with _output_in_log(get_run_logger()):
        result = run_training(launch)
    return Trained(result, attempt, str(launch.log_dir))


@contextmanager
def _output_in_log(logger: "Logger | LoggerAdapter[Logger]") -> Iterator[None]:
    """Send what the ranks write to `logger`, many lines a record.

    A record a line chokes the server's database, so lines wait for up to a second, and of more
    than 1,000 lines a second only the last are sent: the files on the machine have them all.
    """
    batch = _LogBatch(logger)
    ended = threading.Event()

    def flush_regularly() -> None:
        while not ended.wait(_BATCH_S):
            batch.flush()

    thread = threading.Thread(target=flush_regularly, name="rank-output-to-log", daemon=True)
    thread.start()
    try:
        with listening(batch.add):
            yield
    finally:
        ended.set()
        thread.join()
        batch.flush()


class _LogBatch:
    """Lines that wait to be sent to the log together; safe to use from several threads."""

    def __init__(self, logger: "Logger | LoggerAdapter[Logger]") -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._num_left_out = 0

    def add(self, event: Event) -> None:
        """Keep the lines of a rank until the next flush."""
        if not isinstance(event, RankOutput):
            return
        source = "launcher" if event.rank is None else f"rank {event.rank}"
        with self._lock:
            self._lines += [_short(f"[{source}] {line}") for line in event.lines]
            excess = len(self._lines) - _MAX_LINES_A_BATCH_TIME
            if excess > 0:
                del self._lines[:excess]
                self._num_left_out += excess

    def flush(self) -> None:
        """Send all waiting lines."""
        with self._lock:
            lines, self._lines = self._lines, []
            num_left_out, self._num_left_out = self._num_left_out, 0
        if num_left_out:
            self._logger.info("%d lines are left out here; rank-N.log has them", num_left_out)
        for batch in _batches(lines):
            self._logger.info("%s", "\n".join(batch))


def _short(line: str) -> str:
    left_out = len(line) - _LINE_CHARS
    return line if left_out <= 0 else f"{line[:_LINE_CHARS]}… ({left_out} more characters)"


def _batches(lines: list[str]) -> Iterator[list[str]]:
    """Yield the lines in parts that Prefect takes as one record."""
    batch: list[str] = []
    num_chars = 0
    for line in lines:
        if batch and (len(batch) == _BATCH_LINES or num_chars + len(line) > _BATCH_CHARS):
            yield batch
            batch, num_chars = [], 0
        batch.append(line)
        num_chars += len(line)
    if batch:
        yield batch
