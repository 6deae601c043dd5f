"""What is in use stays, though who uses it cannot be asked: it is in another container."""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.s3_faults import fault_proxy
from tests.waiting import wait_until
from trainjob.launch.processes import read_process
from trainjob.storage.cache import heartbeat
from trainjob.storage.cache.evict import make_room, removable
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import keeping, release
from trainjob.storage.cache.incoming import Incoming, abandoned
from trainjob.storage.cache.owner import Owner
from trainjob.storage.cache.snapshot import Snapshot
from trainjob.storage.local import LocalStore
from trainjob.storage.stage import stage_channel

SOURCE = "0" * 32
DAY_S = 24 * 3600.0


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Cache:
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.01)
    return Cache(tmp_path / "cache")


def age(file: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(file, (then, then))


def age_s(file: Path) -> float:
    return time.time() - file.stat().st_mtime


def of_another_container(folder: Path) -> Path:
    """Let a process of another container have made what this one made."""
    this, there = Owner.this(), Owner("12345678", 1, 1, 1)
    name = folder.name.replace(str(this), str(there))
    if this.machine:
        name = name.replace(this.machine, "89abcdef")
    return folder.rename(folder.with_name(name))


def journal(cache: Cache) -> Path:
    [found] = cache.incoming.glob("*/journal")
    return found


@pytest.mark.usefixtures("engine")
def test_one_object_that_takes_long_is_not_taken_for_given_up(s3, s3_place, cache, tmp_path):
    s3_place.put("large", b"1")

    def take_long(method: str, path: str) -> None:
        if path.endswith("/large"):
            age(journal(cache), DAY_S)
            wait_until(lambda: age_s(journal(cache)) < 60)

    with fault_proxy(s3.port, take_long) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        stage_channel(s3_place.url, tmp_path / "data", settings, label="data", holder="job")

    assert (tmp_path / "data" / "large").read_bytes() == b"1"


def test_a_large_folder_that_is_read_where_it_lies_is_not_taken_for_given_up(
    cache, tmp_path, write_tree, monkeypatch
):
    """Nothing of it is ever complete, so there is no line of a journal."""
    source, digest = write_tree(tmp_path / "source", {"file": b"1"}), LocalStore.digest

    def digest_for_long(*arguments):
        age(journal(cache), DAY_S)
        wait_until(lambda: age_s(journal(cache)) < 60)
        return digest(*arguments)

    monkeypatch.setattr(LocalStore, "digest", digest_for_long)

    staged = stage_channel(str(source), tmp_path / "data", None, label="data", holder="job")

    assert staged.is_in_place


def test_what_is_being_made_in_another_container_is_kept_as_long_as_its_lock_is_held(cache):
    cache.prepare()
    made = of_another_container(Incoming.taken_from(cache, SOURCE).folder)
    age(made / "journal", DAY_S)

    with cache.alone(SOURCE, lambda: False):
        while_locked = list(removable(cache))
        make_room(cache, 0, 0)
    [unused] = removable(cache)

    assert while_locked == []
    assert unused.path == made


def test_only_one_of_several_unfinished_copies_is_kept(cache):
    """Of which the others would take up the disk for ever, as nobody goes on with them."""
    cache.prepare()
    for name, hours_ago in (("older", 2), ("newer", 1)):
        left = cache.incoming / f"{SOURCE}-{Owner.nobody()}-{name}"
        left.mkdir()
        (left / name).touch()
        age(left, 3600 * hours_ago)

    taken = Incoming.taken_from(cache, SOURCE)

    assert (taken.folder / "newer").exists()
    assert list(cache.incoming.iterdir()) == [taken.folder]
    assert abandoned(cache) == []


def test_the_data_of_a_training_that_takes_weeks_stays(s3_place, cache, tmp_path):
    s3_place.put("file", b"1")
    stage_channel(
        s3_place.url, tmp_path / "data", s3_place.settings, label="data", holder="run.data"
    )
    [snapshot] = cache.snapshots()
    [lease] = snapshot.leases()
    age(lease.file, 8 * DAY_S)

    with keeping(cache, ["run.data"]):
        wait_until(lambda: age_s(lease.file) < 60)
    of_another_container(lease.file)

    assert len(snapshot.users()) == 1


@pytest.fixture
def staged(s3_place: Any, cache: Cache, tmp_path: Path) -> Snapshot:
    """A dataset that this process uses for the holder run.data."""
    s3_place.put("file", b"1")
    settings = s3_place.settings
    stage_channel(s3_place.url, tmp_path / "data", settings, label="data", holder="run.data")
    [snapshot] = cache.snapshots()
    return snapshot


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this machine that waits."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process


def owner_of(process: subprocess.Popen[bytes]) -> Owner:
    found = read_process(process.pid)
    assert found is not None
    return replace(Owner.this(), pid=process.pid, start_ticks=found.start_ticks)


def lease_of(snapshot: Snapshot, owner: Owner) -> Path:
    lease = snapshot.root / "leases" / f"run.data@{owner.machine}@{owner}"
    lease.touch()
    return lease


def test_a_process_that_ends_leaves_the_data_to_another_one_of_its_run(
    staged, cache, other_process
):
    """A run that was delivered again, while its first process was still there."""
    other = owner_of(other_process)
    lease_of(staged, other)

    assert release(cache, "run.data") == []
    assert [user.owner for user in staged.users()] == [other]
    assert not cache.evict(staged)

    other_process.communicate()
    assert release(cache, "run.data") == []
    assert staged.leases() == []


def test_what_no_other_run_may_take_stays_while_a_process_of_this_one_uses_it(
    staged, cache, other_process
):
    lease_of(staged, owner_of(other_process))
    (staged.root / "snapshot.json").write_text(replace(staged.header, is_reusable=False).text())

    release(cache, "run.data")
    while_in_use = cache.snapshots()
    other_process.communicate()
    release(cache, "run.data")

    assert len(while_in_use) == 1
    assert cache.snapshots() == []


def test_a_process_in_another_container_keeps_what_it_touches(staged, cache):
    training, gone = Owner("12345678", 1, 1, 1), Owner("12345678", 1, 2, 1)
    lease_of(staged, training)
    age(lease_of(staged, gone), 3600)

    release(cache, "run.data")

    assert [lease.owner for lease in staged.leases()] == [training]


def test_nobody_touches_the_lease_of_another_process(staged, cache):
    """Else what an earlier process of the run had would be in use for a week after the run."""
    [own] = staged.leases()
    gone = lease_of(staged, Owner("12345678", 1, 2, 1))
    for file in (own.file, gone):
        age(file, DAY_S)

    with keeping(cache, ["run.data"]):
        wait_until(lambda: age_s(own.file) < 60)

    assert age_s(gone) > DAY_S - 60
