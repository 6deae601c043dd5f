"""What a network does to a channel that is staged: the exact data, or an error and nothing of it.

As `test_fault_transfers`, but up to the end: what is published in the cache and what a job gets.
"""

from dataclasses import replace

import pytest

from tests.core.storage.engines import shorten_pauses, shorten_stalls
from tests.s3_faults import FaultProxy, Rule, times
from tests.s3_server import S3Server
from trainjob.errors import CorruptData, StoreError, StoreUnavailable, TreeChanged
from trainjob.storage import s3_transfer
from trainjob.storage.cache.folder import Cache
from trainjob.storage.curl import retry
from trainjob.storage.stage import StagedChannel, stage_channel

PASSING = ["flip", "short", "reset", "stall"]
STAYING = [*PASSING, "page"]


class Staging:
    """A channel of two objects that is staged through the proxy."""

    def __init__(self, s3: S3Server, proxy: FaultProxy, url: str, folder) -> None:
        self.url = url
        self.target = folder / "data"
        self.cache = Cache(folder / "cache")
        self._settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        self._proxy = proxy

    def run(self, rule: Rule) -> StagedChannel:
        self._proxy.rule = rule
        return stage_channel(self.url, self.target, self._settings, label="data", holder="job")


@pytest.fixture
def tree(contents, size: str) -> dict[str, bytes]:
    return {"object": contents[size], "other": b"small"}


@pytest.fixture
def staging(s3, s3_place, proxy, tree, tmp_path, engine, monkeypatch) -> Staging:
    shorten_pauses(monkeypatch)
    shorten_stalls(monkeypatch)
    monkeypatch.setattr(retry, "TRIES", 2)
    monkeypatch.setattr(s3_transfer, "_TRIES", 2)
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    for path, data in tree.items():
        s3_place.put(path, data)
    return Staging(s3, proxy, s3_place.url, tmp_path)


@pytest.mark.parametrize(
    ("fault", "size"),
    [*((fault, "one request") for fault in PASSING), ("flip", "in parts")],
    indirect=["size"],
)
def test_after_a_fault_that_passes_exactly_the_data_is_published(staging, tree, fault, read_tree):
    staging.run(times(1, fault, "GET", "/object"))

    (snapshot,) = staging.cache.snapshots()
    assert read_tree(staging.target) == tree
    assert staging.target.resolve() == snapshot.data


@pytest.mark.parametrize(
    ("fault", "size"),
    [*((fault, "one request") for fault in STAYING), ("flip", "in parts")],
    indirect=["size"],
)
def test_a_fault_that_stays_publishes_nothing_and_the_next_try_has_it_all(
    staging, tree, fault, read_tree
):
    errors = {"flip": CorruptData, "page": TreeChanged}

    with pytest.raises(errors.get(fault, StoreUnavailable)) as caught:
        staging.run(times(10_000, fault, "GET", "/object"))
    published = (staging.cache.snapshots(), staging.target.exists())
    staging.run(times(0, fault, "GET", "/object"))

    assert caught.value.retryable
    assert published == ([], False)
    assert read_tree(staging.target) == tree


@pytest.mark.parametrize("size", ["one request"], indirect=True)
def test_an_object_that_is_replaced_in_the_middle_of_its_body_is_not_published(
    staging, s3_place, tree, read_tree
):
    """The connection breaks off after half of it, and the rest would be that of another one."""
    new, gets = bytes(len(tree["object"])), []

    def replaced(method: str, path: str):
        if method == "GET" and "/object" in path:
            gets.append(path)
            if len(gets) == 2:
                s3_place.put("object", new)
            return "cut" if len(gets) == 1 else None
        return None

    with pytest.raises(StoreError) as caught:
        staging.run(replaced)
    published = staging.cache.snapshots()
    staging.run(times(0, None, "GET", ""))

    assert isinstance(caught.value, TreeChanged)
    assert published == []
    assert read_tree(staging.target) == tree | {"object": new}


@pytest.mark.parametrize("size", ["one request"], indirect=True)
def test_a_bit_that_flips_in_a_listing_changes_nothing(staging, tree, read_tree):
    staging.run(times(1, "flip", "GET", "list-type=2"))

    assert read_tree(staging.target) == tree
