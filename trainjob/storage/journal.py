"""What of a local folder was sent already, by the version that the files had.

It saves sending and reading the same files again, in this process and in a later one that finds
the journal's file. It is no proof: whoever completes a tree reads the store. Losing it costs time.
"""

import json
import logging
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from trainjob.storage.listing import Entry
from trainjob.storage.manifest import FileRecord

_LOGGER = logging.getLogger(__name__)


class Journal:
    """The files of one local folder that were sent to `url` for one run.

    Args:
        file: Where it outlives the process; None: nowhere. It should be outside the folder.
        url: Where the files were sent; what was sent elsewhere does not count.
        run_id: The run that sent them; what another sent does not count.
    """

    def __init__(self, file: Path | None, url: str, run_id: str) -> None:
        self._file = file
        self._whose = [url, run_id]
        self._sent: dict[str, tuple[str, FileRecord]] = {}
        self._announced: dict[str, list[str]] = {}
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

        Which of both the store has, nobody knows if the process is killed in this moment.
        """
        for record in records:
            contents = self._announced.setdefault(record.path, [])
            if record.sha256 not in contents:
                contents.append(record.sha256)
        self.save()

    def remember(self, entry: Entry, record: FileRecord) -> None:
        """Note that this version of a file was sent."""
        self._sent[entry.path] = (entry.version, record)
        self._announced.pop(entry.path, None)

    def forget(self, paths: Iterable[str]) -> None:
        """Let files count as never sent."""
        for path in tuple(paths):
            self._sent.pop(path, None)
            self._announced.pop(path, None)

    def clear(self) -> None:
        """Forget all files, in the file too."""
        self._sent.clear()
        self._announced.clear()
        self.save()

    def save(self) -> None:
        """Write the journal's file, complete or not at all."""
        if self._file is None:
            return
        files = {
            path: [version, record.size_bytes, record.sha256, record.etag]
            for path, (version, record) in self._sent.items()
        }
        partial = self._file.with_name(f".{self._file.name}.{uuid.uuid4().hex}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            content = {"whose": self._whose, "files": files, "announced": self._announced}
            partial.write_text(json.dumps(content))
            partial.replace(self._file)
        except OSError as error:  # a full disk, on which the files can still be sent
            with suppress(OSError):
                partial.unlink()
            _LOGGER.debug("the journal was not written file=%s error=%s", self._file, error)

    def _read(self) -> None:
        if self._file is None:
            return
        try:
            content = json.loads(self._file.read_text())
            if content["whose"] == self._whose:
                self._sent = {
                    path: (version, FileRecord(path, size_bytes, sha256, *etag))
                    for path, (version, size_bytes, sha256, *etag) in content["files"].items()
                }
                self._announced = content.get("announced", {})
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            self._sent = {}
