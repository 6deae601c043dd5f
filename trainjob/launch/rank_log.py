"""Reading the log of a rank: as it grows, or its last lines.

A log may be of any size, hold any bytes, and lines of any length: reading is bounded by the read,
never by the file. A progress bar that rewrites its line arrives as its last state, and as long as
it goes on, as what it shows from time to time.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from trainjob.launch.hidden import hidden_texts
from trainjob.launch.rank_files import open_rank_file
from trainjob.values import storable

_CHUNK_BYTES = 4 * 2**20
_MAX_LINE_BYTES = 2**20
_MAX_BEHIND_BYTES = 32 * 2**20
_KEPT_BYTES = 2**20
_TAIL_BYTES = 64 * 2**10
_MAX_SHOWN_CHARS = 1000
_STATE_INTERVAL_S = 5.0


class LogTail:
    """The lines of a growing file, each handed out once.

    Args:
        path: The file; it need not be there yet.
        clock: Seconds that never go back.

    Attributes:
        has_more: Whether the last read left something that was already there.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.has_more = False
        self._path = path
        self._clock = clock
        self._offset = 0
        self._partial = b""
        self._shown_state: str | None = None
        self._state_at: float | None = None

    def read(self, *, is_final: bool = False) -> list[str]:
        """Return the next complete lines; finally also one that was never ended.

        Of a line that is rewritten for long, its state is returned every five seconds.
        Who falls far behind is taken close to the end, with a line that says what was left out.
        """
        notice: list[str] = []
        lines: list[str] = []
        self.has_more = False
        with suppress(FileNotFoundError), open_rank_file(self._path) as file:
            size = os.fstat(file.fileno()).st_size
            if size - self._offset > _MAX_BEHIND_BYTES:
                notice = self._skip(file, size)
            if size > self._offset:
                ended, newline, partial = (self._partial + self._next_chunk(file)).rpartition(b"\n")
                lines = _lines(ended) if newline else []
                self._partial = _folded(partial)
            self.has_more = self._offset < size
        if self._partial and is_final and not self.has_more:
            lines.append(_text(self._partial))
            self._partial = b""
        elif len(self._partial) > _MAX_LINE_BYTES:
            lines.append(self._piece())
        return [*notice, *self._without_shown(lines), *self._state()]

    def _piece(self) -> str:
        """Take what there is of a line that is too long, up to what may become a secret."""
        secrets = hidden_texts()
        piece, self._partial = secrets.masked_until(self._partial, secrets.open_end(self._partial))
        return _text(piece)

    def _without_shown(self, lines: list[str]) -> list[str]:
        """Drop the end of a rewritten line if it was handed out as its state already."""
        if not lines:
            return lines
        is_shown = lines[0] == self._shown_state
        self._shown_state = self._state_at = None
        return lines[1:] if is_shown else lines

    def _state(self) -> list[str]:
        """Return what a line that is being rewritten shows, if it is time for that."""
        if b"\r" not in self._partial:
            return []
        now = self._clock()
        if self._state_at is None:
            self._state_at = now + _STATE_INTERVAL_S
        state = _text(self._partial)
        if now < self._state_at or state == self._shown_state:
            return []
        if hidden_texts().open_end(self._partial) < len(self._partial):
            return []  # the other half of a secret may follow
        self._shown_state, self._state_at = state, now + _STATE_INTERVAL_S
        return [state]

    def _next_chunk(self, file: BinaryIO) -> bytes:
        file.seek(self._offset)
        chunk = file.read(_CHUNK_BYTES)
        self._offset += len(chunk)
        return chunk

    def _skip(self, file: BinaryIO, size: int) -> list[str]:
        """Go on close to the end, at the start of a line if there is one."""
        num_before = self._offset - len(self._partial)
        file.seek(size - _KEPT_BYTES)
        rest = file.read(_KEPT_BYTES)
        self._offset = size - len(rest) + (rest.find(b"\n") + 1 or _clear_start(rest))
        self._partial = b""
        skipped = self._offset - num_before
        return [f"[trainjob: {skipped:,} bytes of output are left out here; {self._path} has them]"]


def last_lines(path: Path, count: int, end: int | None = None) -> tuple[str, ...]:
    """Return the last lines of a file as a state or a page may show them, long ones cut.

    Args:
        path: The file; one that is missing, or not ours any more, has no lines.
        count: How many lines at most.
        end: Read up to this offset instead of the end of the file.
    """
    try:
        with open_rank_file(path) as file:
            stop = file.seek(0, 2) if end is None else end
            start = max(0, stop - _TAIL_BYTES)
            file.seek(start)
            tail = file.read(stop - start)
    except FileNotFoundError:
        return ()
    if start:  # somewhere in the middle of a line
        tail = tail[tail.find(b"\n", 0, -1) + 1 or _clear_start(tail) :]
    tail = hidden_texts().masked(tail)
    lines = tail.removesuffix(b"\n").split(b"\n") if tail else []
    return tuple(_cut(storable(_text(line))) for line in lines[-count:])


def _clear_start(text: bytes) -> int:
    """Return where a text that has lost its start may begin, so as not to show half a secret."""
    secrets = hidden_texts()
    _, rest = secrets.masked_until(text, secrets.overlap)
    return len(text) - len(rest)


def _folded(line: bytes) -> bytes:
    """Return of a line that is rewritten the last state, with what shows that it is one."""
    body = line.removesuffix(b"\r")
    _, mark, state = body.rpartition(b"\r")
    return mark + state + line[len(body) :]


def _lines(content: bytes) -> list[str]:
    """Return whole lines as text, and of those that were rewritten the last state."""
    lines = content.decode("utf-8", "replace").split("\n")
    return list(map(_last_state, lines)) if b"\r" in content else lines


def _text(line: bytes) -> str:
    return _last_state(line.decode("utf-8", "replace"))


def _last_state(line: str) -> str:
    return line.removesuffix("\r").rpartition("\r")[2]


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]} …"
