"""What a network, a proxy or a busy store does to a copy: exact bytes or one clear error.

Never a file that is wrong and told as complete. Both engines, and a size that is copied in one
request and one that the engine for libcurl copies in ranges.
"""

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest

from tests.core.storage.engines import shorten_pauses, shorten_stalls
from tests.s3_faults import Fault, FaultProxy, Rule, times
from tests.s3_server import S3Server
from trainjob.errors import (
    CorruptData,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    TreeChanged,
)
from trainjob.storage.curl import retry
from trainjob.storage.deadline import Deadline, ending_at
from trainjob.storage.local_tree import list_folder
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.store import Store, open_store

NUM_KEYS = 1_001  # the store lists 1,000 a page


@pytest.fixture(scope="module")
def folders(s3: S3Server, shared_bucket: str, contents: dict[str, bytes]) -> str:
    """A folder for every size, with one object."""
    for name, data in contents.items():
        s3.put(shared_bucket, f"faults/{name}/object", data)
    return f"s3://{shared_bucket}/faults"


@pytest.fixture(scope="module")
def many_keys(s3: S3Server, shared_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, url = tmp_path_factory.mktemp("many"), f"s3://{shared_bucket}/many"
    for number in range(NUM_KEYS):
        (folder / f"{number:04}").touch()
    files = list_folder(folder).files
    with open_store(url, s3.settings) as store:
        store.upload(folder, files, Meter(None, files))
    return url


@pytest.fixture
def engine(engine: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """As everywhere, with little patience."""
    shorten_pauses(monkeypatch)
    return engine


class Copy:
    """A copy of one folder through the proxy, and all that was said of it."""

    def __init__(self, s3: S3Server, proxy: FaultProxy, url: str, target: Path) -> None:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        self.store: Store = open_store(url, settings)
        self.target = target
        self.told: list[FileRecord] = []

    def make(self, rule: Rule, proxy: FaultProxy) -> dict[str, bytes]:
        """List in peace, copy under the rule, and return what was told as complete."""
        with self.store as store:
            files = store.list_files().files
            proxy.rule = rule
            records = store.download(files, self.target, Meter(None, files), self.told.append)
        assert sorted(self.told, key=str) == sorted(records, key=str)
        assert {r.path: r.sha256 for r in records} == {
            r.path: hashlib.sha256((self.target / r.path).read_bytes()).hexdigest() for r in records
        }
        return {r.path: (self.target / r.path).read_bytes() for r in records}


@pytest.fixture
def copy(s3: S3Server, proxy: FaultProxy, folders: str, size: str, tmp_path: Path) -> Copy:
    return Copy(s3, proxy, f"{folders}/{size}", tmp_path)


@pytest.mark.parametrize("fault", ["503", "500", "429", "reset", "cut", "short", "gone", "flip"])
@pytest.mark.usefixtures("engine")
def test_a_copy_is_exact_after_a_fault_that_passes(copy, proxy, contents, size, fault):
    got = copy.make(times(2, fault, "GET", "/object"), proxy)

    assert got == {"object": contents[size]}


@pytest.mark.parametrize("fault", ["stall", "slow"])
@pytest.mark.usefixtures("engine")
def test_a_copy_is_exact_after_a_stall(copy, proxy, contents, size, fault, monkeypatch):
    shorten_stalls(monkeypatch)

    got = copy.make(times(1, fault, "GET", "/object"), proxy)

    assert got == {"object": contents[size]}


@pytest.mark.parametrize(
    ("fault", "errors"),
    [
        ("503", StoreUnavailable),
        ("reset", StoreUnavailable),
        ("cut", StoreUnavailable),
        ("short", StoreUnavailable),
        ("gone", StoreUnavailable),
        ("flip", CorruptData),
        ("page", TreeChanged),
    ],
)
@pytest.mark.usefixtures("engine")
def test_a_fault_that_stays_is_one_error_that_names_the_object(copy, proxy, fault, errors):
    with pytest.raises(errors) as caught:
        copy.make(times(10_000, fault, "GET", "/object"), proxy)

    assert caught.value.retryable
    assert str(caught.value).startswith(f"{copy.store.url}object: ")
    assert "; " in str(caught.value)
    assert copy.told == []
    assert len(proxy.requests) < 40


@pytest.mark.parametrize("work", ["download", "digest"])
@pytest.mark.usefixtures("engine")
def test_faults_of_several_kinds_share_one_patience(copy, proxy, work):
    faults: Iterator[Fault] = cycle(["cut", "gone", "503", "short"])

    def make(store: Store) -> object:
        files = store.list_files().files
        proxy.rule = lambda method, path: next(faults)
        if work == "digest":
            return store.digest(files, Meter(None, files))
        return store.download(files, copy.target, Meter(None, files))

    with copy.store as store, ending_at(Deadline(20)), pytest.raises(StoreUnavailable) as caught:
        make(store)

    assert "in the time" not in str(caught.value)
    assert len(proxy.requests) < 40


def test_an_answer_that_is_too_short_is_asked_for_again_after_a_pause(copy, proxy, monkeypatch):
    pauses: list[int] = []

    def pause_s(tries: int, retry_after: str = "") -> float:
        pauses.append(tries)
        return 0.001

    monkeypatch.setattr(retry, "pause_s", pause_s)

    copy.make(times(3, "short", "GET", "/object"), proxy)

    assert len(pauses) == 3


@pytest.mark.parametrize("is_shorter", [True, False])
@pytest.mark.parametrize("is_known", [True, False])
def test_an_object_that_is_replaced_on_the_way_is_never_mixed(
    s3, shared_bucket, proxy, tmp_path, contents, engine, size, is_known, is_shorter
):
    """The store knows If-Match, or answers with whatever it holds, if it holds so much at all."""
    key = f"replaced/{engine}/{size}/{is_known}/{is_shorter}/object"
    s3.put(shared_bucket, key, contents[size])
    num_gets, lock = [0], threading.Lock()
    # Between two ranges, where the engine reads ranges.
    last = 2 if (engine, size) == ("curl", "in parts") else 1

    def replace(method: str, path: str) -> Fault:
        with lock:
            num_gets[0] += method == "GET"
            if num_gets[0] == last:
                s3.put(shared_bucket, key, bytes(1 if is_shorter else len(contents[size])))
        return None if is_known else "unconditional"

    def presign(path: str) -> str:
        url = s3.client.generate_presigned_url("get_object", {"Bucket": shared_bucket, "Key": key})
        return str(url).removeprefix(s3.endpoint_url)

    proxy.presign = presign
    copy = Copy(s3, proxy, f"s3://{shared_bucket}/{key.removesuffix('/object')}", tmp_path)

    with pytest.raises(TreeChanged, match="changed while it was copied; run again"):
        copy.make(replace, proxy)

    assert copy.told == []


@pytest.fixture(scope="module")
def large(s3: S3Server, shared_bucket: str) -> bytes:
    """An object of three ranges of their real size, at faults/large/object."""
    data = random.Random("large").randbytes(24 << 20)
    s3.put(shared_bucket, "faults/large/object", data)
    return data


@pytest.mark.parametrize("fault", ["flip", "reset", "stall"])
@pytest.mark.usefixtures("engine")
def test_a_copy_in_ranges_of_their_real_size_is_exact(
    s3, shared_bucket, proxy, tmp_path, large, fault, monkeypatch
):
    shorten_stalls(monkeypatch)
    copy = Copy(s3, proxy, f"s3://{shared_bucket}/faults/large", tmp_path)

    got = copy.make(times(2, fault, "GET", "/object"), proxy)

    assert got == {"object": large}


def test_an_object_that_is_replaced_between_ranges_of_their_real_size_is_never_mixed(
    s3, shared_bucket, proxy, tmp_path, large, engine
):
    prefix, lock, gets = f"replaced/{engine}/large", threading.Lock(), []
    s3.put(shared_bucket, f"{prefix}/object", large)

    def replace(method: str, path: str) -> Fault:
        with lock:
            gets.append(path)
            if len(gets) == (2 if engine == "curl" else 1):
                s3.put(shared_bucket, f"{prefix}/object", bytes(len(large)))
        return None

    copy = Copy(s3, proxy, f"s3://{shared_bucket}/{prefix}", tmp_path)

    with pytest.raises(TreeChanged, match="changed while it was copied; run again"):
        copy.make(replace, proxy)

    assert copy.told == []


@pytest.mark.parametrize(
    ("fault", "error", "found"),
    [
        ("expired", StoreDenied, "ExpiredToken.*get new temporary credentials"),
        ("skew", StoreDenied, "RequestTimeTooSkewed.*set the clock of this machine"),
        ("region", StoreError, "in the region 'eu-west-1'.*set this region"),
        ("301", StoreError, "another place; set the endpoint and the region"),
        ("403", StoreDenied, "not allowed to do this.*ask for the right"),
        ("400", StoreError, "InvalidRequest.*check the url and the settings"),
    ],
)
@pytest.mark.parametrize("asked", ["/object", "list-type=2"])
@pytest.mark.usefixtures("engine")
def test_a_refusal_is_told_at_once_with_what_to_do(copy, proxy, asked, fault, error, found):
    proxy.rule = times(10_000, fault, "GET", asked)

    with pytest.raises(error, match=found) as caught:
        copy.make(proxy.rule, proxy)

    assert not caught.value.retryable
    assert copy.told == []
    assert len(proxy.requests) <= 7  # the listing, and three ranges with keys looked for anew


@pytest.mark.parametrize("size", ["in parts"], indirect=True)
def test_a_token_that_ends_on_the_way_is_an_error_and_never_the_half(copy, proxy, engine):
    """Between two ranges, where the engine reads ranges."""
    num_gets, lock = [0], threading.Lock()

    def expire(method: str, path: str) -> Fault:
        with lock:
            num_gets[0] += method == "GET"
            return "expired" if num_gets[0] > (engine == "curl") else None

    with pytest.raises(StoreDenied, match=r"ExpiredToken.*get new temporary"):
        copy.make(expire, proxy)

    assert copy.told == []


@pytest.mark.parametrize("fault", ["503", "gone", "cut", "reset", "short", "page", "flip"])
def test_a_listing_is_whole_after_a_fault_between_its_pages(
    s3, proxy, many_keys, tmp_path, engine, fault
):
    store = Copy(s3, proxy, many_keys, tmp_path).store
    proxy.rule = times(2, fault, "GET", "continuation-token")

    with store:
        files = store.list_files().files

    assert [entry.path for entry in files] == [f"{number:04}" for number in range(NUM_KEYS)]


@pytest.mark.parametrize("fault", ["expired", "skew"])
def test_a_listing_that_is_refused_between_its_pages_is_told_at_once(
    s3, proxy, many_keys, tmp_path, engine, fault
):
    store = Copy(s3, proxy, many_keys, tmp_path).store
    proxy.rule = times(10_000, fault, "GET", "continuation-token")

    with store, pytest.raises(StoreDenied):
        store.list_files()

    assert len(proxy.requests) <= 3


@pytest.mark.parametrize("fault", ["503", "gone", "cut", "reset", "short", "page", "flip"])
def test_a_listing_that_stays_broken_is_an_error_and_never_the_half(
    s3, proxy, many_keys, tmp_path, engine, fault
):
    store = Copy(s3, proxy, many_keys, tmp_path).store
    proxy.rule = times(10_000, fault, "GET", "continuation-token")

    with store, pytest.raises(StoreUnavailable) as caught:
        store.list_files()

    assert str(caught.value).startswith(f"{many_keys}/: ")


@pytest.mark.usefixtures("engine")
def test_a_store_that_stalls_is_left_at_the_deadline(copy, proxy, monkeypatch):
    threads = set(threading.enumerate())
    begun = time.monotonic()

    with ending_at(Deadline(0.4)), pytest.raises(StoreUnavailable, match="in the time that was"):
        copy.make(times(10_000, "hang", "GET", "/object"), proxy)

    assert time.monotonic() - begun < 15
    assert copy.told == []
    left = set(threading.enumerate()) - threads
    assert [t.name for t in left if "process_request" not in t.name and t.name != "fsspecIO"] == []
