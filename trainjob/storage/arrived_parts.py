"""Which parts of large files an interrupted copy left behind, so that only the rest is fetched."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainjob.storage.listing import Entry

Span = tuple[int, int]
"""The first byte of a part, and the one after its last."""


class ArrivedParts:
    """Takes down in a file which parts of which version are there, one line as each arrives.

    A line that is lost costs a part that is fetched again, and nothing else. What the parts hold is
    proved with the whole file: its parts are forgotten if it is complete, or not what it should be.

    Args:
        file: Where the lines are; it need not be there.
        boot: Names this start of the machine: one that fell may have kept a line and not the bytes.
    """

    def __init__(self, file: Path, boot: str) -> None:
        self._file = file
        self._boot = boot
        self._found: dict[str, tuple[str, dict[Span, str]]] = {}
        self._read()

    def __bool__(self) -> bool:
        """Whether there is any part."""
        return bool(self._found)

    @property
    def size_bytes(self) -> int:
        """How many bytes all parts have."""
        return sum(end - start for _, spans in self._found.values() for start, end in spans)

    def of(self, entry: Entry) -> Mapping[Span, str]:
        """Return the parts of this version of a file, with what `note` was told of each."""
        version, spans = self._found.get(entry.path, ("", {}))
        return spans if entry.version and version == entry.version else {}

    def keep(self, files: Iterable[Entry], folder: Path) -> list[str]:
        """Forget all but the parts of these versions that are below `folder`; return the paths."""
        kept = {}
        for entry in files:
            spans = self.of(entry)
            with suppress(OSError):
                if spans and (folder / entry.path).lstat().st_size >= max(spans)[1]:
                    kept[entry.path] = self._found[entry.path]
        self._found = kept
        self._file.unlink(missing_ok=True)
        self._write(
            [path, version, *span, md5]
            for path, (version, spans) in kept.items()
            for span, md5 in spans.items()
        )
        return list(kept)

    def note(self, entry: Entry, span: Span, md5: str) -> None:
        """Take down that a part is there.

        Args:
            entry: The version that it is of; one without a name is not taken down.
            span: Which part.
            md5: What the store tells of the whole file; empty if nothing.
        """
        if not entry.version:
            return
        version, spans = self._found.get(entry.path, ("", {}))
        if version != entry.version:
            spans = {}
            self._found[entry.path] = (entry.version, spans)
        spans[span] = md5
        self._write([[entry.path, entry.version, *span, md5]])

    def forget(self, path: str) -> None:
        """Let the parts of a file count as not there."""
        if self._found.pop(path, None):
            self._write([[path]])

    def _write(self, lines: Iterable[list[Any]]) -> None:
        if not (text := "".join(f"{json.dumps(line)}\n" for line in lines)):
            return
        with suppress(OSError), self._file.open("a") as file:
            file.write(text if file.tell() else f"{self._boot}\n{text}")

    def _read(self) -> None:
        with suppress(OSError):
            lines = self._file.read_text(errors="replace").splitlines()
            for line in lines[1:] if lines[:1] == [self._boot] else ():
                with suppress(ValueError, TypeError):  # the last one, cut off
                    path, *rest = json.loads(line)
                    if rest:
                        version, start, end, md5 = rest
                        before, spans = self._found.get(path, ("", {}))
                        spans = spans if before == version else {}
                        self._found[path] = (version, spans | {(start, end): md5})
                    else:
                        self._found.pop(path, None)
