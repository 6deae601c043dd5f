"""Train: start the ranks, watch them, and bring their output to Prefect's log."""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from logging import Logger, LoggerAdapter

from prefect import get_run_logger

from blocks.object_store import load_settings
from blocks.saved_secrets import load_secrets
from tasks.live import live_artifacts
from tasks.stage import stage
from trainjob.attempts import OUTCOMES, Earlier, Trained
from trainjob.background import growing_pause_s, in_background
from trainjob.environments.provide import holding_environment
from trainjob.errors import TrainjobError
from trainjob.events import Event, RankOutput, listening
from trainjob.inputs import holding_inputs
from trainjob.job import TrainingJob
from trainjob.metrics.patterns import MetricPatterns
from trainjob.metrics.recorder import MetricsRecorder
from trainjob.plan import Program
from trainjob.training import train_job
from trainjob.workspace import Workspace

_BATCH_LINES = 200
_BATCH_S = 1.0
_MAX_BATCH_S = 5.0
_BATCH_CHARS = 200_000  # Prefect cuts a record at a million bytes
_LINE_CHARS = 10_000
_BURST_LINES = 1000
_LINES_A_SECOND = 200  # the server's database has to take them, and a page to show them


def _summary(trained: Trained) -> str:
    return OUTCOMES[trained.result.reason]


@stage(_summary, not_in_key="earlier")
def train(job: TrainingJob, run_id: str, program: Program, earlier: Earlier) -> Trained:
    """Run the program on all ranks until they end, or a limit of the job ends them.

    Args:
        job: The job of the run.
        run_id: The run, whose workspace holds code, inputs and parameters.
        program: What every rank executes.
        earlier: What earlier processes of the run did.
    """
    workspace = Workspace.of_run(run_id)
    if not workspace.code.is_dir():
        raise TrainjobError(
            f"the workspace of this run, {str(workspace.root)!r}, is not on this "
            "machine or was removed, so the run cannot be resumed: start a new run"
        )
    settings, secrets = load_settings(job.store), load_secrets(job.secrets)
    recorder = MetricsRecorder(MetricPatterns(job.metrics))
    rank = None if job.logs.ranks == "all" else int(job.logs.ranks)
    with (
        live_artifacts(
            job.name,
            run_id,
            num_attempts=1 + job.limits.auto_restart,
            summary=recorder.summary,
            plot=lambda: recorder.plot(job.name),
        ),
        _output_in_log(get_run_logger(), rank),
        holding_inputs(job, workspace, settings),
        holding_environment(job, workspace),
    ):
        return train_job(
            job,
            program,
            settings,
            recorder,
            run_id=run_id,
            earlier=earlier,
            secrets=secrets,
        )


@contextmanager
def _output_in_log(
    logger: "Logger | LoggerAdapter[Logger]", only_rank: int | None
) -> Iterator[None]:
    """Send what the ranks write, or one of them, to `logger`, many lines a record.

    A record a line chokes the server's database, so lines wait for up to a second, and later for up
    to five. Of more than 1,000 lines at once, or 200 lines a second for long, only the last are
    sent: the files on the machine have them all.
    """
    batch = _LogBatch(logger, only_rank)
    ended = threading.Event()
    begun = time.monotonic()

    def flush_regularly() -> None:
        pause_s = _BATCH_S
        while not ended.wait(pause_s):
            batch.flush()
            pause_s = growing_pause_s(time.monotonic() - begun, _BATCH_S, _MAX_BATCH_S)

    try:
        with in_background(flush_regularly, "rank-output-to-log", ended), listening(batch.add):
            yield
    finally:
        batch.flush()


class _LogBatch:
    """Lines that wait to be sent to the log together; safe to use from several threads."""

    def __init__(self, logger: "Logger | LoggerAdapter[Logger]", only_rank: int | None) -> None:
        self._logger = logger
        self._only_rank = only_rank
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, Sequence[str]]] = deque()
        self._num_waiting = 0
        self._num_left_out = 0
        self._room = float(_BURST_LINES)
        self._flushed_at = time.monotonic()

    def add(self, event: Event) -> None:
        """Keep the lines of a rank until the next flush."""
        if not isinstance(event, RankOutput) or not self._is_wanted(event.rank):
            return
        source = "launcher" if event.rank is None else f"rank {event.rank}"
        # Only what is too much for the memory: of most lines, few are ever sent.
        is_long = max(map(len, event.lines), default=0) > _LINE_CHARS
        with self._lock:
            self._waiting.append((source, [*map(_short, event.lines)] if is_long else event.lines))
            self._num_waiting += len(event.lines)
            while self._num_waiting - len(self._waiting[0][1]) >= _BURST_LINES:
                self._leave_out(len(self._waiting.popleft()[1]))

    def _leave_out(self, count: int) -> None:
        self._num_waiting -= count
        self._num_left_out += count

    def _is_wanted(self, rank: int | None) -> bool:
        return rank is None or self._only_rank in (None, rank)

    def flush(self) -> None:
        """Send all waiting lines."""
        now = time.monotonic()
        with self._lock:
            room = self._room + (now - self._flushed_at) * _LINES_A_SECOND
            self._flushed_at = now
            lines = self._take(min(int(room), _BURST_LINES))
            self._room = min(room, _BURST_LINES) - len(lines)
            num_left_out, self._num_left_out = self._num_left_out, 0
        if num_left_out:
            self._logger.info("%d lines are left out here; rank-N.log has them", num_left_out)
        for batch in _batches(lines):
            self._logger.info("%s", "\n".join(batch))

    def _take(self, most: int) -> list[str]:
        """Return the last lines that wait, and count the others as left out."""
        self._leave_out(max(self._num_waiting - most, 0))
        num_skipped = sum(len(lines) for _, lines in self._waiting) - self._num_waiting
        every = ((source, line) for source, lines in self._waiting for line in lines)
        taken = [f"[{source}] {line}" for source, line in islice(every, num_skipped, None)]
        self._waiting.clear()
        self._num_waiting = 0
        return taken


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
