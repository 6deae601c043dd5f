"""Brings one version of a dataset into the cache, once for all jobs that ask for it.

What is there already is never moved again: files of a try that was killed, and files of an older
snapshot of the same source that did not change.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trainjob.errors import CorruptData, StoreError, TreeChanged
from trainjob.storage.archive_members import BadArchive
from trainjob.storage.cache.evict import Reservation, make_room
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.heartbeat import touching
from trainjob.storage.cache.incoming import Incoming
from trainjob.storage.cache.proof import (
    Comparison,
    compare_one_file,
    compare_with_receipt,
    told_beside,
)
from trainjob.storage.cache.removal import destroy
from trainjob.storage.cache.snapshot import FileLine, Header, Proof, Snapshot, now
from trainjob.storage.cache.source import Source, Unpacking
from trainjob.storage.failures import failure, local_failures
from trainjob.storage.listing import Entry, total_size
from trainjob.storage.local import LocalStore
from trainjob.storage.local_tree import changed, version_of
from trainjob.storage.manifest import FileRecord, fingerprint
from trainjob.storage.meter import Meter
from trainjob.storage.paths import check_case, check_paths, folds_case
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import open_store
from trainjob.storage.unpack import unpack_dataset

_TRIES = 3
"""How often a snapshot is made that is not to be had afterwards: evicted at once, spoiled, or its
place was taken meanwhile by one that was taken back."""


@dataclass(frozen=True, slots=True)
class Provided:
    """A snapshot that is kept for a job, and what it took to have it."""

    snapshot: Snapshot
    moved_bytes: int


def provide(
    cache: Cache, source: Source, settings: StoreSettings | None, *, label: str, holder: str
) -> Provided:
    """Return the snapshot of `source`, made now unless it is there.

    Args:
        cache: Where it is kept.
        source: What is asked for.
        settings: How to reach an object store; absent: the AWS_* environment.
        label: What watchers call the copy.
        holder: For whom the snapshot is kept from eviction until it is released.

    Raises:
        UnsafeKey: If a key cannot be a file; nothing was copied.
        TreeChanged: If the source changed since it was listed; retryable.
        CorruptData: If the bytes are not those of the receipt beside them; retryable.
        StoreError: For everything else that a store or the disk can do wrong.
    """
    cache.prepare()
    # What has no versions is nobody else's: it cannot be told from what is there tomorrow.
    asked = source.key if source.has_versions else f"{source.key}-{holder}"
    with local_failures(str(cache.root)):
        key = cache.free_key(asked)
        if snapshot := cache.leased(key, holder):
            return Provided(snapshot, 0)
        for _ in range(_TRIES):
            with cache.alone(source.id, lambda: cache.find(cache.free_key(asked)) is not None):
                key = cache.free_key(asked)
                if snapshot := cache.leased(key, holder):
                    return Provided(snapshot, 0)
                build = _Build(cache, source, settings, label)
                build.run(key)
            if snapshot := cache.leased(key, holder):
                return Provided(snapshot, build.moved_bytes)
    found = f"a spoiled copy that cannot be replaced ({str(cache.published / key)!r})"
    raise failure(StoreError, source.url, found, "remove it, as its owner, and run again")


class _Build:
    """Makes one snapshot. `moved_bytes` counts what came from the store."""

    def __init__(
        self, cache: Cache, source: Source, settings: StoreSettings | None, label: str
    ) -> None:
        self.moved_bytes = 0
        self._cache = cache
        self._source = source
        self._settings = settings
        self._label = label

    def run(self, key: str) -> None:
        """Make the snapshot `key` and publish it."""
        files = self._source.listing.files
        check_paths(self._source.url, [file.path for file in files], self._source.listing.folders)
        self._incoming = Incoming.taken_from(self._cache, self._source.id)
        try:
            with touching(lambda: [self._incoming.journal]):
                header, records = self._made()
                self._incoming.publish(key, header, records, self._versions())
        finally:
            self._incoming.give_up()
        self._drop_other_places(key)

    def _made(self) -> tuple[Header, list[FileRecord]]:
        if self._source.place:
            return self._read_in_place(self._source.place, is_one_file=self._source.is_one_file)
        if self._source.unpacks is not None:
            return self._unpack(self._source.unpacks)
        return self._download()

    def _versions(self) -> Mapping[str, str]:
        """Return the versions of the files as they are listed; those in an archive have none."""
        if self._source.unpacks is not None:
            return {}
        return {entry.path: entry.version for entry in self._source.listing.files}

    def _download(self) -> tuple[Header, list[FileRecord]]:
        data = self._incoming.folder / "data"
        if folds_case(self._incoming.folder):
            check_case(self._source.url, [file.path for file in self._source.listing.files])
        records = self._fetch("data")
        with local_failures(str(data)):
            for folder in self._source.listing.folders:
                (data / folder).mkdir(parents=True, exist_ok=True)
        proof = self._compared(records, data)
        return self._header(records, proof), records

    def _unpack(self, how: Unpacking) -> tuple[Header, list[FileRecord]]:
        if self._source.folder is None:
            [record] = self._fetch("archive")
            proof = self._compared_beside([record])
            try:
                records = self._unpacked(self._incoming.folder / "archive" / record.path, how)
            except StoreError as error:
                if proof == "size" and isinstance(error.__cause__, BadArchive):
                    self._incoming.forget([record.path])  # perhaps not what the store holds
                raise
        else:
            [entry] = self._source.listing.files
            self._incoming.keep((), "archive")
            # From where it lies: a copy of it would need as much of the disk again.
            with _staying(self._source.folder / entry.path, entry) as archive:
                proof = self._compared_beside([])
                records = self._unpacked(archive, how)
            self.moved_bytes = entry.size_bytes
        destroy(self._incoming.folder / "archive")
        return self._header(records, proof), records

    def _unpacked(self, archive: Path, how: Unpacking) -> list[FileRecord]:
        return unpack_dataset(
            archive,
            self._source.url,
            self._incoming.folder / "data",
            how.names,
            Meter(f"unpack {self._label}"),
            any_ratio=how.any_ratio,
            reserve=Reservation(self._cache, self._incoming.grow).more,
        )

    def _read_in_place(self, place: Path, *, is_one_file: bool) -> tuple[Header, list[FileRecord]]:
        listing = self._source.listing
        if self._cache.root.resolve().is_relative_to(place.resolve()):
            found = f"a folder that holds the cache itself, {str(self._cache.root)!r}"
            do = "give the folder of the data alone, or set TRAINJOB_CACHE_DIR to another place"
            raise failure(StoreError, self._source.url, found, do)
        with LocalStore(place.parent if is_one_file else place) as store:
            known = self._known_in_place()
            rest = _without(listing.files, known)
            records = known + store.digest(rest, Meter(self._label, rest))
            is_same = (
                store.find(place.name) == listing.files[0]
                if is_one_file
                else store.list_files() == listing
            )
            if not is_same:
                found, do = "it changed while it was read", "run again when nothing writes to it"
                raise failure(TreeChanged, self._source.url, found, do)
        proof = self._compared(records, place)
        if is_one_file:
            self._incoming.link(place)
        return replace(self._header(records, proof), place=place, is_one_file=is_one_file), records

    def _known_in_place(self) -> list[FileRecord]:
        """Return what was read of the files for an earlier snapshot, and did not change since."""
        versions = {(entry.path, entry.version) for entry in self._source.listing.files}
        found = {}
        for older in self._cache.of_source(self._source.id):
            with suppress(CorruptData):
                for line in older.files():
                    if (line.path, line.version) in versions:
                        found[line.path] = line.record()
        return list(found.values())

    def _fetch(self, part: Literal["data", "archive"]) -> list[FileRecord]:
        """Bring the files that are not there yet; return all of them, verified by the store."""
        listed = self._source.listing.files
        with open_store(self._source.folder_url, self._settings) as store:
            kept = self._incoming.keep(listed, part, store.part_bytes)
            target, parts = self._incoming.folder / part, self._incoming.parts
            if part == "data":
                kept += self._link_unchanged(_without(listed, kept), target)
            rest = _without(listed, kept)
            there_bytes = parts.size_bytes
            make_room(self._cache, total_size(rest) - there_bytes, len(rest))
            self._incoming.grow(total_size(rest) - there_bytes)
            meter = Meter(self._label, rest)
            moved = store.download(rest, target, meter, self._incoming.note, parts)
        self.moved_bytes = total_size(rest) - there_bytes
        return kept + moved

    def _link_unchanged(self, files: Sequence[Entry], target: Path) -> list[FileRecord]:
        """Take files from the newest older snapshot; what cannot be linked is fetched."""
        older = next(iter(self._cache.of_source(self._source.id)), None)
        if older is None or older.header.place or not files:
            return []
        try:
            known = {line.path: line for line in older.files()}
        except CorruptData:
            return []
        linked = []
        for entry in files:
            line = known.get(entry.path)
            if line and entry.version and line.version == entry.version:
                with suppress(OSError):
                    _link(older.data / entry.path, target / entry.path, line)
                    record = line.record()
                    self._incoming.note(record)
                    linked.append(record)
        return linked

    def _compared(self, records: list[FileRecord], folder: Path) -> Proof:
        """Compare the files with our receipt, if there is one among them, or beside the one."""
        if self._source.is_one_file:
            return self._compared_beside(records)
        return self._proof(compare_with_receipt(self._source.url, records, folder), records)

    def _compared_beside(self, records: list[FileRecord]) -> Proof:
        """Compare the one file with our receipt beside it, if there is one.

        Args:
            records: What arrived; nothing if it is on this machine, and read only if need be.
        """
        # No upload of ours writes there, and what a web server says of a file that nobody asked for
        # may be anything.
        if self._source.folder_url.startswith(("http://", "https://")):
            return _weakest(records)
        with open_store(self._source.folder_url, self._settings) as store:
            told = told_beside(store)
            if not told:
                return _weakest(records)
            if not records:
                listed = self._source.listing.files
                records = store.digest(listed, Meter(self._label, listed))
        is_all = not self._source.is_one_file
        return self._proof(compare_one_file(records[0], told, is_all=is_all), records)

    def _proof(self, found: Comparison, records: list[FileRecord]) -> Proof:
        """Return what a comparison proves; raise if a file is not what it should be."""
        if found.wrong:
            self._incoming.forget(found.wrong)
            what = f"not what its receipt says: {', '.join(sorted(found.wrong)[:5])}"
            do = "upload it again, or remove its folder _trainjob if it was changed on purpose"
            raise failure(CorruptData, self._source.url, what, do)
        return "receipt" if found.covers_all else _weakest(records)

    def _header(self, records: list[FileRecord], proof: Proof) -> Header:
        source = self._source
        return Header(
            url=source.url,
            source=source.id,
            num_files=len(records),
            size_bytes=sum(record.size_bytes for record in records),
            fingerprint=fingerprint(records),
            verified=proof,
            engine=source.engine,
            is_reusable=source.has_versions,
            created=now(),
        )

    def _drop_other_places(self, key: str) -> None:
        """Forget what a folder of this machine held before: nobody can ask for it again."""
        if self._source.place:
            for other in self._cache.of_source(self._source.id):
                # By key and not by age: clocks go back.
                if other.key != key:
                    self._cache.evict(other)


@contextmanager
def _staying(file: Path, entry: Entry) -> Iterator[Path]:
    """See before and after the block that a file of this machine is the one that was listed."""
    _refuse_another(file, entry)
    try:
        yield file
    except StoreError:  # of which this may be the reason
        _refuse_another(file, entry)
        raise
    _refuse_another(file, entry)


def _refuse_another(file: Path, entry: Entry) -> None:
    with local_failures(str(file)):
        if version_of(file) != entry.version:
            raise changed(file)


def _weakest(records: Sequence[FileRecord]) -> Proof:
    """Return what can be said of all files: what the engine compared each of them with."""
    found = {record.verified for record in records}
    if found == {"checksum"}:
        return "checksum"
    return "etag" if found and found <= {"checksum", "etag"} else "size"


def _without(files: Sequence[Entry], records: Sequence[FileRecord]) -> list[Entry]:
    there = {record.path for record in records}
    return [entry for entry in files if entry.path not in there]


def _link(file: Path, copy: Path, line: FileLine) -> None:
    """Give an unchanged file a second name.

    Raises:
        OSError: If that cannot be done, or it is not the file that was verified once.
    """
    stat = file.lstat()
    if (stat.st_size, stat.st_mtime_ns) != (line.size_bytes, line.mtime_ns):
        raise FileNotFoundError(file)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.hardlink_to(file)
