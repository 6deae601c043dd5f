"""Writes metrics as a TensorBoard event file, so that `tensorboard --logdir OUTPUT` shows them.

Events and checksums are those of TensorBoard's library. Its `EventFileWriter` is not used: it has
a thread and a queue, and loads TensorFlow if that is installed.
"""

import math
import re
import struct
from collections.abc import Iterable
from functools import cache
from typing import Any

from trainjob.metrics.reading import Reading

_OURS = re.compile(r"events\.out\.tfevents\.\d{10}\.trainjob\.\d\d")


def is_ours(name: str) -> bool:
    """Tell whether a file of this name was made here, so that it is not read as the script's."""
    return _OURS.fullmatch(name) is not None


def event_file_name(time_s: float, attempt: int) -> str:
    """Return the name of the event file of an attempt; TensorBoard reads them in this order."""
    return f"events.out.tfevents.{int(time_s):010d}.trainjob.{attempt:02d}"


def opening_records(time_s: float, first_step: int) -> bytes:
    """Return how an event file begins.

    Args:
        time_s: When, as seconds since 1970.
        first_step: What files before it say of this step and later ones is void. TensorBoard's
            slower loader wants to be told, and by the file of the first attempt too.
    """
    # This costs 0.15 s and 31 MB: only who has metrics pays for it.
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    log = SessionLog(status=SessionLog.START)
    return _records(
        [
            Event(wall_time=time_s, file_version="brain.Event:2"),
            Event(wall_time=time_s, step=first_step, session_log=log),
        ]
    )


def scalar_records(readings: Iterable[Reading]) -> bytes:
    """Return the records of readings; those without a step have no place there."""
    # Only who has metrics pays for this (see above).
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    events = []
    for reading in readings:
        if reading.step is None:
            continue
        values = [
            Summary.Value(tag=name, simple_value=_as_float32(value))
            for name, value in reading.values.items()
        ]
        summary = Summary(value=values)
        events.append(Event(wall_time=reading.time_s, step=reading.step, summary=summary))
    return _records(events)


def _records(events: Iterable[Any]) -> bytes:
    """Return events as records, each with its length and two checksums.

    https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
    """
    # Only who has metrics pays for this (see above).
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    parts = []
    for event in events:
        content = event.SerializeToString()
        parts += [_head(len(content)), content, struct.pack("<I", masked_crc32c(content))]
    return b"".join(parts)


@cache  # nearly all records of a run have the same few lengths
def _head(length: int) -> bytes:
    # Only who has metrics pays for this (see above).
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    head = struct.pack("<Q", length)
    return head + struct.pack("<I", masked_crc32c(head))


def _as_float32(value: float) -> float:
    """Return what the field can hold: infinite instead of too large for it."""
    return (
        value if abs(value) < 3.4e38 or not math.isfinite(value) else math.copysign(math.inf, value)
    )
