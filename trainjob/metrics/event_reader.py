"""Follows the TensorBoard event files that a training writes, and reads their scalars.

A file may appear at any time, grow, end in half a record or be damaged; none of it raises. The
records are parsed by TensorBoard's own library. Only their frames are read here: its reader loads
and checks every image in them, at 10 MB a second.
"""

import logging
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from trainjob.launch.rank_files import open_rank_file
from trainjob.metrics.event_writer import is_ours

_logger = logging.getLogger(__name__)
_MAX_RECORD_BYTES = 2**20  # scalars are small; what is larger is an image, a sound or a graph
_LATEST_TIME_S = 1e11  # beyond it lies the year 5138


@dataclass(frozen=True, slots=True)
class Scalars:
    """Values that a script wrote together; `time_s` is when, None if the file does not know."""

    values: dict[str, float]
    step: int
    time_s: float | None


class EventFolders:
    """All event files below some folders, each record handed out once. Used by one thread.

    A metric is called like its tag. Of several folders that have the same tag (``train`` and
    ``validation``), the first has that name and the others get their folder in front:
    ``validation/loss``. The names stay over the attempts of a run.
    """

    def __init__(self) -> None:
        self._folders: tuple[Path, ...] = ()
        self._files: dict[Path, _EventFile] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._taken: dict[str, tuple[str, str]] = {}

    def start_attempt(self, folders: Sequence[Path]) -> None:
        """Follow `folders` from now on: what is there already is of attempts before."""
        self._folders = tuple(folders)
        self._files.clear()
        self._taken.clear()
        self._find_files()
        for file in self._files.values():
            file.skip()

    def read(self, limit_s: float) -> tuple[list[Scalars], bool]:
        """Return what is new, and whether there is more, since reading stops after `limit_s`."""
        deadline = time.monotonic() + limit_s
        self._find_files()
        found: list[Scalars] = []
        for file in self._files.values():
            for event in file.read():
                self._add(found, file, event)
                if time.monotonic() > deadline:
                    return found, True
        return found, False

    def _find_files(self) -> None:
        """Note new files, in the order of their names, which begin with their time."""
        for folder in self._folders:
            paths = (
                Path(parent, name)
                for parent, _, names in os.walk(folder)
                for name in names
                if "tfevents" in name and not is_ours(name)
            )
            for path in sorted(set(paths) - self._files.keys()):
                run = path.parent.relative_to(folder).as_posix()
                self._files[path] = _EventFile(path, folder.name if run == "." else run)

    def _add(self, found: list[Scalars], file: "_EventFile", event: Any) -> None:
        values = {self._name(file.run, tag): value for tag, value in file.scalars(event)}
        if not values:
            return
        last = found[-1] if found else None
        if last and last.step == event.step and not last.values.keys() & values.keys():
            last.values.update(values)  # said together: most writers make an event a value
            return
        is_time = 0 < event.wall_time < _LATEST_TIME_S
        found.append(Scalars(values, event.step, event.wall_time if is_time else None))

    def _name(self, run: str, tag: str) -> str:
        key = (run, tag)
        name = self._names.get(key, tag)
        if self._taken.setdefault(name, key) != key:
            name = f"{run}/{tag}"
        self._names[key] = name
        return name


class _EventFile:
    """One event file, read as it grows."""

    def __init__(self, path: Path, run: str) -> None:
        self.run = run
        self._path = path
        self._offset = 0
        self._plugins: dict[str, str] = {}  # only the first value of a tag names its plugin
        self._is_damage_said = False

    def skip(self) -> None:
        """Leave out what is there already."""
        with suppress(OSError):
            self._offset = self._path.stat().st_size

    def read(self) -> Iterator[Any]:
        """Yield the events that are complete and were not read yet."""
        # These packages cost 0.15 s and 31 MB: only who has event files pays for them.
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event

        try:
            with open_rank_file(self._path) as file:
                size = os.fstat(file.fileno()).st_size
                while (record := self._next_record(file, size)) is not None:
                    try:
                        yield Event.FromString(record)
                    except DecodeError:
                        self._say_damaged()
        except OSError as error:  # removed, not ours to read, or a pipe or a link
            _logger.debug("event file %s: %s", self._path, error)

    def _next_record(self, file: BinaryIO, size: int) -> bytes | None:
        """Return the next record, b"" for one that has no scalars, or None if none is complete.

        https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
        """
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

        file.seek(self._offset)
        header = file.read(12)
        if len(header) < 12:
            return None
        if struct.pack("<I", masked_crc32c(header[:8])) != header[8:]:
            self._say_damaged()
            return None
        length = struct.unpack("<Q", header[:8])[0]
        end = self._offset + 12 + length + 4
        if end > size:
            return None
        self._offset = end
        if length > _MAX_RECORD_BYTES:
            return b""
        record, checksum = file.read(length), file.read(4)
        if struct.pack("<I", masked_crc32c(record)) != checksum:
            self._say_damaged()
            return b""
        return record

    def scalars(self, event: Any) -> Iterator[tuple[str, float]]:
        """Yield tag and value of every scalar in an event."""
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            plugin = self._plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
            if kind == "simple_value":
                yield value.tag, _shortest(value.simple_value)
            elif kind == "tensor" and plugin == "scalars":
                number = _number_in(value.tensor)
                if number is not None:
                    yield value.tag, number

    def _say_damaged(self) -> None:
        if not self._is_damage_said:
            self._is_damage_said = True
            _logger.warning(
                "event file %s is damaged at byte %d: metrics may be missing",
                *(self._path, self._offset),
            )


def _number_in(tensor: Any) -> float | None:
    """Return the number in a tensor of one element, as new writers make them."""
    # Only who has event files pays for numpy, which this brings.
    from tensorboard.util.tensor_util import make_ndarray

    try:
        array = make_ndarray(tensor)
        if array.size != 1:
            return None
        number = array.reshape(-1)[0]
        return _shortest(number) if number.dtype.itemsize <= 4 else float(number)
    except (TypeError, ValueError):  # a text, or a damaged shape
        return None


def _shortest(number: Any) -> float:
    """Return a float32 as people wrote it: 0.7, not 0.699999988, which no target of 0.7 reaches."""
    # Only who has event files pays for numpy, which TensorBoard's library brings.
    import numpy as np

    return float(str(np.float32(number)))
