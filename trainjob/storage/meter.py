"""Tells the watchers of a run how far a copy is, twice a second at most."""

import threading
from collections.abc import Sequence
from time import monotonic

from trainjob.events import Transferred, emit
from trainjob.storage.listing import Entry, total_size
from trainjob.storage.manifest import FileRecord, OnFile

_INTERVAL_S = 0.5


class Meter:
    """Counts the files and bytes of one copy. Used by one thread at a time.

    Args:
        label: What watchers call the copy; None: nobody is told of it.
        files: All that will be copied; None: that is found on the way, see `expect`.
    """

    def __init__(self, label: str | None, files: Sequence[Entry] | None = None) -> None:
        self._label = label
        self._total_files = None if files is None else len(files)
        self._total_bytes = None if files is None else total_size(files)
        self._num_files = 0
        self._size_bytes = 0
        self._last_told = monotonic()

    def expect(self, num_files: int, size_bytes: int) -> None:
        """Hear how much it is in all, what is copied already included."""
        self._total_files, self._total_bytes = num_files, size_bytes
        self._tell()

    def add_bytes(self, count: int) -> None:
        """Count bytes that were copied; a file that starts over takes its bytes back."""
        self._size_bytes += count
        if monotonic() - self._last_told >= _INTERVAL_S:
            self._tell()

    def finish_file(self) -> None:
        """Count a file that is complete, and tell when it was the last."""
        self._num_files += 1
        if self._num_files == self._total_files:
            self._tell()

    def _tell(self) -> None:
        if self._label is None:
            return
        self._last_told = monotonic()
        emit(
            Transferred(
                self._label,
                self._num_files,
                self._total_files,
                self._size_bytes,
                self._total_bytes,
            )
        )


class SharedMeter(Meter):
    """A meter that several threads may use, which passes all on to one that they may not.

    Args:
        meter: That one.
        done: Called with each file that is complete, by one thread at a time.
    """

    def __init__(self, meter: Meter, done: OnFile | None = None) -> None:
        super().__init__(None, ())
        self._meter = meter
        self._done = done
        self._lock = threading.Lock()

    def add_bytes(self, count: int) -> None:
        """Count bytes; see `Meter`."""
        with self._lock:
            self._meter.add_bytes(count)

    def tell(self, record: FileRecord) -> None:
        """Count a file that is complete, and tell of it."""
        with self._lock:
            self._meter.finish_file()
            if self._done is not None:
                self._done(record)
