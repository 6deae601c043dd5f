"""Channels through the cache: every byte moved once, for all jobs, and never mixed or spoiled."""

import hashlib
import os
import stat
import threading
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from tests.interruptions import stopped_everywhere
from tests.s3_faults import fault_proxy
from tests.waiting import PATIENCE_S
from trainjob.errors import CorruptData, StoreError, StoreNotFound, TreeChanged
from trainjob.storage.cache import hold
from trainjob.storage.cache.folder import Cache, cache_dir
from trainjob.storage.cache.hold import release
from trainjob.storage.cache.incoming import Incoming
from trainjob.storage.manifest import FileRecord, fingerprint
from trainjob.storage.stage import stage_channel
from trainjob.storage.upload import upload_tree


@pytest.fixture
def stage(s3_place, tmp_path, monkeypatch):
    """Stage the S3 place for a job of this name; its channel is at tmp_path/NAME."""
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))

    def run(name: str, settings=None, **options):
        return stage_channel(
            options.pop("url", s3_place.url),
            tmp_path / name,
            settings or s3_place.settings,
            label="data",
            holder=name,
            **options,
        )

    return run


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def gets(proxy) -> list[str]:
    """The names of the objects that were fetched."""
    fetched = (
        path for method, path in proxy.requests if method == "GET" and "list-type" not in path
    )
    return sorted(path.partition("?")[0].rpartition("/")[2] for path in fetched)


def upload(outputs: Path, place) -> None:
    upload_tree(outputs, place.url, place.settings, run_id="run", facts={}, label="train_url")


def fingerprint_of(tree: dict[str, bytes]) -> str:
    return fingerprint(
        FileRecord(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in tree.items()
    )


def test_a_second_job_moves_nothing(s3, s3_place, stage, nasty_tree, tmp_path, read_tree):
    for name, data in nasty_tree.items():
        s3_place.put(name, data)

    with fault_proxy(s3.port, lambda *_: None) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        first = stage("first", settings)
        fetched = gets(proxy)
        second = stage("second", settings)
        fetched_again = gets(proxy)

    assert len(fetched) >= len(nasty_tree)
    assert fetched_again == fetched
    assert read_tree(tmp_path / "first") == read_tree(tmp_path / "second") == nasty_tree
    size_bytes = sum(map(len, nasty_tree.values()))
    assert (first.moved_bytes, first.cached_bytes) == (size_bytes, 0)
    assert (second.moved_bytes, second.cached_bytes) == (0, size_bytes)
    assert first.fingerprint == second.fingerprint == fingerprint_of(nasty_tree)
    assert first.verified == second.verified == "etag"


def test_only_a_changed_object_is_fetched(s3, s3_place, stage, tmp_path, read_tree):
    tree = {f"{i}": os.urandom(100) for i in range(20)}
    for name, data in tree.items():
        s3_place.put(name, data)
    with fault_proxy(s3.port, lambda *_: None) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        stage("first", settings)
        proxy.requests.clear()
        s3_place.put("7", b"new")
        s3_place.delete("8")
        second = stage("second", settings)

        assert gets(proxy) == ["7"]

    changed = {**tree, "7": b"new"}
    del changed["8"]
    assert read_tree(tmp_path / "second") == changed
    assert read_tree(tmp_path / "first") == tree
    assert second.fingerprint == fingerprint_of(changed)
    assert (second.moved_bytes, second.cached_bytes) == (3, 1800)


def test_what_is_shared_cannot_be_written(s3_place, stage, tmp_path):
    s3_place.put("folder/file", b"1")

    stage("job")

    folder = (tmp_path / "job").resolve()
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))]
    assert modes == [0o555, 0o555, 0o444]


def test_a_copy_is_private_and_can_be_written(s3_place, stage, tmp_path, read_tree):
    s3_place.put("folder/file", b"1")
    stage("shared")

    copied = stage("own", mode="copy")
    (tmp_path / "own" / "folder" / "file").write_bytes(b"of the script")
    (tmp_path / "own" / "added").write_bytes(b"2")

    assert copied.moved_bytes == 0
    assert not (tmp_path / "own").is_symlink()
    assert (tmp_path / "own" / "folder" / "file").stat().st_mode & 0o200
    assert read_tree(tmp_path / "shared") == {"folder/file": b"1"}


@pytest.mark.parametrize("modes", [("link", "copy"), ("copy", "link"), ("link", "link")])
def test_doing_it_again_replaces_what_was_there(s3_place, stage, tmp_path, read_tree, modes):
    s3_place.put("file", b"1")
    stage("job", mode=modes[0])
    s3_place.put("file", b"22")

    stage("job", mode=modes[1])

    assert read_tree(tmp_path / "job") == {"file": b"22"}
    assert (tmp_path / "job").is_symlink() == (modes[1] == "link")
    assert {path.name for path in tmp_path.iterdir()} <= {"job", "cache"}


def test_an_object_overwritten_meanwhile_publishes_nothing(
    s3, s3_place, stage, cache, tmp_path, read_tree
):
    s3_place.put("kept", b"1")
    s3_place.put("file", b"old")

    def overwrite(method: str, path: str) -> None:
        if method == "GET" and path.endswith("/file"):
            s3_place.put("file", b"new")

    with fault_proxy(s3.port, overwrite) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        with pytest.raises(TreeChanged):
            stage("job", settings)
        published = cache.snapshots()
        there = (tmp_path / "job").exists()

        stage("job", settings)

    assert published == []
    assert not there
    assert read_tree(tmp_path / "job") == {"kept": b"1", "file": b"new"}


def test_three_at_once_fetch_every_object_once(s3, s3_place, stage, tmp_path, read_tree):
    tree = {f"{i}": os.urandom(1000) for i in range(30)}
    for name, data in tree.items():
        s3_place.put(name, data)
    staged = []

    with fault_proxy(s3.port, lambda *_: None) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        threads = [
            threading.Thread(target=lambda name=name: staged.append(stage(name, settings)))
            for name in ("one", "two", "three")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        fetched = gets(proxy)

    assert fetched == sorted(tree)
    assert sorted(one.moved_bytes for one in staged) == [0, 0, 30_000]
    for name in ("one", "two", "three"):
        assert read_tree(tmp_path / name) == tree


def test_where_locks_fail_one_of_two_is_published(s3_place, stage, cache, tmp_path, monkeypatch):
    """Both believe to be alone, as on a network disk without locks."""
    s3_place.put("file", b"1")
    monkeypatch.setattr("trainjob.storage.cache.folder._lock", lambda *_: True)
    both_are_ready, publish = threading.Barrier(2), Incoming.publish

    def publish_together(*arguments):
        both_are_ready.wait(PATIENCE_S)
        return publish(*arguments)

    monkeypatch.setattr(Incoming, "publish", publish_together)
    threads = [threading.Thread(target=stage, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    [snapshot] = cache.snapshots()
    assert (tmp_path / "one").resolve() == (tmp_path / "two").resolve() == snapshot.data
    assert list(cache.incoming.iterdir()) == []


def test_an_expected_fingerprint_is_asked_for(s3_place, stage, tmp_path):
    s3_place.put("file", b"1")
    right = fingerprint_of({"file": b"1"})
    wrong = "sha256:" + "0" * 64

    stage("job", expect=right)
    with pytest.raises(StoreError) as caught:
        stage("other", expect=wrong)

    assert right in str(caught.value)
    assert wrong in str(caught.value)
    assert not (tmp_path / "other").exists()


def test_outputs_of_a_run_are_compared_with_their_receipt(s3_place, stage, write_tree, tmp_path):
    outputs = write_tree(tmp_path / "outputs", {"model.pt": b"weights", "a/b": b"2"})
    upload(outputs, s3_place)

    staged = stage("job")

    assert staged.verified == "receipt"


def test_a_file_that_is_not_as_its_receipt_says_is_refused(
    s3_place, stage, cache, write_tree, tmp_path
):
    outputs = write_tree(tmp_path / "outputs", {"model.pt": b"weights"})
    upload(outputs, s3_place)
    s3_place.put("model.pt", b"WEIGHTS")

    with pytest.raises(CorruptData, match=r"not what its receipt says: model\.pt; upload it again"):
        stage("job")
    published = cache.snapshots()
    s3_place.put("model.pt", b"weights")
    staged = stage("job")

    assert published == []
    assert staged.verified == "receipt"


def test_a_file_beside_those_of_the_receipt_is_not_proved_by_it(
    s3_place, stage, write_tree, tmp_path
):
    outputs = write_tree(tmp_path / "outputs", {"model.pt": b"weights"})
    upload(outputs, s3_place)
    s3_place.put("added", b"1")

    assert stage("job").verified == "etag"


def test_a_script_that_writes_into_what_is_shared_is_found_out(
    s3_place, stage, cache, tmp_path, read_tree
):
    s3_place.put("file", b"right")
    s3_place.put("other", b"right")
    stage("job")
    file = (tmp_path / "job" / "file").resolve()
    file.chmod(0o644)
    file.write_bytes(b"WRONG")

    [note] = release(cache, "job")
    stage("next")

    assert "file: changed" in note
    assert s3_place.url in note
    assert read_tree(tmp_path / "next") == {"file": b"right", "other": b"right"}


def test_what_a_killed_job_spoiled_is_not_given_to_the_next(
    s3_place, stage, cache, tmp_path, read_tree
):
    s3_place.put("file", b"right")
    stage("killed")
    [snapshot] = cache.snapshots()
    [lease] = snapshot.leases()
    lease.file.rename(lease.file.with_name("killed@" + str(lease.owner).rpartition(".")[0] + ".1"))
    file = snapshot.data / "file"
    file.chmod(0o644)
    file.write_bytes(b"WRONG")

    stage("next")

    assert read_tree(tmp_path / "next") == {"file": b"right"}


def test_what_was_spoiled_is_not_given_to_the_next_wherever_its_release_was_stopped(
    s3_place, stage, cache, tmp_path, read_tree
):
    s3_place.put("file", b"right")
    names = count()

    def spoiled() -> str:
        name = f"job-{next(names)}"
        stage(name)
        file = (tmp_path / name / "file").resolve()
        file.chmod(0o644)
        file.write_bytes(b"WRONG")
        return name

    def end(name: str) -> None:
        """Let the process that holds the leases of a job be gone."""
        for lease in (one for snapshot in cache.snapshots() for one in snapshot.leases()):
            if lease.holder == name:
                gone = f"{name}@" + str(lease.owner).rpartition(".")[0] + ".1"
                lease.file.rename(lease.file.with_name(gone))

    places = (hold, "release", "_released")
    for name in stopped_everywhere(spoiled, lambda name: release(cache, name), *places):
        end(name)
        stage(f"after-{name}")
        assert read_tree(tmp_path / f"after-{name}") == {"file": b"right"}


def test_what_lost_files_on_a_disk_that_is_cleared_of_old_ones_is_fetched_again(
    s3_place, stage, cache, tmp_path, read_tree, caplog
):
    tree = {"a/file": b"1", "a/old": b"2", "b/old": b"3"}
    for name, data in tree.items():
        s3_place.put(name, data)
    stage("first")
    release(cache, "first")
    for file in list((tmp_path / "first").resolve().rglob("old")):
        file.unlink()

    stage("next")

    assert read_tree(tmp_path / "next/") == tree
    assert "is spoiled and is fetched again" in caplog.text
    assert release(cache, "next") == []


def test_what_a_script_adds_takes_nothing_from_who_uses_the_data(s3_place, stage, cache, tmp_path):
    """Some libraries write an index beside the data; as root they can."""
    s3_place.put("file", b"right")
    stage("job")
    (tmp_path / "job").resolve().chmod(0o755)
    (tmp_path / "job" / "index.cache").write_bytes(b"")

    stage("other")

    assert (tmp_path / "job" / "file").read_bytes() == b"right"


def test_files_spoiled_in_one_version_are_not_linked_into_the_next(
    s3_place, stage, cache, tmp_path, read_tree
):
    s3_place.put("file", b"right")
    s3_place.put("changing", b"1")
    stage("job")
    file = (tmp_path / "job" / "file").resolve()
    file.chmod(0o644)
    file.write_bytes(b"WRONG")
    s3_place.put("changing", b"2")

    stage("next")

    assert read_tree(tmp_path / "next") == {"file": b"right", "changing": b"2"}


def test_what_was_released_clean_stays(s3_place, stage, cache):
    s3_place.put("file", b"1")
    stage("job")

    assert release(cache, "job") == []
    [snapshot] = cache.snapshots()
    assert snapshot.leases() == []


def test_a_missing_folder_is_told(s3_place, stage):
    s3_place.put("nothing-like-it", b"1")

    with pytest.raises(StoreNotFound, match="no such folder, or no file in it"):
        stage("job", url=f"{s3_place.url}/nothing")


def test_empty_folders_arrive_and_count_for_the_version(s3_place, stage, tmp_path):
    s3_place.put("file", b"1")
    stage("before")
    s3_place.put("empty/", b"")

    stage("after")

    assert not (tmp_path / "before" / "empty").exists()
    assert (tmp_path / "after" / "empty").is_dir()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TRAINJOB_CACHE_DIR": "/big/cache", "TRAINJOB_WORKDIR": "/runs"}, "/big/cache"),
        ({"TRAINJOB_CACHE_DIR": "~/cache", "HOME": "/home/me"}, "/home/me/cache"),
        ({"TRAINJOB_WORKDIR": "/runs"}, "/runs/cache"),
        ({"TRAINJOB_WORKDIR": "~/runs", "HOME": "/home/me"}, "/home/me/runs/cache"),
        ({"TRAINJOB_WORKDIR": "", "HOME": "/home/me"}, "/home/me/.trainjob/cache"),
    ],
)
def test_the_cache_is_where_the_environment_says(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert cache_dir() == Path(expected)


def test_a_limit_that_is_no_size_is_refused(monkeypatch):
    monkeypatch.setenv("TRAINJOB_CACHE_MAX_SIZE", "much")

    with pytest.raises(StoreError, match="TRAINJOB_CACHE_MAX_SIZE: 'much', which is no size"):
        Cache.of_machine()
