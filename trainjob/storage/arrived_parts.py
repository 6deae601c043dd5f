"""Which parts of large files an interrupted copy left behind, so that only the rest is fetched."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainjob.storage.listing import Entry


@dataclass(slots=True)
class PartsOfFile:
    """Those of one version of a file.

    Attributes:
        version: That version.
        part_bytes: The size of each, but for the last of the file.
        told: What the store told of the bytes of the whole file; empty if nothing.
        flags: A byte a part, from the first on: 1 if it is there.
    """

    version: str
    part_bytes: int
    told: str = ""
    flags: bytearray = field(default_factory=bytearray)

    def add(self, number: int, told: str) -> None:
        """Count a part as there."""
        self.flags.extend(bytes(max(0, number + 1 - len(self.flags))))
        self.flags[number] = 1
        self.told = f"md5:{told}" if told and ":" not in told else told  # as it was written before

    def size_bytes(self, file_bytes: int) -> int:
        """Return how many bytes of a file of this size they are."""
        too_many = len(self.flags) * self.part_bytes - file_bytes
        return self.flags.count(1) * self.part_bytes - max(0, too_many)


class ArrivedParts:
    """Takes down in a file which parts of which version are there, one line as each arrives.

    A line that is lost costs a part that is fetched again, and nothing else. With the rest, all are
    digested and compared as if they had come at once. The parts of a file are forgotten when it is
    complete, is not what it should be, or cannot be read.

    Args:
        file: Where the lines are; it need not be there.
        boot: Names this start of the machine: one that fell may have kept a line and not the bytes.
    """

    def __init__(self, file: Path, boot: str) -> None:
        self._file = file
        self._boot = boot
        self._found: dict[str, PartsOfFile] = {}
        self._sizes: dict[str, int] = {}
        self._read()

    def __bool__(self) -> bool:
        """Whether there is any part."""
        return bool(self._found)

    @property
    def size_bytes(self) -> int:
        """How many bytes those have that were kept, and not forgotten since."""
        return sum(self._sizes.values())

    def of(self, entry: Entry, part_bytes: int) -> PartsOfFile | None:
        """Return the parts of this version of a file that are of this size."""
        found = self._found.get(entry.path)
        if found is None or not entry.version:
            return None
        return found if (found.version, found.part_bytes) == (entry.version, part_bytes) else None

    def keep(self, files: Iterable[Entry], part_bytes: int, folder: Path) -> list[str]:
        """Forget all but such parts of these versions as are below `folder`; return the paths."""
        kept: dict[str, PartsOfFile] = {}
        self._sizes = {}
        for entry in files:
            found = self.of(entry, part_bytes)
            if found is None or len(found.flags) > -(-entry.size_bytes // part_bytes):
                continue
            end = min(len(found.flags) * part_bytes, entry.size_bytes)
            with suppress(OSError):
                if (folder / entry.path).lstat().st_size >= end:
                    kept[entry.path] = found
                    self._sizes[entry.path] = found.size_bytes(entry.size_bytes)
        self._found = kept
        self._file.unlink(missing_ok=True)
        self._write(
            [path, parts.version, parts.part_bytes, number, parts.told]
            for path, parts in kept.items()
            for number, is_there in enumerate(parts.flags)
            if is_there
        )
        return list(kept)

    def note(self, entry: Entry, part_bytes: int, number: int, told: str) -> None:
        """Take down that a part is there.

        Args:
            entry: The version that it is of; one without a name is not taken down.
            part_bytes: The size of each part.
            number: Which, from 0.
            told: What the store tells of the bytes of the whole file; empty if nothing.
        """
        if entry.version:
            self._add(entry.path, entry.version, part_bytes, number, told)
            self._write([[entry.path, entry.version, part_bytes, number, told]])

    def forget(self, path: str) -> None:
        """Let the parts of a file count as not there."""
        if self._found.pop(path, None):
            self._sizes.pop(path, None)
            self._write([[path]])

    def _add(self, path: str, version: str, part_bytes: int, number: int, told: str) -> None:
        found = self._found.get(path)
        if found is None or (found.version, found.part_bytes) != (version, part_bytes):
            found = self._found[path] = PartsOfFile(version, part_bytes)
        found.add(number, told)

    def _write(self, lines: Iterable[list[Any]]) -> None:
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        if text:
            with suppress(OSError), self._file.open("a") as file:
                file.write(text if file.tell() else f"{self._boot}\n{text}")

    def _read(self) -> None:
        with suppress(OSError), self._file.open(errors="replace") as lines:
            if next(lines, "") != f"{self._boot}\n":
                return
            for line in lines:
                with suppress(ValueError, TypeError):  # the last one, cut off
                    path, *part = json.loads(line)
                    if part:
                        self._add(path, *part)
                    else:
                        self._found.pop(path, None)
