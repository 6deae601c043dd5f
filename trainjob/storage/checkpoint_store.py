"""The checkpoint folder of a job in a store, changed by one run so that it always can be restored.

Every change follows the same order: the index announces what will be written, the files are sent
and read back, the index names them, and only then what it no longer names is deleted.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from trainjob.errors import CorruptData
from trainjob.storage.checkpoint_index import (
    INDEX,
    OTHER_PLACE,
    CheckpointIndex,
    SavedFile,
    index_of_job,
    read_index,
    refuse_other_run,
)
from trainjob.storage.checkpoint_units import unit_of
from trainjob.storage.failures import failure
from trainjob.storage.listing import Entry
from trainjob.storage.local import PARTIAL
from trainjob.storage.local_tree import mtime_ns_of
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.read_back import read_back
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, open_store


class CheckpointStore:
    """The folder at `url`, for the run `run_id` of `job`. Use it in a ``with``.

    Attributes:
        store: The folder.
        files: The files that count, by path; of the last `load` or `claim` and what came after.
    """

    def __init__(self, url: str, settings: StoreSettings | None, *, job: str, run_id: str) -> None:
        self.store = open_store(url, settings)
        self.files: dict[str, SavedFile] = {}
        self._places: dict[str, Store] = {
            "": self.store,
            OTHER_PLACE: open_store(self.store.url + OTHER_PLACE, settings),
        }
        self._job = job
        self._run_id = run_id
        self._keys: set[str] = set()
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        """Return the folder itself; nothing is reached yet."""
        for store in self._places.values():
            self._opened.enter_context(store)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the connections."""
        self._opened.close()

    def claim(self) -> None:
        """Make this the run that writes here, from what is there on.

        A run that still is active notices it before its next change, and stops.

        Raises:
            CheckpointsOfAnother: If the folder does not belong to the job.
        """
        self._take(index_of_job(self.store, self._job))
        self._write(takes_over=True)

    def load(self) -> None:
        """Read what is there. Files that somebody deleted in the store do not count any longer.

        Raises:
            CheckpointsOfAnother: If the folder belongs to another job or run.
        """
        index = index_of_job(self.store, self._job)
        self._take(index)
        if index is None:
            return
        refuse_other_run(self.store, index, self._run_id)
        held = {entry.path: entry.size_bytes for entry in self.store.list_files().files}
        self.files = {
            path: saved
            for path, saved in self.files.items()
            if held.get(saved.key) == saved.size_bytes
        }
        self._keys |= {path for path in held if path.startswith(PARTIAL)}

    def send(self, source: Path, entries: Sequence[Entry]) -> list[tuple[Entry, FileRecord]]:
        """Send files, prove them, and let them count from now on.

        Args:
            source: The folder of the run.
            entries: Files of it.

        Returns:
            The files that count now. Left out are units of which a file changed meanwhile.
        """
        places = {entry.path: self._free_place(entry.path) for entry in entries}
        self._keys |= {place + path for path, place in places.items()}
        self._write()
        records: dict[str, FileRecord] = {}
        changed: list[str] = []
        for place, store in self._places.items():
            chosen = [entry for entry in entries if places[entry.path] == place]
            if chosen:
                sent = store.upload(source, chosen, Meter(None, chosen), changed)
                read_back(store, sent, None)
                records |= {record.path: record for record in sent}
        broken = {unit_of(path) for path in changed}
        done = [entry for entry in entries if unit_of(entry.path) not in broken]
        for entry in done:
            record = records[entry.path]
            self.files[entry.path] = SavedFile(
                path=entry.path,
                size_bytes=record.size_bytes,
                sha256=record.sha256,
                mtime_ns=mtime_ns_of(entry),
                place=places[entry.path],
            )
        if done:
            self._write()
        return [(entry, records[entry.path]) for entry in done]

    def fetch(self, paths: Sequence[str], target: Path, meter: Meter) -> None:
        """Copy files that count to their paths below `target`, with the times that they had.

        Raises:
            CorruptData: If one of them is not what was saved.
            TreeChanged: If somebody changes them meanwhile.
        """
        held = {entry.path: entry for entry in self.store.list_files().files}
        for path in paths:
            saved = self.files[path]
            if saved.key not in held or held[saved.key].size_bytes != saved.size_bytes:
                found = f"{held[saved.key].size_bytes} bytes" if saved.key in held else "no file"
                raise self._damaged(saved, f"{found} instead of {saved.size_bytes} bytes")
        for place, store in self._places.items():
            chosen = [self.files[path] for path in paths if self.files[path].place == place]
            entries = [replace(held[saved.key], path=saved.path) for saved in chosen]
            for record in store.download(entries, target, meter) if entries else ():
                saved = self.files[record.path]
                if record.sha256 != saved.sha256:
                    raise self._damaged(saved, "other bytes than were saved")
                os.utime(target / saved.path, ns=(saved.mtime_ns, saved.mtime_ns))

    def drop(self, paths: Iterable[str]) -> None:
        """Let files no longer count."""
        gone = [path for path in paths if path in self.files]
        for path in gone:
            del self.files[path]
        if gone:
            self._write()

    def sweep(self) -> None:
        """Delete everything of ours that does not count."""
        if gone := self._uncounted():
            self.check_run()
            self.store.delete(gone)
            self._keys.difference_update(gone)
            self._write()

    def check_run(self) -> None:
        """See that no other run has taken the folder over.

        Raises:
            CheckpointsOfAnother: If one has.
        """
        standing = read_index(self.store)
        if standing is not None:
            refuse_other_run(self.store, standing, self._run_id)

    def _take(self, index: CheckpointIndex | None) -> None:
        files = index.files if index else ()
        self.files = {saved.path: saved for saved in files}
        self._keys = {saved.key for saved in files} | set(index.pending if index else ())

    def _free_place(self, path: str) -> str:
        """Return the place in which the new content of a file hides nothing that counts."""
        saved = self.files.get(path)
        return OTHER_PLACE if saved is not None and saved.place == "" else ""

    def _damaged(self, saved: SavedFile, found: str) -> CorruptData:
        do = "delete the folder there to start anew"
        return failure(CorruptData, self.store.url + saved.key, found, do)

    def _uncounted(self) -> list[str]:
        return sorted(self._keys - {saved.key for saved in self.files.values()})

    def _write(self, *, takes_over: bool = False) -> None:
        if not takes_over:
            self.check_run()
        index = CheckpointIndex(
            job=self._job,
            run_id=self._run_id,
            files=tuple(self.files[path] for path in sorted(self.files)),
            pending=tuple(self._uncounted()),
        )
        self.store.write(INDEX, index.model_dump_json(indent=1).encode())
