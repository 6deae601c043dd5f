"""Staging that is killed, or whose disk fills up: only the rest is fetched, nothing is a lie."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.storage.journals import journaled
from tests.s3_faults import Fault, fault_proxy
from tests.waiting import PATIENCE_S
from trainjob.errors import StoreError
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import release
from trainjob.storage.cache.incoming import abandoned
from trainjob.storage.stage import stage_channel

STAGE = """
import sys
from pathlib import Path
from trainjob.storage.stage import stage_channel

staged = stage_channel(sys.argv[1], Path(sys.argv[2]), None, label="data", holder="job")
print(staged.moved_bytes, staged.cached_bytes)
"""
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Cache:
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_process_killed_again_and_again_fetches_only_the_rest(
    s3, s3_place, cache, tmp_path, read_tree
):
    tree = {f"{i:03}": os.urandom(200) for i in range(240)}
    for name, data in tree.items():
        s3_place.put(name, data)
    processes: list[subprocess.Popen[str]] = []
    kill_at, lock = [20, 90, 160], threading.Lock()

    def kill(method: str, path: str) -> None:
        with lock:
            if kill_at and len(journaled(cache)) >= kill_at[0]:
                del kill_at[0]
                os.kill(processes[-1].pid, signal.SIGKILL)

    fetched_twice: set[str] = set()
    with fault_proxy(s3.port, kill) as proxy:
        environment = os.environ | s3.env | {"AWS_ENDPOINT_URL": proxy.endpoint_url}
        while not processes or processes[-1].returncode == -signal.SIGKILL:
            finished = journaled(cache)
            proxy.requests.clear()
            command = [sys.executable, "-c", STAGE, s3_place.url, str(tmp_path / "data")]
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE
            )
            processes.append(process)
            output, _ = process.communicate()
            fetched_twice |= finished & {path.rpartition("/")[2] for _, path in proxy.requests}

    moved_bytes, cached_bytes = map(int, output.split())
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 3 + [0]
    assert fetched_twice == set()
    assert read_tree(tmp_path / "data") == tree
    assert cached_bytes >= 160 * 200
    assert moved_bytes == 240 * 200 - cached_bytes
    assert list(cache.incoming.iterdir()) == []


def test_three_processes_at_once_fetch_every_object_once(s3, s3_place, cache, tmp_path, read_tree):
    tree = {f"{i:03}": os.urandom(200) for i in range(60)}
    for name, data in tree.items():
        s3_place.put(name, data)

    with fault_proxy(s3.port, lambda *_: None) as proxy:
        environment = os.environ | s3.env | {"AWS_ENDPOINT_URL": proxy.endpoint_url}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", STAGE, s3_place.url, str(tmp_path / f"{i}")],
                cwd=REPOSITORY,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
            )
            for i in range(3)
        ]
        outputs = [process.communicate()[0] for process in processes]
        objects = [path.rpartition("/")[2] for _, path in proxy.requests]

    assert sorted(outputs) == ["0 12000\n", "0 12000\n", "12000 0\n"]
    assert sorted(name for name in objects if name in tree) == sorted(tree)
    assert all(read_tree(tmp_path / f"{i}") == tree for i in range(3))


def test_what_was_killed_is_trusted_by_version_only(s3, s3_place, cache, tmp_path, read_tree):
    """A file that changed between the kill and the next try is fetched, though it is there."""
    for name in ("changed", "deleted", "kept", "last"):
        s3_place.put(name, b"old")
    target = tmp_path / "data"

    def refuse_last(method: str, path: str) -> Fault:
        if not path.endswith("/last"):
            return None
        deadline = time.monotonic() + PATIENCE_S
        while len(journaled(cache)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        return "403"

    with fault_proxy(s3.port, refuse_last) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        with pytest.raises(StoreError):
            stage_channel(s3_place.url, target, settings, label="data", holder="job")
        [left] = abandoned(cache)
        (left / "data" / "kept").write_bytes(b"c")
        (left / "data" / "not in the journal").write_bytes(b"x")
        s3_place.put("changed", b"new")
        s3_place.delete("deleted")
        proxy.rule = lambda *_: None
        stage_channel(s3_place.url, target, settings, label="data", holder="job")

    assert read_tree(target) == {"changed": b"new", "kept": b"old", "last": b"old"}


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(
    s3, s3_place, small_disk, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(small_disk / "cache"))
    s3_place.put("file", os.urandom(5 << 20))
    message = (
        r"4\.0 MiB free for 5\.0 MiB of files, and nothing unused; make space, or set TRAINJOB_C"
    )

    with fault_proxy(s3.port, lambda *_: None) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        with pytest.raises(StoreError, match=message) as caught:
            stage_channel(s3_place.url, tmp_path / "data", settings, label="data", holder="job")

    assert str(small_disk / "cache") in str(caught.value)
    assert not [path for _, path in proxy.requests if path.endswith("/file")]


def test_a_disk_that_fills_up_meanwhile_publishes_nothing_and_can_be_gone_on_with(
    s3, s3_place, small_disk, tmp_path, monkeypatch, read_tree
):
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(small_disk / "cache"))
    tree = {f"{i}": os.urandom(200 << 10) for i in range(10)}
    for name, data in tree.items():
        s3_place.put(name, data)
    hog = small_disk / "of another user"

    def fill(method: str, path: str) -> None:
        if not hog.exists() and path.endswith("/5"):
            hog.write_bytes(b"x" * (3 << 20))

    with fault_proxy(s3.port, fill) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        with pytest.raises(StoreError, match="No space left on device"):
            stage_channel(s3_place.url, tmp_path / "data", settings, label="data", holder="job")
        published = Cache(small_disk / "cache").snapshots()
        is_there = (tmp_path / "data").exists()
        hog.unlink()
        hog.touch()
        stage_channel(s3_place.url, tmp_path / "data", settings, label="data", holder="job")

    assert published == []
    assert not is_there
    assert read_tree(tmp_path / "data") == tree


def test_room_is_made_for_many_small_files_on_a_disk_that_counts_them(
    s3_place, s3, small_disk, tmp_path, monkeypatch, read_tree
):
    subprocess.run(["mount", "-o", "remount,nr_inodes=80", str(small_disk)], check=True)
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(small_disk / "cache"))
    for name in ("old", "new"):
        for number in range(40):
            s3_place.put(f"{name}/{number}", b"1")
    cache = Cache.of_machine()

    def stage(name: str) -> None:
        url, target = f"{s3_place.url}/{name}", tmp_path / name
        stage_channel(url, target, s3.settings, label="data", holder=name)

    stage("old")
    with pytest.raises(
        StoreError, match=r"more files \(df -i\), and 40 to come, and nothing unused"
    ):
        stage("new")
    release(cache, "old")
    stage("new")

    assert len(read_tree(tmp_path / "new/")) == 40


def test_room_is_made_by_removing_what_nobody_uses(
    s3_place, s3, small_disk, tmp_path, monkeypatch, read_tree
):
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(small_disk / "cache"))
    s3_place.put("old/file", os.urandom(3 << 20))
    s3_place.put("new/file", os.urandom(2 << 20))
    cache = Cache.of_machine()

    def stage(name: str) -> None:
        url, target = f"{s3_place.url}/{name}", tmp_path / name
        stage_channel(url, target, s3.settings, label="data", holder=name)

    stage("old")
    with pytest.raises(StoreError, match="nothing unused"):
        stage("new")
    release(cache, "old")
    stage("new")

    assert [snapshot.header.url for snapshot in cache.snapshots()] == [f"{s3_place.url}/new"]
    assert len(read_tree(tmp_path / "new")["file"]) == 2 << 20
