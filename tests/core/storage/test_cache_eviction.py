"""What is kept in the cache, for how long, and for whom."""

import io
import os
import re
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from trainjob.errors import StoreError
from trainjob.storage.cache.evict import Reservation, make_room, removable, stored_bytes
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import release
from trainjob.storage.cache.incoming import Incoming, abandoned
from trainjob.storage.cache.lease import Lease
from trainjob.storage.cache.owner import Owner, machine_id
from trainjob.storage.cache.snapshot import Snapshot
from trainjob.storage.stage import stage_channel


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Cache:
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache", max_size_bytes=2500)


@pytest.fixture
def add(s3_place, tmp_path, cache):
    """Stage a dataset of 1,000 bytes that was last used so many hours ago."""

    def run(name: str, hours_ago: float, is_in_use: bool = False):
        s3_place.put(f"{name}/file", os.urandom(1000))
        url, target = f"{s3_place.url}/{name}", tmp_path / name
        stage_channel(url, target, s3_place.settings, label="data", holder=name)
        snapshot = cache.snapshots()[0]
        used_at = time.time() - 3600 * hours_ago
        os.utime(snapshot.root / "used", (used_at, used_at))
        if not is_in_use:
            for lease in snapshot.leases():
                lease.file.unlink()
        return snapshot

    return run


@pytest.fixture
def leave(cache):
    """Leave a copy of 1,000 bytes that broke off so many hours ago, or that is under way."""
    cache.prepare()

    def run(hours_ago: float, owner: Owner | None = None):
        number = f"{len(list(cache.incoming.iterdir())):032}"
        left = cache.incoming / f"{number}-{owner or Owner.nobody()}-{number}"
        (left / "data").mkdir(parents=True)
        (left / "data" / "half").write_bytes(bytes(1000))
        (left / "journal").touch()
        then = time.time() - 3600 * hours_ago
        os.utime(left / "journal", (then, then))
        return left

    return run


def keys(cache: Cache) -> set[str]:
    return {snapshot.key for snapshot in cache.snapshots()}


def test_the_longest_unused_goes_first_and_only_as_much_as_is_needed(add, cache):
    middle, old, new = add("middle", 2), add("old", 3), add("new", 1)

    make_room(cache, 0, 0)
    after_first = keys(cache)
    make_room(cache, 1000, 0)

    assert after_first == {middle.key, new.key}
    assert keys(cache) == {new.key}
    assert not old.root.exists()


def test_what_is_in_use_is_never_removed(add, cache):
    used = add("used", 9, is_in_use=True)
    add("unused", 1)

    make_room(cache, 10_000, 0)

    assert keys(cache) == {used.key}
    assert not cache.evict(used)


def test_the_lease_of_a_dead_process_keeps_nothing(add, cache):
    snapshot = add("data", 1, is_in_use=True)
    [lease] = snapshot.leases()
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pid = process.pid
    own = Owner.this()
    dead = Owner(own.boot, own.namespace, pid, 1)
    reused = Owner(own.boot, own.namespace, own.pid, own.start_ticks - 1)

    for owner in (dead, reused):
        lease.file.rename(snapshot.root / "leases" / f"data@{owner.machine}@{owner}")
        [lease] = snapshot.leases()
        assert not lease.is_alive()

    assert snapshot.users() == []
    assert cache.evict(snapshot)


def test_a_process_of_another_machine_is_believed_for_a_week(add):
    snapshot = add("data", 1, is_in_use=True)
    [lease] = snapshot.leases()
    other = Owner("12345678", 1, 1, 1)
    file = lease.file.rename(snapshot.root / "leases" / f"data@{other}")

    assert len(snapshot.users()) == 1
    week_ago = time.time() - 8 * 24 * 3600
    os.utime(file, (week_ago, week_ago))
    assert snapshot.users() == []


def test_what_a_process_used_before_its_machine_started_again_is_free_at_once(
    add, cache, monkeypatch
):
    """After a power cut the disk may be full of what the dead run had fetched so far."""
    monkeypatch.setattr("trainjob.storage.cache.owner.machine_id", lambda: "0123abcd")
    snapshot = add("data", 1, is_in_use=True)
    dead = replace(Owner.this(), boot="12345678")
    [lease] = snapshot.leases()
    lease.file.rename(snapshot.root / "leases" / f"data@0123abcd@{dead}")
    left = cache.incoming / f"{'0' * 32}-{dead}-0123abcd-{'1' * 32}"
    left.mkdir()
    (left / "journal").touch()

    assert snapshot.users() == []
    assert abandoned(cache) == [left]
    assert cache.evict(snapshot)


@pytest.mark.parametrize("machine", ["", "0123abcd"], ids=["that tells no id", "of another id"])
def test_a_process_of_a_machine_is_believed(add, monkeypatch, machine):
    snapshot = add("data", 1, is_in_use=True)
    [lease] = snapshot.leases()
    other = Owner("12345678", 1, 1, 1, machine=machine)
    lease.file.rename(snapshot.root / "leases" / f"data@{machine}@{other}")

    for own in ("", "89abcdef"):
        monkeypatch.setattr("trainjob.storage.cache.owner.machine_id", lambda own=own: own)
        assert [user.owner for user in snapshot.users()] == [other]


_TOKEN_OF_BEFORE = re.compile(r"[0-9a-f]{8}\.\d+\.\d+\.\d+")
"""What trainjob knew as an owner before owners had a machine."""


@pytest.mark.parametrize("machine", ["", "0123abcd"])
def test_an_older_trainjob_sees_who_uses_something(add, cache, monkeypatch, machine):
    """It may work with the same cache on a network disk, and evicts what nobody uses."""
    monkeypatch.setattr("trainjob.storage.cache.owner.machine_id", lambda: machine)
    snapshot = add("data", 1, is_in_use=True)
    incoming = Incoming.taken_from(cache, "0" * 32)

    [lease] = snapshot.leases()

    assert lease.owner == Owner.this()
    assert _TOKEN_OF_BEFORE.fullmatch(lease.file.name.rpartition("@")[2])
    assert _TOKEN_OF_BEFORE.fullmatch(incoming.folder.name.split("-")[1])
    assert abandoned(cache) == []


def test_the_lease_of_an_older_trainjob_is_seen_and_ended_with_its_process(add, cache):
    snapshot = add("data", 1, is_in_use=True)
    [lease] = snapshot.leases()
    other = Owner("12345678", 1, 1, 1)
    file = lease.file.rename(snapshot.root / "leases" / f"data@{other}")

    assert snapshot.leases() == [Lease(file, "data", other)]
    os.utime(file, (0, 0))
    release(cache, "data")
    assert snapshot.leases() == []


@pytest.mark.parametrize("content", [None, "", "uninitialized"])
def test_a_machine_without_an_id_is_known_by_nothing(tmp_path, monkeypatch, content):
    """As in a container, where a name alone may be given to several."""
    file = tmp_path / "machine-id"
    if content is not None:
        file.write_text(f"{content}\n")
    monkeypatch.setattr("trainjob.storage.cache.owner._MACHINE_ID", file)

    assert machine_id.__wrapped__() == ""


def test_machines_made_from_one_image_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "machine-id").write_text(f"{'0f' * 16}\n")
    monkeypatch.setattr("trainjob.storage.cache.owner._MACHINE_ID", tmp_path / "machine-id")
    ids = set()

    for name in ("node-1", "node-2", "node-1"):
        monkeypatch.setattr(os, "uname", lambda name=name: SimpleNamespace(nodename=name))
        ids.add(machine_id.__wrapped__())

    assert len(ids) == 2


def test_what_broke_off_a_moment_ago_goes_after_what_is_long_unused(add, leave, cache):
    """A cache is at its limit most of the time: the next try would begin with the first byte."""
    left, old = leave(0), add("old", 3)

    make_room(cache, 1000, 0)

    assert left.exists()
    assert not old.root.exists()


def test_what_broke_off_long_ago_goes_before_what_was_used_since(add, leave, cache):
    left, new = leave(3), add("new", 1)

    first = next(removable(cache))
    make_room(cache, 1000, 0)

    assert (first.path, first.size_bytes, first.snapshot) == (left, 1000, None)
    assert not left.exists()
    assert keys(cache) == {new.key}


def test_what_is_not_finished_counts_for_the_limit(add, leave, cache):
    old, left, under_way = add("old", 3), leave(1), leave(0, Owner.this())

    make_room(cache, 0, 0)

    assert not old.root.exists()
    assert left.exists()
    assert under_way.exists()


def test_a_copy_that_is_under_way_counts_without_a_look_at_its_files(cache, monkeypatch):
    """They may be millions, and whoever stages something small asks."""
    cache.prepare()
    incoming = Incoming.taken_from(cache, "0" * 32)
    incoming.keep((), "data")
    incoming.grow(2000)
    incoming.grow(300)

    with monkeypatch.context() as patched:
        patched.setattr("os.walk", None)
        under_way = stored_bytes(cache)
    incoming.folder.rename(cache.incoming / f"{'0' * 32}-{Owner.nobody()}-{'1' * 32}")

    assert under_way == 2300
    assert stored_bytes(cache) < 100


def test_what_cannot_be_read_goes_first(add, leave, cache):
    add("old", 9)
    leave(9)
    broken = add("broken", 1)
    (broken.root / "snapshot.json").unlink()

    assert next(removable(cache)).path == broken.root


def test_what_cannot_be_read_counts_for_the_limit(add, cache):
    """Else what is removed of it is taken for room below the limit."""
    old, broken = add("old", 9), add("broken", 1)
    (broken.root / "snapshot.json").unlink()

    make_room(cache, 2000, 0)

    assert not broken.root.exists()
    assert not old.root.exists()


def test_a_disk_with_room_is_all_that_is_looked_at(add, cache, monkeypatch):
    """A compressed tar asks before each large member; a cache may hold millions of files."""
    add("data", 1)
    without_limit = Cache(cache.root)
    monkeypatch.setattr(Snapshot, "read", None)
    monkeypatch.setattr("os.walk", None)

    make_room(without_limit, 1000, 0)


def test_many_large_members_do_not_have_the_cache_read_each(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TRAINJOB_CACHE_MAX_SIZE", "1GiB")
    read, snapshots, num_read = Cache.snapshots, [], []

    def note(cache: Cache) -> list[Snapshot]:
        snapshots.append(cache)
        return read(cache)

    monkeypatch.setattr(Cache, "snapshots", note)

    for num_members in (2, 20):
        archive = tmp_path / f"{num_members}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for number in range(num_members):
                member = tarfile.TarInfo(f"{number}")
                member.size = 1 << 20
                tar.addfile(member, io.BytesIO(bytes(1 << 20)))
        snapshots.clear()
        stage_channel(str(archive), tmp_path / archive.stem, None, label="data", holder="job")
        num_read.append(len(snapshots))

    assert num_read[1] == num_read[0]


def test_a_member_that_does_not_fit_is_told_though_others_did(cache, monkeypatch):
    cache.prepare()
    reservation = Reservation(cache, lambda _: None)
    reservation.more(1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=999))

    with pytest.raises(StoreError, match=r"999 B free for 1000 B of files"):
        reservation.more(1000)


def test_a_read_only_snapshot_is_removed_whole_and_leaves_nothing(add, cache, tmp_path):
    snapshot = add("data", 1)

    assert cache.evict(snapshot)

    assert list(cache.published.iterdir()) == list(cache.trash.iterdir()) == []
    assert not (tmp_path / "data").exists()


def test_what_a_killed_removal_left_is_removed_later_on(add, cache):
    snapshot = add("data", 1)
    moved = snapshot.root.rename(cache.trash / "left")
    hours_ago = time.time() + 2 * 3600

    cache.empty_trash()
    is_kept_for_a_while = moved.exists()
    cache.empty_trash(now=hours_ago)

    assert is_kept_for_a_while
    assert not moved.exists()
