"""Finds the metrics of a run, tells its watchers, and keeps them among its outputs.

Metrics come from `trainjob.progress.report`, from lines of output by the regular expressions of the
job, and from TensorBoard event files below the outputs. One recorder lives over all attempts of a
run; it runs in the process of the flow and costs the ranks nothing.
"""

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from trainjob.background import in_background
from trainjob.events import Event, MetricReported, RankOutput, StepReported, emit, listening
from trainjob.metrics.attribution import Attribution
from trainjob.metrics.event_reader import EventFolders
from trainjob.metrics.history import MetricHistory
from trainjob.metrics.metric_files import LINES, MetricFiles
from trainjob.metrics.patterns import MetricPatterns
from trainjob.metrics.plot import plot
from trainjob.metrics.reading import Reading
from trainjob.metrics.summary import MetricSummary, summaries

_logger = logging.getLogger(__name__)
_POLL_S = 3.0
_MAX_SHARE = 0.05  # of a core, for finding and reading event files
_READ_S = 0.5
_LAST_READ_S = 10.0
_MAX_PANELS = 24


class MetricsRecorder:
    """Finds the metrics of a run and keeps them. Safe to use from several threads.

    Args:
        patterns: How metrics are found in lines of output.
        clock: The time, as seconds since 1970.
        poll_s: How often event files are looked for.
    """

    def __init__(
        self,
        patterns: MetricPatterns,
        clock: Callable[[], float] = time.time,
        poll_s: float = _POLL_S,
    ) -> None:
        self._patterns = patterns
        self._clock = clock
        self._poll_s = poll_s
        self._lock = threading.Lock()
        self._history = MetricHistory()
        self._attribution = Attribution()
        self._events = EventFolders()
        self._files: MetricFiles | None = None
        self._latest: dict[str, float] = {}

    @contextmanager
    def recording(
        self,
        attempt: int,
        resumed_from: int | None,
        output_dirs: Sequence[Path],
        metrics_dir: Path | None,
        earlier: Path | None = None,
    ) -> Iterator[None]:
        """Record the metrics of one attempt; when the block ends, all of them were emitted.

        Who wants to hear the `MetricReported` of the attempt must be listening before.

        Args:
            attempt: Which attempt, counted from 0.
            resumed_from: The step it goes on from; None if it starts anew or that is not known.
            output_dirs: Where the script may write event files.
            metrics_dir: Where metrics are kept, below an output; None: nowhere. It is made when
                there is a metric.
            earlier: The metrics folder of the attempt before, where it lies now. Its files are
                brought over. A new recorder reads them too, so that a run that goes on in another
                process has all its metrics.
        """
        self._start_attempt(attempt, resumed_from, earlier)
        self._events.start_attempt(output_dirs)
        self._files = (
            MetricFiles(metrics_dir, earlier, attempt, resumed_from) if metrics_dir else None
        )
        ended = threading.Event()
        try:
            with (
                listening(self._listen),
                in_background(partial(self._follow, ended), "read-metrics", ended),
            ):
                yield
        finally:
            with self._lock:
                if self._files is not None:
                    self._files.close()

    @property
    def latest(self) -> dict[str, float]:
        """The last value of every metric."""
        with self._lock:
            return dict(self._latest)

    def summary(self) -> tuple[MetricSummary, ...]:
        """Return what every metric came to: its last value, its lowest and its highest."""
        with self._lock:
            return summaries(self._history)

    def read_kept(self, metrics_dir: Path) -> None:
        """Take over what another process of this run has recorded of its last attempt."""
        with self._lock:
            self._read_earlier(metrics_dir / LINES)

    def plot(self, title: str = "", max_panels: int = 6) -> bytes | None:
        """Return the curves of the first metrics as a PNG image; None without metrics."""
        with self._lock:
            history = copy.deepcopy(self._history)
        return plot(history, title, max_panels) if history.curves else None

    def write_plot(self, title: str = "") -> None:
        """Put the plot beside the metrics of the last attempt, once the run has ended."""
        try:
            image = self.plot(title, _MAX_PANELS)
        except Exception as error:  # noqa: BLE001 - a run does not fail over its picture
            _logger.warning("the metrics could not be drawn: %s", error)
            return
        if image is not None and self._files is not None:
            self._files.add_plot(image)

    def _start_attempt(self, attempt: int, resumed_from: int | None, earlier: Path | None) -> None:
        with self._lock:
            if earlier is not None and not self._history.curves:
                self._read_earlier(earlier / LINES)
            self._history.start_attempt(attempt, resumed_from)
            self._attribution.start_attempt(attempt, resumed_from)

    def _read_earlier(self, lines: Path) -> None:
        """Take over what another process of this run has recorded."""
        if not lines.is_file():
            return
        with lines.open("rb") as file:
            for line in file:
                try:
                    reading = Reading.from_line(line)
                except ValueError:  # what a killed process left of its last line
                    continue
                self._history.add(reading)
                self._attribution.take_over(reading)
                self._latest |= reading.values

    def _listen(self, event: Event) -> None:
        """Take metrics from an event. Not from `MetricReported`: those are our own."""
        if isinstance(event, StepReported):
            with self._lock:
                readings = self._attribution.of_report(event, self._clock())
                self._keep(readings)
            _tell(readings)
        elif isinstance(event, RankOutput) and event.rank is not None:
            self._read_lines(event.rank, event.lines)

    def _read_lines(self, rank: int, lines: Sequence[str]) -> None:
        found = self._patterns.find_all(lines)
        if not found:
            return
        with self._lock:
            now_s = self._clock()
            readings = [
                reading for one in found for reading in self._attribution.of_line(one, rank, now_s)
            ]
            self._keep(readings)
        _tell(readings)

    def _follow(self, ended: threading.Event) -> None:
        """Read event files until the ranks have ended and everything was emitted."""
        pause_s = self._poll_s
        while not ended.wait(pause_s):
            started_s = time.thread_time()
            self._read_events(_READ_S)
            pause_s = max(self._poll_s, (time.thread_time() - started_s) / _MAX_SHARE)
        if self._read_events(_LAST_READ_S):
            _logger.warning(
                "metrics are incomplete: after %s s, the event files of the outputs are not read "
                "to their ends",
                _LAST_READ_S,
            )

    def _read_events(self, limit_s: float) -> bool:
        """Read what is new, and tell whether there is more."""
        found, has_more = self._events.read(limit_s)
        with self._lock:
            now_s = self._clock()
            readings = [
                reading
                for scalars in found
                for reading in self._attribution.of_event_file(scalars, now_s)
            ]
            self._keep(readings)
        _tell(readings)
        return has_more

    def _keep(self, readings: Sequence[Reading]) -> None:
        for reading in readings:
            self._history.add(reading)
            self._latest.update(reading.values)
        if readings and self._files is not None:
            self._files.add(readings)


def _tell(readings: Sequence[Reading]) -> None:
    """Emit readings; outside of the lock, since listeners may ask the recorder."""
    for reading in readings:
        step = None if reading.is_counted else reading.step
        emit(MetricReported(reading.values, step, reading.source))
