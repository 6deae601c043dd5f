"""The checkpoint folder of a job in a store, changed by one run so that it always can be restored.

Every change follows the same order: the index announces what will be written, the files are sent
and read back, the index names them, and only then what it no longer names is deleted.

Another run may take the folder over at any moment; from then on what it finds is what counts. It
writes its claim first and reads the index after that. The run that loses looks at the claim before
it deletes anything and after each write of its index, so it ends before its next change. What was
under way at the moment of the claim still happens, and does no harm but in one case:

- Its index. It is a file that nobody reads once the other run has begun its own. Read before that,
  it names a whole set, too: the files were verified, and those that it no longer names still exist.
- A delete. It meets files that no index named at the time of the claim. If the other run has sent
  a file to the same name since, its next pass misses it there and sends it again.
- The files of one `send`. Their names were announced, so the other run deletes them; what arrives
  after that lies there unnamed. Only if the other run has sent a file to the same name meanwhile,
  and within the time of this one `send`, is that overwritten. A restore finds it damaged: it
  leaves a step out, and refuses to start with a file of another program.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from trainjob.errors import CorruptData, StoreNotFound, TreeChanged
from trainjob.storage.checkpoint_claim import (
    CheckpointClaim,
    claim_of_job,
    files_in,
    read_claim,
    refuse_other_run,
    write_claim,
)
from trainjob.storage.checkpoint_index import (
    OTHER_PLACE,
    CheckpointIndex,
    SavedFile,
    index_paths,
    is_index_of,
    next_index,
    standing_index,
)
from trainjob.storage.checkpoint_units import unit_of
from trainjob.storage.failures import failure
from trainjob.storage.listing import Entry
from trainjob.storage.local import PARTIAL
from trainjob.storage.local_tree import mtime_ns_of
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.read_back import read_back
from trainjob.storage.send import discard_unfinished
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import Store, open_store

_STALE_S = 3600.0
"""The age from which on a temporary file counts as left by a process that was killed. A younger one
may be the claim of a run that is just taking the folder over."""


class CheckpointStore:
    """The folder at `url`, for the run `run_id` of `job`. Use it in a ``with``.

    Attributes:
        store: The folder.
        files: The files that count, by path; of the last `load` or `claim` and what came after.
        links: Which of these were links, by path: where each led from its folder.
    """

    def __init__(self, url: str, settings: StoreSettings | None, *, job: str, run_id: str) -> None:
        self.store = open_store(url, settings)
        self.files: dict[str, SavedFile] = {}
        self.links: dict[str, str] = {}
        self._places: dict[str, Store] = {
            "": self.store,
            OTHER_PLACE: open_store(self.store.url + OTHER_PLACE, settings),
        }
        self._job = job
        self._run_id = run_id
        self._keys: set[str] = set()
        self._path = ""
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
            CheckpointsOfAnother: If the folder does not belong to the job, or another run takes it
                over at the same time.
        """
        self._claim(claim_of_job(self.store, self._job))

    def load(self) -> None:
        """Read what is there. Files that somebody deleted in the store do not count any longer.

        An empty folder is claimed.

        Raises:
            CheckpointsOfAnother: If the folder belongs to another job or run.
        """
        standing = claim_of_job(self.store, self._job)
        if standing is None:
            self._claim(None)
            return
        refuse_other_run(self.store, standing, self._run_id)
        held = files_in(self.store)
        found = standing_index(self.store, held, self._run_id)
        if found is not None and is_index_of(found[0], self._run_id):
            self._path = found[0]
            self._take(found[1])
        else:  # this run was killed when it took the folder over
            self._begin(held, self._run_id)
        self.files = {
            path: saved
            for path, saved in self.files.items()
            if saved.key in held and held[saved.key].size_bytes == saved.size_bytes
        }
        self._keys |= {path for path, entry in held.items() if _is_left_over(entry)}

    def send(
        self,
        source: Path,
        entries: Sequence[Entry],
        announce: Callable[[Sequence[FileRecord]], object],
    ) -> list[tuple[Entry, FileRecord]]:
        """Send files, prove them, and let them count from now on.

        Args:
            source: The folder of the run.
            entries: Files of it.
            announce: Hears of the files that are there, before they count.

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
                with self.blaming_other_run():
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
            announce([records[entry.path] for entry in done])
            self._write()
        return [(entry, records[entry.path]) for entry in done]

    def fetch(self, paths: Sequence[str], target: Path, meter: Meter) -> None:
        """Copy files that count to their paths below `target`, with the times that they had.

        Raises:
            CorruptData: If one of them is not what was saved.
            TreeChanged: If somebody changes them meanwhile.
        """
        held = files_in(self.store)
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

    def note_links(self, links: Mapping[str, str]) -> None:
        """Note which of the files are links now, and of what."""
        self.links = dict(links)
        self._write()

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
        """See that no other run has taken the folder over; claim it again if it was emptied.

        Raises:
            CheckpointsOfAnother: If one has.
        """
        standing = read_claim(self.store)
        if standing is None:  # somebody has emptied the folder, so it is free
            write_claim(self.store, self._job, self._run_id)
        else:
            refuse_other_run(self.store, standing, self._run_id)

    @contextmanager
    def blaming_other_run(self) -> Iterator[None]:
        """Raise `CheckpointsOfAnother` for files that are gone or changed if that is why."""
        try:
            yield
        except (CorruptData, StoreNotFound, TreeChanged):
            self.check_run()
            raise

    def _claim(self, standing: CheckpointClaim | None) -> None:
        # First the claim: what the other run deletes after it did not count when the index is read.
        write_claim(self.store, self._job, self._run_id)
        self._begin(files_in(self.store), standing.run_id if standing else self._run_id)

    def _begin(self, held: Iterable[str], owner: str) -> None:
        """Begin the index of this run with what counts in the folder, and end those before it.

        Args:
            held: The files of the folder, listed after it was claimed.
            owner: The run whose index counts until now.
        """
        found = standing_index(self.store, held, owner)
        self._path = next_index(held, self._run_id)
        self._take(found[1] if found else CheckpointIndex(files=()))
        self._write()
        # Before anything else is deleted: who still takes one of these finds all that it names.
        self.store.delete(index_paths(held, owner))
        discard_unfinished(self.store, self._keys)

    def _take(self, index: CheckpointIndex) -> None:
        self.files = {saved.path: saved for saved in index.files}
        self.links = dict(index.links)
        self._keys = {saved.key for saved in index.files} | set(index.pending)

    def _free_place(self, path: str) -> str:
        """Return the place in which the new content of a file hides nothing that counts."""
        saved = self.files.get(path)
        return OTHER_PLACE if saved is not None and saved.place == "" else ""

    def _damaged(self, saved: SavedFile, found: str) -> CorruptData:
        do = "delete the folder there to start anew"
        return failure(CorruptData, self.store.url + saved.key, found, do)

    def _uncounted(self) -> list[str]:
        return sorted(self._keys - {saved.key for saved in self.files.values()})

    def _write(self) -> None:
        index = CheckpointIndex(
            files=tuple(self.files[path] for path in sorted(self.files)),
            links=self.links,
            pending=tuple(self._uncounted()),
        )
        self.store.write(self._path, index.model_dump_json(indent=1).encode())
        self.check_run()


def _is_left_over(entry: Entry) -> bool:
    """Say whether a file of a listing is a temporary one of a process that was killed."""
    if not entry.path.startswith(PARTIAL):
        return False
    try:
        written_ns = mtime_ns_of(entry)
    except (IndexError, ValueError):  # a copy of it in an object store
        return True
    return time.time_ns() - written_ns > _STALE_S * 1e9
