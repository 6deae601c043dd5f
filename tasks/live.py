"""Show a training in Prefect's UI while it goes on: progress, metrics and their plot.

Used by `tasks.train` around the attempts of a run. Whatever happens to the server or to a plot, the
training goes on as if nothing of this were here.
"""

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from logging import Logger, LoggerAdapter
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient
from prefect.runtime import task_run

from tasks.artifacts import RunArtifacts, brief_client
from trainjob.background import background_thread, growing_pause_s
from trainjob.events import AttemptEnded, AttemptStarted, Event, listening
from trainjob.metrics.summary import MetricSummary, format_value
from trainjob.training_status import TrainingStatus
from trainjob.values import format_size

Summary = Callable[[], Sequence[MetricSummary]]
Plot = Callable[[], bytes | None]

UPDATE_S = 5.0
MAX_UPDATE_S = 75.0
PLOT_S = 60.0
MAX_PLOT_BYTES = 500_000  # 12 panels of nothing but noise have 430,000
_MAX_ROWS = 100
_MAX_METRICS_IN_LISTS = 3
_MAX_DRAWING_SHARE = 0.002  # of a core
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~&])")
_REQUEST_S = 5.0
_RETRY_S = 0.5
_PATIENCE_S = 10.0
_PATIENCE_WHEN_STOPPED_S = 3.0  # Prefect kills a cancelled run after 30 s; uploads need them more


@contextmanager
def live_artifacts(
    job_name: str,
    run_id: str,
    *,
    num_attempts: int,
    summary: Summary,
    plot: Plot,
    update_s: float = UPDATE_S,
) -> Iterator[None]:
    """Show what the training in this block says of itself as artifacts of this task run.

    They are ``progress-JOB``, ``metrics-JOB`` and ``plot-JOB``. Each is there once there is
    something to show, and is updated in place from then on, by a retried task too.

    Args:
        job_name: Name of the job.
        run_id: Id of the flow run.
        num_attempts: How often the ranks may be started in all.
        summary: Says what the metrics came to so far. This and `plot` are called on a thread of
            their own.
        plot: Draws the metrics as a PNG of up to 500 KB, at most once a minute and for 0.2 % of
            the time, and at the end; None if there is nothing to draw.
        update_s: Seconds from one update to the next at the start of an attempt. They grow with
            its age, to 75 s, so that a long run costs the server little.
    """
    logger = get_run_logger()
    artifacts = RunArtifacts(job_name, UUID(run_id), UUID(str(task_run.id)))
    show = _Show(TrainingStatus(num_attempts), artifacts, summary, plot, logger)
    thread = background_thread(partial(show.run, update_s), "live-artifacts")
    ending, patience_s = "stopped", _PATIENCE_WHEN_STOPPED_S
    try:
        thread.start()
        with listening(show.note):
            yield
        ending, patience_s = "ended", _PATIENCE_S
    except Exception:
        ending, patience_s = "failed", _PATIENCE_S
        raise
    finally:
        show.end(ending, patience_s)
        if thread.is_alive():
            thread.join(patience_s)
        if thread.is_alive():
            logger.warning("the last progress may be missing among the artifacts")


class _Show:
    """Gathers events, and shows them on a thread of its own."""

    def __init__(
        self,
        status: TrainingStatus,
        artifacts: RunArtifacts,
        summary: Summary,
        plot: Plot,
        logger: "Logger | LoggerAdapter[Logger]",
    ) -> None:
        self._status = status
        self._artifacts = artifacts
        self._summary = summary
        self._plot = plot
        self._logger = logger
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._has_news = threading.Event()
        self._news_at = time.monotonic()
        self._ending = ""
        self._deadline = 0.0
        self._next_plot = time.monotonic() + PLOT_S
        self._warned: set[str] = set()

    def note(self, event: Event) -> None:
        """Take in one event."""
        with self._lock:
            self._status.note(event)
        if isinstance(event, AttemptStarted | AttemptEnded):
            self._news_at = time.monotonic()
            self._has_news.set()

    def end(self, ending: str, patience_s: float) -> None:
        """Have the artifacts updated for the last time.

        Args:
            ending: How the training ended, in one word.
            patience_s: How long to try if the server does not answer.
        """
        self._ending = ending
        self._deadline = time.monotonic() + patience_s
        self._ended.set()
        self._has_news.set()

    def run(self, update_s: float) -> None:
        """Update the artifacts every so often until the end, and then once more."""
        with brief_client(_REQUEST_S) as client:
            while not self._ended.wait(update_s):
                self._update(client)
                self._rest(update_s)
            while not self._update(client) and time.monotonic() + _RETRY_S < self._deadline:
                time.sleep(_RETRY_S)

    def _rest(self, update_s: float) -> None:
        """Wait as much longer as the age of the attempt allows, or until there is news."""
        age_s = time.monotonic() - self._news_at
        self._has_news.wait(growing_pause_s(age_s, update_s, MAX_UPDATE_S) - update_s)
        self._has_news.clear()

    def _update(self, client: SyncPrefectClient) -> bool:
        """Bring what is new to the server; return whether it has everything."""
        with self._lock:
            has_steps, percent = self._status.step is not None, self._status.percent or 0.0
            progress = _progress_text(self._status, self._ending)
        write = self._artifacts.write
        try:
            if has_steps:
                write(client, "progress", "progress", percent, progress)
            metrics = self._summary()
            if metrics:
                about = _metrics_text(metrics)
                write(client, "metrics", "table", json.dumps(_table(metrics)), about)
                self._update_plot(client, about)
        except Exception as error:  # noqa: BLE001 - nothing here may end a training
            self._warn("the training goes on, but its artifacts are not up to date: %s", error)
            return False
        return True

    def _update_plot(self, client: SyncPrefectClient, about: str) -> None:
        is_due = self._ending or time.monotonic() >= self._next_plot
        if not is_due or self._artifacts.shows("plot", about):
            return
        picture = self._draw()
        if picture is None:
            return
        # Of type markdown, since the page of an image artifact prints its url, all of it, over the
        # rest of the page (Prefect 3.8.8).
        url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        self._artifacts.write(client, "plot", "markdown", f"![metrics over steps]({url})", about)

    def _draw(self) -> bytes | None:
        begun_s = time.thread_time()
        try:
            picture = self._plot()
        except Exception as error:  # noqa: BLE001 - nothing here may end a training
            self._warn("the training goes on, but its metrics could not be drawn: %s", error)
            return None
        drawing_s = time.thread_time() - begun_s
        self._next_plot = time.monotonic() + max(PLOT_S, drawing_s / _MAX_DRAWING_SHARE)
        if picture is not None and len(picture) > MAX_PLOT_BYTES:
            found, limit = format_size(len(picture)), format_size(MAX_PLOT_BYTES)
            self._warn(
                "the plot of the metrics is not shown: it has %s, more than %s", found, limit
            )
            return None
        return picture

    def _warn(self, message: str, *values: object) -> None:
        """Log a message the first time it is due."""
        if message not in self._warned:
            self._warned.add(message)
            self._logger.warning(message, *values)


def _progress_text(status: TrainingStatus, ending: str) -> str:
    """Return the description of the progress: what matters first, since lists cut it off."""
    lead = ending or status.trouble()
    facts = status.facts(is_over=bool(ending))
    text = " · ".join([f"**{lead}**", *facts] if lead else facts)
    if status.failed:
        text += f"\n\nLast failure: {_verbatim(status.failed)}"
    return text


def _metrics_text(metrics: Sequence[MetricSummary]) -> str:
    """Return the description of the metrics: the first few, since lists show it and no table."""
    facts = [
        f"{_verbatim(metric.name)} {format_value(metric.last)}"
        for metric in metrics[:_MAX_METRICS_IN_LISTS]
    ]
    facts.append(f"step {max(metric.last_step for metric in metrics)}")
    if len(metrics) > _MAX_ROWS:
        facts.append(f"the first {_MAX_ROWS} of {len(metrics)} metrics")
    return " · ".join(facts)


def _verbatim(text: str) -> str:
    """Return text as markdown in which nothing is taken for more than its characters."""
    return _MARKDOWN.sub(r"\\\1", text)


def _table(metrics: Sequence[MetricSummary]) -> list[dict[str, str]]:
    """Return a row a metric; text, since JSON has no NaN and the page shows every digit."""
    return [
        {
            "metric": metric.name,
            "last": format_value(metric.last),
            "step": str(metric.last_step),
            "lowest": _extreme(metric.lowest, metric.lowest_step),
            "highest": _extreme(metric.highest, metric.highest_step),
        }
        for metric in metrics[:_MAX_ROWS]
    ]


def _extreme(value: float | None, step: int | None) -> str:
    return "" if value is None else f"{format_value(value)} (step {step})"
