"""One dataset in the cache, exactly as it was listed, with its manifest and those who use it.

::

    <cache>/v1/<key>/data/            the files, read-only
                     snapshot.json    where they came from, how many, and their fingerprint
                     files.json       every file: path, size, version, sha256, mtime
                     used             touched when a job takes it; holds the boots of machines
                     leases/          one empty file a job that uses it now: HOLDER@MACHINE@OWNER
                     taken-back.json  snapshot.json of what was found wrong while a job uses it

A folder of this machine is used where it lies: its snapshot has a manifest and no data. So is one
file, to which there is a link in ``data``.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import Literal, NamedTuple

from trainjob.errors import CorruptData, StoreError
from trainjob.storage import manifest
from trainjob.storage.cache.lease import Lease, leases_in
from trainjob.storage.cache.owner import boot_id
from trainjob.storage.failures import failure
from trainjob.storage.local_tree import list_folder

Proof = Literal["receipt", "checksum", "etag", "size"]
"""What the bytes of every file were compared with: our receipt beside them, the checksum that the
store keeps of them, the MD5 that it tells of them, or of some, or of one or more only the size, of
the version that was listed."""

_HEADER, _FILES, _USED = "snapshot.json", "files.json", "used"
_TAKEN_BACK = "taken-back.json"
_HEADERS = (_HEADER, _TAKEN_BACK)  # in this order, since the first may become the second
_MAX_BOOTS = 256  # machines that share one disk; who is forgotten looks once more


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a snapshot says of itself."""

    format: Literal[1] = 1
    """Version of this file's form."""

    url: str
    """Where the files came from."""

    source: str
    """Digest of the url, of the endpoint of its store, and of how archives are unpacked."""

    place: Path | None = None
    """The folder or file that is used where it lies; absent: the files are in the snapshot."""

    is_one_file: bool = False
    """Whether `place` is a file."""

    num_files: int
    size_bytes: int

    fingerprint: str
    """That of the files by content, see `trainjob.storage.manifest.fingerprint`."""

    verified: Proof
    engine: str
    """What brought the files."""

    is_reusable: bool = True
    """Whether the store tells versions apart, so that another job may take these files."""

    created: str
    """When they were verified, UTC, ISO 8601."""

    @classmethod
    def read(cls, file: Path) -> "Header | None":
        """Return what a file says; None if there is none, or none of this form."""
        try:
            said = json.loads(file.read_bytes())
            known = {field.name: said[field.name] for field in fields(cls) if field.name in said}
            header = cls(**{**known, "place": Path(said["place"]) if said["place"] else None})
        except (OSError, ValueError, TypeError, LookupError):
            return None
        return header if header.format == 1 else None

    def text(self) -> str:
        """Return the content of a file, for `read`."""
        place = str(self.place) if self.place else None
        return json.dumps(asdict(self) | {"place": place}, indent=2)


class FileLine(NamedTuple):
    """One file of a snapshot."""

    path: str
    size_bytes: int
    version: str
    sha256: str
    mtime_ns: int
    proof: manifest.Proof = ""

    def record(self) -> manifest.FileRecord:
        """Return what was verified of it."""
        return manifest.FileRecord(self.path, self.size_bytes, self.sha256, verified=self.proof)

    def text(self) -> str:
        """Return it as JSON."""
        # As `json.dumps` would write it, which takes three times as long.
        path, version = _quoted(self.path), _quoted(self.version)
        rest = f'{self.size_bytes}, {version}, "{self.sha256}", {self.mtime_ns}, "{self.proof}"'
        return f"[{path}, {rest}]"


class Snapshot:
    """The snapshot in the folder `root`.

    Attributes:
        root: The folder.
        header: What it says of itself.
        is_taken_back: Whether it was found wrong, and is left to the jobs that use it alone.
    """

    def __init__(self, root: Path, header: Header, *, is_taken_back: bool = False) -> None:
        self.root = root
        self.header = header
        self.is_taken_back = is_taken_back

    @classmethod
    def read(cls, root: Path) -> "Snapshot | None":
        """Return the snapshot in a folder; None if there is none that can be read."""
        for name in _HEADERS:
            if header := Header.read(root / name):
                return cls(root, header, is_taken_back=name == _TAKEN_BACK)
        return None

    @property
    def key(self) -> str:
        """Its name in the cache."""
        return self.root.name

    @property
    def data(self) -> Path:
        """The folder with the files."""
        place = self.header.place
        return self.root / "data" if place is None or self.header.is_one_file else place

    @property
    def stored_bytes(self) -> int:
        """What it takes of the disk at most; files that two snapshots share count for both."""
        return 0 if self.header.place else self.header.size_bytes

    def files(self) -> list[FileLine]:
        """Return every file of the manifest.

        Raises:
            CorruptData: If it is spoiled, by a power cut or by who may write there.
        """
        file = self.root / _FILES
        try:
            return [FileLine(*line) for line in json.loads(file.read_bytes())]
        except (FileNotFoundError, ValueError, TypeError) as error:
            found = f"a manifest that cannot be read ({error})"
            do = "run a job that uses the dataset, which is then fetched again"
            raise failure(CorruptData, str(file), found, do) from error

    def lease(self, holder: str) -> bool:
        """Note that this process uses it for `holder`.

        Returns:
            False if it is gone meanwhile, or taken back, and then not used for `holder` any more.

        Raises:
            ValueError: If the name of the holder cannot be that of a file.
        """
        lease = Lease.of(self.root, holder)
        try:
            lease.file.touch()
        except FileNotFoundError:
            return False
        if self.is_there():
            return True
        lease.file.unlink(missing_ok=True)
        return False

    def is_there(self) -> bool:
        """Say whether a job may still take it: it was not removed or taken back meanwhile."""
        return (self.root / _HEADER).exists()

    def is_leased(self, holder: str) -> bool:
        """Say whether what this process leased for `holder` is still what is there."""
        return Lease.of(self.root, holder).file.exists()

    def is_as_left(self) -> bool:
        """Say whether it can be taken as it is, and note that it is used.

        Its files are looked at only if a job ended without looking, or the machine fell. Else they
        are counted: disks for passing work are cleared of what nobody read for long, file by file.
        """
        gone = [lease for lease in self.leases() if not lease.is_alive()]
        boots = self._boots()
        is_same_boot = boot_id() in boots
        if self.data != self.header.place:
            is_doubted = gone or not is_same_boot
            # One too many is no reason: what a script adds is told of when its job ends.
            if self.differences() if is_doubted else _num_files(self.data) < self.header.num_files:
                return False
        for lease in gone:
            lease.file.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk keeps nobody from using what is there
            if is_same_boot:
                os.utime(self.root / _USED)
            else:
                known = [*boots, boot_id()][-_MAX_BOOTS:]
                (self.root / _USED).write_text("\n".join(known))
        return True

    def leases(self) -> list[Lease]:
        """Return who uses it, those who are gone without a word too."""
        return leases_in(self.root)

    def users(self) -> list[Lease]:
        """Return who may still be using it."""
        return [lease for lease in self.leases() if lease.is_alive()]

    def used_at(self) -> float:
        """Return when a job last took it, in seconds since 1970."""
        try:
            return (self.root / _USED).stat().st_mtime
        except OSError:
            return 0.0

    def take_back(self) -> None:
        """Let it be for nobody any more but for who uses it.

        Raises:
            OSError: If this user may not.
        """
        with suppress(FileNotFoundError):
            (self.root / _HEADER).rename(self.root / _TAKEN_BACK)

    def differences(self) -> list[str]:
        """Return what is not as the manifest says, by size and time alone; nothing is read."""
        try:
            known = {line.path: line for line in self.files()}
            found = dict(self._found())
        except StoreError as error:  # no manifest, or a folder in place that cannot be listed
            return [str(error)]
        problems = [f"{path}: missing" for path in sorted(known.keys() - found.keys())]
        problems += [f"{path}: added" for path in sorted(found.keys() - known.keys())]
        for path, line in known.items():
            if path in found and found[path] not in (
                (line.size_bytes, line.mtime_ns),
                line.version,
            ):
                problems.append(f"{path}: changed")
        return problems

    def _found(self) -> Iterator[tuple[str, tuple[int, int] | str]]:
        """Yield each file that is there, with what tells that it is the one of the manifest."""
        if self.header.place is None:
            yield from sizes_and_times(self.data)
            return
        yield from ((e.path, e.version) for e in list_folder(self.data).files)

    def _boots(self) -> list[str]:
        """Return during which boots of machines a job took it after its files were looked at."""
        try:
            return (self.root / _USED).read_text().splitlines()
        except (OSError, ValueError):
            return []


def is_broken(root: Path) -> bool:
    """Say whether a folder is where a snapshot should be, and does not say what it is.

    A power cut may leave such. What this user may not read is not broken.
    """
    for name in _HEADERS:
        try:
            (root / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError:
            return False
        return Snapshot.read(root) is None
    return root.is_dir()


def _num_files(folder: Path) -> int:
    """Count the files below `folder`, links as files, without a look at each."""
    return sum(1 for _ in _files_below(folder))


def sizes_and_times(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield path, size and mtime of every file below `folder`, links as they are."""
    for path, item in _files_below(folder):
        try:
            stat = item.stat(follow_symlinks=False)
        except FileNotFoundError:  # it was deleted since its folder was read
            continue
        yield path, (stat.st_size, stat.st_mtime_ns)


def _files_below(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    pending = [(str(folder), "")]
    while pending:
        path, prefix = pending.pop()
        with suppress(FileNotFoundError), os.scandir(path) as items:
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    pending.append((item.path, f"{prefix}{item.name}/"))
                else:
                    yield prefix + item.name, item


def write_manifest(root: Path, header: Header, files: Iterable[FileLine]) -> None:
    """Write what makes a snapshot of the folder `root`, so that it is on the disk when this ends.

    Without that, a power cut could keep the rename that publishes the folder, and lose what is in
    these files. The data is not waited for, which may take as long again as to fetch it: after a
    restart, size and time of every file are compared with the manifest.
    """
    (root / "leases").mkdir(exist_ok=True)
    (root / _USED).write_text(boot_id())
    _write_to_disk(root / _FILES, _json_lines(files))
    _write_to_disk(root / _HEADER, [header.text()])
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _json_lines(files: Iterable[FileLine]) -> Iterator[str]:
    """Yield the text of a list piece by piece, which takes less memory than all of it."""
    before = "["
    for file in files:
        yield f"{before}{file.text()}"
        before = ",\n"
    yield "]" if before != "[" else "[]"


def _write_to_disk(file: Path, text: Iterable[str]) -> None:
    with file.open("w") as opened:
        opened.writelines(text)
        opened.flush()
        os.fsync(opened.fileno())


def now() -> str:
    """Return the time for `Header.created`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
