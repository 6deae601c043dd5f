"""A cache that a power cut, a full disk or a process that hangs left in a bad state."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainjob.errors import StoreError, StoreUnavailable
from trainjob.storage.cache import folder
from trainjob.storage.cache import snapshot as snapshot_module
from trainjob.storage.cache.evict import removable, remove_unused
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import hold, release
from trainjob.storage.cache.snapshot import Snapshot
from trainjob.storage.cache.verify import wrong_files
from trainjob.storage.deadline import Deadline, ending_at
from trainjob.storage.stage import stage_channel

ANOTHER_BOOT = "a boot before"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Cache:
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")


@pytest.fixture
def stage(s3_place, cache, tmp_path):
    """Stage the dataset of one file for a job of this name; return what is cached."""
    s3_place.put("file", b"right")

    def run(name: str) -> Snapshot:
        target = tmp_path / name
        stage_channel(s3_place.url, target, s3_place.settings, label="data", holder=name)
        snapshot = Snapshot.read(target.resolve().parent)
        assert snapshot is not None
        return snapshot

    return run


@pytest.fixture
def full_disk(tmp_path, monkeypatch, cache) -> Iterator[Path]:
    """A disk, with the cache on it, that a test fills: with bytes, or with names of files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = "size=1m,nr_inodes=40"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a tmpfs")
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(disk / "cache"))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> None:
    (disk / "of another").write_bytes(bytes(shutil.disk_usage(disk).free))


def fill_with_names(disk: Path) -> None:
    for number in range(os.statvfs(disk).f_ffree):
        (disk / f"{number}").touch()


def empty(file: Path) -> None:
    """Leave of a file what a power cut leaves that came before its content was written."""
    file.write_bytes(b"")


def restart(snapshot: Snapshot) -> None:
    """Let the machine have been started anew since the snapshot was made."""
    (snapshot.root / "used").write_text(ANOTHER_BOOT)


def test_a_snapshot_is_on_the_disk_before_it_is_published(stage, cache, monkeypatch):
    synced, fsync = {}, os.fsync

    def note(file: int) -> None:
        path = Path(f"/proc/self/fd/{file}").readlink()
        synced[path.name] = path.is_relative_to(cache.incoming)
        fsync(file)

    monkeypatch.setattr(os, "fsync", note)

    stage("job")

    [folder_of_snapshot] = synced.keys() - {"files.json", "snapshot.json"}
    assert folder_of_snapshot.count("-") == 3
    assert all(synced.values())


@pytest.mark.parametrize("name", ["files.json", "snapshot.json"])
@pytest.mark.parametrize("spoil", [empty, Path.unlink], ids=["empty", "gone"])
def test_a_manifest_that_a_power_cut_spoiled_is_made_anew(stage, cache, tmp_path, name, spoil):
    first = stage("first")
    restart(first)
    spoil(first.root / name)

    second = stage("second")

    assert (tmp_path / "second" / "file").read_bytes() == b"right"
    assert [line.path for line in second.files()] == ["file"]
    assert [found.key for found in cache.snapshots()] == [first.key]


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[[1]]", b"\xff"])
def test_a_job_whose_manifest_was_spoiled_ends_with_a_note(stage, cache, content):
    snapshot = stage("job")
    (snapshot.root / "files.json").write_bytes(content)

    [note] = release(cache, "job")

    assert f"{snapshot.root / 'files.json'}: a manifest that cannot be read" in note
    assert cache.snapshots() == []


def test_files_of_a_version_without_manifest_are_fetched(stage, s3_place, tmp_path):
    empty(stage("first").root / "files.json")
    s3_place.put("added", b"2")

    stage("second")

    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == ["added", "file"]


def test_a_manifest_that_cannot_be_read_is_a_problem_that_verify_tells(stage):
    snapshot = stage("job")
    empty(snapshot.root / "files.json")

    [problem] = wrong_files(snapshot)

    assert "a manifest that cannot be read" in problem


def test_what_is_no_snapshot_any_more_can_be_removed(stage, cache):
    snapshot = stage("job")
    empty(snapshot.root / "snapshot.json")
    while_in_use = list(removable(cache))
    for lease in snapshot.leases():
        lease.file.unlink()

    [unused] = removable(cache)

    assert while_in_use == []
    assert unused.path == snapshot.root
    assert unused.size_bytes >= len(b"right")
    assert remove_unused(cache, unused)
    assert list(cache.published.iterdir()) == []


def test_what_was_made_anew_meanwhile_is_not_removed(stage, cache):
    snapshot = stage("job")
    for lease in snapshot.leases():
        lease.file.unlink()
    content = (snapshot.root / "snapshot.json").read_bytes()
    empty(snapshot.root / "snapshot.json")
    [unused] = removable(cache)
    (snapshot.root / "snapshot.json").write_bytes(content)

    assert not remove_unused(cache, unused)
    assert [found.key for found in cache.snapshots()] == [snapshot.key]


def test_an_empty_journal_is_no_journal(stage, s3_place, cache, tmp_path):
    """As a power cut may leave it."""
    cache.prepare()
    snapshot = stage("first")
    source = snapshot.header.source
    left = cache.incoming / f"{source}-00000000.0.0.0-1"
    left.mkdir()
    (left / "journal").touch()
    s3_place.put("added", b"2")

    stage("second")

    assert (tmp_path / "second" / "added").read_bytes() == b"2"


def test_a_full_disk_keeps_nobody_from_what_is_cached(full_disk, stage, tmp_path):
    snapshot = stage("first")
    (snapshot.root / "used").unlink()
    fill(full_disk)

    stage("second")

    assert (tmp_path / "second" / "file").read_bytes() == b"right"


def test_a_disk_without_room_for_a_lease_is_told(full_disk, stage, tmp_path):
    stage("first")
    fill_with_names(full_disk)

    with pytest.raises(StoreError, match="No space left on device; see that the disk") as caught:
        stage("second")
    with pytest.raises(StoreError, match="No space left on device; see that the disk"):
        hold(Cache.of_machine(), tmp_path / "first", "another")

    assert str(full_disk) in str(caught.value)


def test_a_process_that_hangs_with_the_lock_of_the_leases_stops_nobody(
    stage, cache, tmp_path, monkeypatch
):
    monkeypatch.setattr(folder, "_LEASES_S", 0.1)
    stage("first")

    with (cache.root / "locks" / "leases").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stage("second")
        release(cache, "second")

    assert (tmp_path / "second" / "file").read_bytes() == b"right"


def test_nobody_waits_for_a_lock_beyond_the_deadline(stage, cache):
    stage("first")

    with (cache.root / "locks" / "leases").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ending_at(Deadline(0.1)), pytest.raises(StoreUnavailable, match="in the time that"):
            stage("second")


def test_machines_that_take_turns_look_at_every_file_once_each(stage, monkeypatch):
    """On a disk that they share; with a million files each look takes minutes."""
    looks, look = [], Snapshot.differences

    def note(snapshot: Snapshot) -> list[str]:
        looks.append(boot)
        return look(snapshot)

    monkeypatch.setattr(Snapshot, "differences", note)

    for number, boot in enumerate(["one", "two", "one", "two", "one", "two started again", "two"]):
        monkeypatch.setattr(snapshot_module, "boot_id", lambda boot=boot: boot)
        stage(f"{number}")

    assert looks == ["two", "two started again"]


def test_who_took_a_snapshot_is_remembered_of_so_many_machines(stage, monkeypatch):
    """So that its file does not grow for ever."""
    monkeypatch.setattr(snapshot_module, "_MAX_BOOTS", 2)

    for boot in ("one", "two", "three"):
        monkeypatch.setattr(snapshot_module, "boot_id", lambda boot=boot: boot)
        found = stage(boot)

    assert (found.root / "used").read_text().split() == ["two", "three"]


def test_the_lock_of_the_leases_is_free_while_files_are_looked_at(stage, cache, monkeypatch):
    restart(stage("first"))
    is_free, look = [], Snapshot.differences

    def look_and_lock(snapshot: Snapshot) -> list[str]:
        with (cache.root / "locks" / "leases").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free.append(True)
        return look(snapshot)

    monkeypatch.setattr(Snapshot, "differences", look_and_lock)

    stage("second")

    assert is_free == [True]


def test_what_was_replaced_while_its_files_were_looked_at_stays(
    stage, cache, tmp_path, monkeypatch
):
    """Another process found out the same, and was faster."""
    spoiled = stage("first")
    restart(spoiled)
    (spoiled.data / "file").chmod(0o644)
    (spoiled.data / "file").write_bytes(b"WRONG")
    look = Snapshot.differences
    replaced: list[bool] = []

    def look_slowly(snapshot: Snapshot) -> list[str]:
        found = look(snapshot)
        if not replaced:
            replaced.append(True)
            stage("faster")
        return found

    monkeypatch.setattr(Snapshot, "differences", look_slowly)

    stage("slower")

    assert (tmp_path / "faster" / "file").read_bytes() == b"right"
    assert (tmp_path / "slower" / "file").read_bytes() == b"right"
    assert len(cache.snapshots()[0].leases()) == 2


def test_what_cannot_be_replaced_is_told_and_not_fetched_for_ever(stage, monkeypatch):
    stage("first")
    monkeypatch.setattr(Snapshot, "is_as_left", lambda _: False)
    monkeypatch.setattr(Cache, "discard", lambda *_: None)

    with pytest.raises(StoreError, match="a spoiled copy that cannot be replaced"):
        stage("second")


def test_a_holder_is_the_name_of_a_file(stage):
    """With a slash, its lease would be elsewhere and keep nothing."""
    snapshot = stage("job")

    with pytest.raises(ValueError, match="'a/b'; give a name without a slash"):
        snapshot.lease("a/b")
