"""What is in use stays, though who uses it cannot be asked: it is in another container."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.s3_faults import fault_proxy
from tests.waiting import wait_until
from trainjob.storage.cache import heartbeat
from trainjob.storage.cache.evict import make_room, removable
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import keeping
from trainjob.storage.cache.incoming import Incoming, abandoned
from trainjob.storage.cache.owner import Owner
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
    own, there = str(Owner.this()), Owner("12345678", 1, 1, 1)
    return folder.rename(folder.with_name(folder.name.replace(own, str(there))))


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
