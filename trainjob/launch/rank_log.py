"""Reading the log of a rank: as it grows, or its last lines.

A log may be of any size, hold any bytes, and lines of any length: reading is bounded by the read,
never by the file. Progress bars that rewrite their line arrive as its last state.
"""

from pathlib import Path

_CHUNK_BYTES = 4 * 2**20
_MAX_LINE_BYTES = 2**20
_MAX_BEHIND_BYTES = 32 * 2**20
_KEPT_BYTES = 2**20
_TAIL_BYTES = 64 * 2**10
_MAX_SHOWN_CHARS = 1000


class LogTail:
    """The lines of a growing file, each handed out once.

    Attributes:
        has_more: Whether the last read left something that was already there.
    """

    def __init__(self, path: Path) -> None:
        self.has_more = False
        self._path = path
        self._offset = 0
        self._partial = b""

    def read(self, *, is_final: bool = False) -> list[str]:
        """Return the next complete lines; finally also one that was never ended.

        Who falls far behind is taken close to the end, with a line that says what was left out.
        """
        size = self._path.stat().st_size if self._path.exists() else 0
        notice = self._skip(size) if size - self._offset > _MAX_BEHIND_BYTES else []
        lines: list[bytes] = []
        if size > self._offset:
            *lines, self._partial = (self._partial + self._next_chunk()).split(b"\n")
        self.has_more = self._offset < size
        is_too_long = len(self._partial) > _MAX_LINE_BYTES
        if self._partial and (is_too_long or (is_final and not self.has_more)):
            lines.append(self._partial)
            self._partial = b""
        return [*notice, *map(_text, lines)]

    def _next_chunk(self) -> bytes:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            chunk = file.read(_CHUNK_BYTES)
        self._offset += len(chunk)
        return chunk

    def _skip(self, size: int) -> list[str]:
        """Go on close to the end, at the start of a line if there is one."""
        num_before = self._offset - len(self._partial)
        with self._path.open("rb") as file:
            file.seek(size - _KEPT_BYTES)
            rest = file.read(_KEPT_BYTES)
        self._offset = size - len(rest) + rest.find(b"\n") + 1
        self._partial = b""
        skipped = self._offset - num_before
        return [f"[trainjob: {skipped:,} bytes of output are left out here; {self._path} has them]"]


def last_lines(path: Path, count: int, end: int | None = None) -> tuple[str, ...]:
    """Return the last lines of a file, long ones cut.

    Args:
        path: The file; one that is missing has no lines.
        count: How many lines at most.
        end: Read up to this offset instead of the end of the file.
    """
    try:
        with path.open("rb") as file:
            stop = file.seek(0, 2) if end is None else end
            start = max(0, stop - _TAIL_BYTES)
            file.seek(start)
            tail = file.read(stop - start)
    except FileNotFoundError:
        return ()
    lines = tail.removesuffix(b"\n").split(b"\n") if tail else []
    if start and len(lines) > 1:
        del lines[0]  # cut somewhere in its middle
    return tuple(_cut(_text(line)) for line in lines[-count:])


def _text(line: bytes) -> str:
    """Return a line as text, and of one that was rewritten the last state."""
    return line.decode("utf-8", "replace").removesuffix("\r").rpartition("\r")[2]


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]} …"
