"""What of a local folder was sent already, by the version that the files had.

It saves sending and reading the same files again, in this process and in a later one that finds
the journal's file. It is no proof: whoever completes a tree reads the store. Losing it costs time.

The file has a line for each thing that was noted. New ones are added at its end, so that to note
some files takes as long with a million others as with none; each process writes it anew once, since
the last line of one that was killed may be half there.
"""

import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from trainjob.storage.listing import Entry
from trainjob.storage.local_tree import write_back
from trainjob.storage.manifest import FileRecord

_LOGGER = logging.getLogger(__name__)

_MIN_LINES = 1000
"""So many lines that say nothing any more are kept, and as many again as there are others."""

_Line = list[Any]


class Journal:
    """The files of one local folder that were sent to `url` for one run.

    Args:
        file: Where it outlives the process; None: nowhere. It should be outside the folder.
        url: Where the files were sent; what was sent elsewhere does not count.
        run_id: The run that sent them; what another sent does not count.
    """

    def __init__(self, file: Path | None, url: str, run_id: str) -> None:
        self._file = file
        self._head = ["sent to", url, run_id]
        self._sent: dict[str, tuple[str, FileRecord]] = {}
        self._announced: dict[str, list[str]] = {}
        self._new_lines: list[_Line] = []
        self._num_lines: int | None = None  # in the file; None: it is not of this process yet
        self._read()

    def record(self, entry: Entry) -> FileRecord | None:
        """Return what was sent of a file; None if not this version of it."""
        version, record = self._sent.get(entry.path, (None, None))
        return record if version == entry.version else None

    def knows(self, path: str) -> bool:
        """Say whether any version of a file was sent."""
        return path in self._sent

    def has_sent(self, path: str, sha256: str) -> bool:
        """Say whether what was sent of a file had this content, or may have had it."""
        is_sent = path in self._sent and self._sent[path][1].sha256 == sha256
        return is_sent or sha256 in self._announced.get(path, ())

    def announce(self, records: Iterable[FileRecord]) -> None:
        """Note in the file too what is about to count as sent, beside what was sent before.

        Which of both the store has, nobody knows if the process is killed in this moment, or the
        machine.
        """
        for record in records:
            self._note(["announced", record.path, record.sha256])
        self.save()
        if self._file is not None:
            write_back(self._file)

    def remember(self, entry: Entry, record: FileRecord) -> None:
        """Note that this version of a file was sent."""
        self._note(_sent_line(entry.version, record))

    def forget(self, paths: Iterable[str]) -> None:
        """Let files count as never sent."""
        for path in tuple(paths):
            if path in self._sent or path in self._announced:
                self._note(["forgotten", path])

    def clear(self) -> None:
        """Forget all files, in the file too."""
        self._sent.clear()
        self._announced.clear()
        self._num_lines = None
        self.save()

    def save(self) -> None:
        """Write what is new to the journal's file."""
        if self._file is None:
            self._new_lines.clear()
            return
        try:
            self._write(self._file)
        except OSError as error:  # a full disk, on which the files can still be sent
            self._num_lines = None  # the last line may be half there
            _LOGGER.debug("the journal was not written file=%s error=%s", self._file, error)
        self._new_lines.clear()

    def _note(self, line: _Line) -> None:
        self._take(line)
        self._new_lines.append(line)

    def _take(self, line: _Line) -> None:
        """Count what a line says.

        Raises:
            ValueError: If it is not one of a journal; so does a `TypeError`.
        """
        match line:
            case ["sent", str(path), version, size_bytes, sha256, etag, *proof]:
                if proof not in ([], ["checksum"]):
                    raise ValueError(line)
                record = FileRecord(path, size_bytes, sha256, etag, *proof)
                self._sent[path] = (version, record)
                self._announced.pop(path, None)
            case ["announced", str(path), sha256]:
                contents = self._announced.setdefault(path, [])
                if sha256 not in contents:
                    contents.append(sha256)
            case ["forgotten", str(path)]:
                self._sent.pop(path, None)
                self._announced.pop(path, None)
            case _:
                raise ValueError(line)

    def _write(self, file: Path) -> None:
        num_needed = len(self._sent) + len(self._announced)
        if self._num_lines is None or self._num_lines > 2 * num_needed + _MIN_LINES:
            self._write_all(file)
            return
        if not self._new_lines:
            return
        try:
            # Not made anew if somebody has removed it: it needs its first lines.
            opened = os.open(file, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            self._write_all(file)
            return
        with os.fdopen(opened, "w") as lines:
            _write_lines(lines, self._new_lines)
        self._num_lines += len(self._new_lines)

    def _write_all(self, file: Path) -> None:
        """Write the file anew, complete or not at all."""
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w") as lines:
                _write_lines(lines, chain([self._head], self._lines()))
            partial.replace(file)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise
        self._num_lines = len(self._sent) + len(self._announced)

    def _lines(self) -> Iterator[_Line]:
        for version, record in self._sent.values():
            yield _sent_line(version, record)
        for path, contents in self._announced.items():
            for sha256 in contents:
                yield ["announced", path, sha256]

    def _read(self) -> None:
        """Take what a process has left; of one that was killed, up to a line that is not whole."""
        if self._file is None:
            return
        errors = (OSError, ValueError, TypeError, LookupError, AttributeError)
        with suppress(*errors), self._file.open() as lines:
            first = json.loads(lines.readline())
            if first == self._head:
                for line in lines:
                    self._take(json.loads(line))
            elif isinstance(first, dict) and ["sent to", *first["whose"]] == self._head:
                for older in _older_lines(first):
                    self._take(older)


def _sent_line(version: str, record: FileRecord) -> _Line:
    # What came from the store has no ETag here, and its proof is none of what is sent.
    proof = ["checksum"] if record.etag and record.verified == "checksum" else []
    return ["sent", record.path, version, record.size_bytes, record.sha256, record.etag, *proof]


def _older_lines(content: dict[str, Any]) -> Iterator[_Line]:
    """Yield the lines for a journal that was one JSON object, as of a run that began before."""
    for path, (version, size_bytes, sha256, *etag) in content["files"].items():
        yield ["sent", path, version, size_bytes, sha256, *(etag or [""])]
    for path, contents in content.get("announced", {}).items():
        for sha256 in contents:
            yield ["announced", path, sha256]


def _write_lines(opened: TextIO, lines: Iterable[_Line]) -> None:
    opened.writelines(f"{json.dumps(line)}\n" for line in lines)
