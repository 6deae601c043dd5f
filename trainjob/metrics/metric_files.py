"""The files that a run leaves of its metrics: ``metrics.jsonl`` and TensorBoard event files.

They grow while the training runs, line by line and record by record, each whole. The files of a
restarted attempt begin with those of the attempt before, so that the last ones have everything.
"""

import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainjob.launch.rank_files import open_rank_file
from trainjob.metrics.event_writer import (
    event_file_name,
    is_ours,
    opening_records,
    scalar_records,
)
from trainjob.metrics.reading import Reading

_logger = logging.getLogger(__name__)
LINES = "metrics.jsonl"
PLOT = "metrics.png"
_MAX_LINE_BYTES = 2**20
_RETRY_S = 60.0  # a disk that is full is not filled again with every metric


class MetricFiles:
    """The files of one attempt. Nothing is made before there is a metric.

    What a full disk or the script itself does to them is said once, and is no error: a training
    must not end over them.

    Args:
        folder: Where they go.
        earlier: The folder with the files of the attempt before; None: there was none.
        attempt: Which attempt, counted from 0.
        resumed_from: The step that it goes on from, if that is known.
    """

    def __init__(
        self, folder: Path, earlier: Path | None, attempt: int, resumed_from: int | None
    ) -> None:
        self._folder = folder
        self._earlier = earlier
        self._attempt = attempt
        self._resumed_from = resumed_from
        self._lines: _GrowingFile | None = None
        self._events: _GrowingFile | None = None
        self._next_try_s = 0.0
        self._is_closed = False
        self._is_trouble_said = False

    def add(self, readings: Sequence[Reading]) -> None:
        """Write readings at the end. After `close`, nothing is written any more."""
        if self._is_closed or (self._lines is None and time.monotonic() < self._next_try_s):
            return
        try:
            lines = self._lines or self._begin()
            lines.append(b"".join(reading.to_line() for reading in readings))
            self._add_events([one for one in readings if one.source != "tensorboard"])
        except OSError as error:
            self._next_try_s = time.monotonic() + _RETRY_S
            self._say_trouble(error)

    def add_plot(self, image: bytes) -> None:
        """Write the plot of the metrics, complete or not at all."""
        target = self._folder / PLOT
        temporary = self._folder / f".{PLOT}.trainjob"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise FileExistsError(f"{target} is there already")
            temporary.write_bytes(image)
            temporary.replace(target)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            self._say_trouble(error)

    def close(self) -> None:
        """Close the files; before, bring over what an earlier attempt left and is not here yet."""
        try:
            if self._earlier is not None and (self._earlier / LINES).exists():
                self._begin()
        except OSError as error:
            self._say_trouble(error)
        self._is_closed = True
        for file in (self._lines, self._events):
            if file is not None:
                file.close()

    def _begin(self) -> "_GrowingFile":
        """Make the folder with all that the attempt before left, and return its lines."""
        if self._lines is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            earlier_lines = self._earlier / LINES if self._earlier else None
            self._lines = _GrowingFile(self._folder / LINES, begin_with=earlier_lines)
        for file in self._earlier.glob("events.*") if self._earlier else ():
            target = self._folder / file.name
            if is_ours(file.name) and not target.exists():
                _GrowingFile(target, begin_with=file).close()
        return self._lines

    def _add_events(self, readings: Sequence[Reading]) -> None:
        first = next((one for one in readings if one.step is not None), None)
        if first is None or first.step is None:
            return
        if self._events is None:
            name = event_file_name(first.time_s, self._attempt)
            is_known = self._resumed_from is not None and not first.is_counted
            resumed_from = self._resumed_from if is_known else None
            begin = first.step if resumed_from is None else min(first.step, resumed_from + 1)
            self._events = _GrowingFile(self._folder / name)
            self._events.append(opening_records(first.time_s, begin))
        self._events.append(scalar_records(readings))

    def _say_trouble(self, error: OSError) -> None:
        if not self._is_trouble_said:
            self._is_trouble_said = True
            _logger.warning("metrics are missing in %s: %s", self._folder, error)


class _GrowingFile:
    """A new file that always ends where a write ended.

    Raises:
        OSError: Also if there is a file of that name, since it belongs to the script.
    """

    def __init__(self, path: Path, begin_with: Path | None = None) -> None:
        target = path.open("xb")
        try:
            with target:
                if begin_with is not None:
                    with suppress(FileNotFoundError), open_rank_file(begin_with) as source:
                        shutil.copyfileobj(source, target, 2**20)
            if path.name == LINES:
                _drop_half_line(path)
        except BaseException:  # not a full disk alone: a signal may come in the middle
            path.unlink()
            raise
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()

    def append(self, content: bytes) -> None:
        """Write all of it or, if that fails, nothing."""
        left = memoryview(content)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(content)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _drop_half_line(path: Path) -> None:
    """Drop what a killed process left of its last line."""
    with path.open("r+b") as file:
        start = max(0, file.seek(0, os.SEEK_END) - _MAX_LINE_BYTES)
        file.seek(start)
        file.truncate(start + file.read().rfind(b"\n") + 1)
