"""What `cache verify` finds wrong while a job uses it: left to this job, in nobody else's way."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trainjob.storage.cache.evict import make_room, removable, stored_bytes
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import hold, release
from trainjob.storage.cache.incoming import Incoming
from trainjob.storage.cache.owner import Owner
from trainjob.storage.cache.snapshot import Snapshot
from trainjob.storage.cache.verify import take_back, wrong_files
from trainjob.storage.stage import StagedChannel, stage_channel

Stage = Callable[[str], StagedChannel]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Cache:
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")


@pytest.fixture
def stage(s3_place, cache, tmp_path) -> Stage:
    """Stage the dataset of one file for a job of this name; its channel is at tmp_path/NAME."""
    s3_place.put("file", b"right")

    def run(name: str) -> StagedChannel:
        return stage_channel(
            s3_place.url, tmp_path / name, s3_place.settings, label="data", holder=name
        )

    return run


@pytest.fixture
def used_by(tmp_path) -> Callable[[str], Snapshot]:
    """Return what a job of this name uses."""

    def run(name: str) -> Snapshot:
        snapshot = Snapshot.read((tmp_path / name).resolve().parent)
        assert snapshot is not None
        return snapshot

    return run


@pytest.fixture
def spoil(cache) -> Callable[[Snapshot], None]:
    """Let a bit flip on the disk, and `cache verify` find it."""

    def run(snapshot: Snapshot) -> None:
        file = snapshot.data / "file"
        stat = file.stat()
        file.chmod(0o644)
        file.write_bytes(b"RIGHT")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert wrong_files(snapshot) == ["file: other bytes"]
        take_back(cache, snapshot)

    return run


@pytest.fixture
def no_versions(monkeypatch) -> None:
    """Let the store tell no versions of its files."""
    monkeypatch.setattr(
        "trainjob.storage.cache.source.Source.has_versions", property(lambda _: False)
    )


def test_a_run_that_ends_is_told_and_the_last_one_removes_the_data(stage, used_by, spoil, cache):
    stage("first")
    stage("second")
    snapshot = used_by("first")
    spoil(snapshot)

    [first] = release(cache, "first")
    after_first = [lease.holder for lease in snapshot.leases()]
    [second] = release(cache, "second")

    found = f"cache verify found files of the input {snapshot.header.url} damaged while the run"
    assert found in first
    assert found in second
    assert after_first == ["second"]
    assert not snapshot.root.exists()


def test_what_replaced_it_is_for_all_and_goes_back_to_its_place_at_no_cost(
    stage, used_by, spoil, cache, tmp_path
):
    stage("used")
    wrong = used_by("used")
    spoil(wrong)

    next_one, another = stage("next"), stage("another")
    released = release(cache, "used")
    last = stage("last")

    assert (next_one.moved_bytes, another.moved_bytes) == (5, 0)
    assert used_by("another").root == used_by("next").root == Path(f"{wrong.root}-2")
    assert len(released) == 1
    assert (last.moved_bytes, last.verified) == (0, "etag")
    assert used_by("last").root == wrong.root
    assert (tmp_path / "last" / "file").samefile(tmp_path / "next" / "file")
    assert release(cache, "last") == []


def test_what_replaced_it_may_be_found_wrong_as_well(stage, used_by, spoil, cache, tmp_path):
    for number, name in enumerate(("first", "second", "third"), 1):
        stage(name)
        assert (tmp_path / name / "file").read_bytes() == b"right"
        assert used_by(name).key.endswith(f"-{number}") == (number > 1)
        spoil(used_by(name))

    for name in ("first", "second", "third"):
        assert len(release(cache, name)) == 1
    assert list(cache.published.iterdir()) == []


@pytest.mark.usefixtures("no_versions")
def test_a_run_has_its_own_again_of_a_store_without_versions(
    stage, used_by, spoil, cache, tmp_path
):
    """A process of it in a container that was killed keeps the place of the first for a week."""
    stage("run.data")
    (used_by("run.data").root / "leases" / f"run.data@@{Owner('12345678', 1, 1, 1)}").touch()
    spoil(used_by("run.data"))

    is_held = hold(cache, tmp_path / "run.data", "run.data")
    stage("run.data")

    assert not is_held
    assert (tmp_path / "run.data" / "file").read_bytes() == b"right"
    assert used_by("run.data").key.endswith("-run.data-2")


def test_a_run_that_trained_with_other_data_is_told_nothing(stage, used_by, spoil, cache, tmp_path):
    """It was found out between staging and training, and staged again."""
    stage("job")
    spoil(used_by("job"))

    is_held = hold(cache, tmp_path / "job", "job")
    left = list(cache.published.iterdir())
    stage("job")

    assert not is_held
    assert left == []
    assert release(cache, "job") == []


def test_a_script_that_wrote_into_its_input_is_told_of_after_verify_too(
    stage, used_by, cache, tmp_path
):
    stage("job")
    snapshot = used_by("job")
    (snapshot.data / "file").chmod(0o644)
    (snapshot.data / "file").write_bytes(b"of the script")
    take_back(cache, snapshot)

    [note] = release(cache, "job")

    assert note.startswith(f"the script wrote into its input {snapshot.header.url}")
    assert not snapshot.root.exists()


def test_nobody_takes_a_lease_while_it_is_taken_back(stage, used_by, cache, monkeypatch):
    stage("job")
    are_locked, take = [], Snapshot.take_back

    def look_and_take(snapshot: Snapshot) -> None:
        with (cache.root / "locks" / "leases").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                are_locked.append(True)
        take(snapshot)

    monkeypatch.setattr(Snapshot, "take_back", look_and_take)

    take_back(cache, used_by("job"))

    assert are_locked == [True]


def test_a_place_that_was_taken_back_while_its_data_was_fetched_is_tried_again(
    stage, used_by, spoil, tmp_path, monkeypatch
):
    stage("first")
    wrong = used_by("first").root
    spoil(used_by("first"))
    wrong.rename(tmp_path / "aside")
    publish = Incoming.publish

    def publish_late(*arguments) -> None:
        if not wrong.exists():
            (tmp_path / "aside").rename(wrong)
        publish(*arguments)

    monkeypatch.setattr(Incoming, "publish", publish_late)

    second = stage("second")

    assert used_by("second").root == Path(f"{wrong}-2")
    assert (tmp_path / "second" / "file").read_bytes() == b"right"
    assert second.moved_bytes == 0  # the first try has it


def test_its_size_is_what_it_says_of_itself(stage, used_by, spoil, cache):
    """There may be millions of files to look at, and room is made for every GiB of an archive."""
    stage("job")
    spoil(used_by("job"))
    (used_by("job").root / "not counted").write_bytes(bytes(1000))

    assert stored_bytes(cache) == 5


def test_it_is_removed_first_as_soon_as_nobody_uses_it(stage, used_by, spoil, s3_place, cache):
    stage("old")
    release(cache, "old")
    os.utime(used_by("old").root / "used", (1000, 1000))
    s3_place.put("file", b"later")
    stage("job")
    wrong = used_by("job")
    take_back(cache, wrong)
    while_in_use = [unused.snapshot for unused in removable(cache)]
    for lease in wrong.leases():
        lease.file.unlink()
    cache.max_size_bytes = 5

    make_room(cache, 0, 0)

    assert [snapshot.key for snapshot in while_in_use if snapshot] == [used_by("old").key]
    assert [snapshot.key for snapshot in cache.snapshots()] == [used_by("old").key]
