"""Sending files over libcurl: complete or not at all, and known by the ETag that follows."""

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.s3_faults import fault_proxy, times
from trainjob.errors import StoreError, TreeChanged
from trainjob.storage.curl import large_file, objects, upload
from trainjob.storage.curl.multipart import discard_unfinished
from trainjob.storage.curl.objects import create, make_folders, upload_chunks
from trainjob.storage.curl.transport import Transport
from trainjob.storage.curl.upload import upload_files
from trainjob.storage.local_tree import list_folder
from trainjob.storage.meter import Meter

PART = 5 << 20


@pytest.fixture
def transport(s3, s3_place) -> Iterator[Transport]:
    transport = Transport(s3_place.bucket, s3.settings)
    yield transport
    transport.close()


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(upload, "MULTIPART_BYTES", PART)
    monkeypatch.setattr(large_file, "PART_BYTES", PART)
    monkeypatch.setattr(objects, "PART_BYTES", PART)


@pytest.fixture
def send(s3, s3_place):
    """Send a folder as it was listed before `meanwhile` was called."""

    def run(folder, changed=None, endpoint_url=None, meanwhile=lambda: None):
        settings = s3.settings
        if endpoint_url:
            settings = replace(settings, endpoint_url=endpoint_url)
        files = list_folder(folder).files
        meanwhile()
        transport = Transport(s3_place.bucket, settings)
        try:
            prefix = f"{s3_place.prefix}/"
            return upload_files(transport, prefix, folder, files, Meter(None, files), changed)
        finally:
            transport.close()

    return run


def listed_etags(s3, s3_place) -> dict[str, str]:
    found = s3.client.list_objects_v2(Bucket=s3_place.bucket, Prefix=f"{s3_place.prefix}/")
    start = len(s3_place.prefix) + 1
    return {item["Key"][start:]: item["ETag"] for item in found.get("Contents", [])}


def unfinished(s3, s3_place) -> list[str]:
    found = s3.client.list_multipart_uploads(Bucket=s3_place.bucket, Prefix=s3_place.prefix)
    return [item["Key"] for item in found.get("Uploads", [])]


def digests_of(tree: dict[str, bytes]) -> dict[str, tuple[int, str]]:
    return {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in tree.items()}


def test_files_of_every_name_and_size_arrive_and_are_known_by_their_etags(
    s3, s3_place, send, small_parts, folder, write_tree, nasty_tree
):
    tree = {**nasty_tree, "big/parts": os.urandom(2 * PART + 1), "big/one part": os.urandom(PART)}
    write_tree(folder, tree)

    records = send(folder)

    assert {name: s3_place.get(name) for name in s3_place.paths()} == tree
    assert {file.path: (file.size_bytes, file.sha256) for file in records} == digests_of(tree)
    assert {file.path: file.etag for file in records} == listed_etags(s3, s3_place)
    assert listed_etags(s3, s3_place)["big/parts"].endswith('-3"')


def test_pieces_become_one_object_of_parts(s3, s3_place, transport, small_parts):
    data = os.urandom(2 * PART + 7)
    pieces = (data[start : start + 700_001] for start in range(0, len(data), 700_001))

    large = upload_chunks(transport, f"{s3_place.prefix}/", "large", pieces)
    small = upload_chunks(transport, f"{s3_place.prefix}/", "small", [b"a", b"", b"b"])
    empty = upload_chunks(transport, f"{s3_place.prefix}/", "empty", [])

    assert [s3_place.get(name) for name in ("large", "small", "empty")] == [data, b"ab", b""]
    records = {file.path: (file.size_bytes, file.sha256) for file in (large, small, empty)}
    assert records == digests_of({"large": data, "small": b"ab", "empty": b""})
    assert listed_etags(s3, s3_place) == {file.path: file.etag for file in (large, small, empty)}


def test_pieces_that_cannot_be_made_leave_nothing(s3, s3_place, transport, small_parts):
    def pieces() -> Iterator[bytes]:
        yield os.urandom(2 * PART)
        raise TreeChanged("the log was replaced")

    with pytest.raises(TreeChanged):
        upload_chunks(transport, f"{s3_place.prefix}/", "log", pieces())

    assert s3_place.paths() == []
    assert unfinished(s3, s3_place) == []


@pytest.mark.parametrize("size", [10, 2 * PART])
@pytest.mark.parametrize("change", ["overwrite", "grow", "shrink", "delete"])
def test_a_file_that_changes_is_no_upload_and_keeps_no_other_from_it(
    s3, s3_place, send, small_parts, folder, write_tree, size, change
):
    write_tree(folder, {"a": b"1", "changing": os.urandom(size), "z": os.urandom(PART + 1)})
    changing = folder / "changing"
    changed: list[str] = []

    def meanwhile() -> None:
        if change == "delete":
            changing.unlink()
        else:
            sizes = {"overwrite": size, "grow": size + 1, "shrink": size - 1}
            changing.write_bytes(os.urandom(sizes[change]))

    records = send(folder, changed, meanwhile=meanwhile)

    assert [file.path for file in records] == ["a", "z"]
    assert changed == ["changing"]
    assert unfinished(s3, s3_place) == []
    changing.write_bytes(b"before")
    with pytest.raises(TreeChanged, match=r"changing: the file changed while it was copied"):
        send(folder, meanwhile=lambda: changing.write_bytes(b"again"))


def test_a_file_that_becomes_shorter_while_its_parts_are_sent_keeps_no_other_from_it(
    s3, s3_place, send, small_parts, folder, write_tree
):
    write_tree(folder, {"large": os.urandom(3 * PART), "z": b"1"})
    changed: list[str] = []

    def truncate(method: str, path: str) -> None:
        if "uploads" in path:
            os.truncate(folder / "large", 100)

    with fault_proxy(s3.port, truncate) as proxy:
        records = send(folder, changed, proxy.endpoint_url)

    assert [file.path for file in records] == ["z"]
    assert changed == ["large"]
    assert s3_place.paths() == ["z"]
    assert unfinished(s3, s3_place) == []


def test_parts_that_cannot_be_sent_are_not_left_in_the_store(
    s3, s3_place, send, small_parts, folder, write_tree
):
    write_tree(folder, {"large": os.urandom(3 * PART)})

    with (
        fault_proxy(s3.port, times(99, "403", "PUT", "partNumber=2")) as proxy,
        pytest.raises(StoreError),
    ):
        send(folder, endpoint_url=proxy.endpoint_url)

    assert s3_place.paths() == []
    assert unfinished(s3, s3_place) == []


def test_an_object_whose_completion_was_not_heard_of_is_complete(
    s3, s3_place, send, small_parts, folder, write_tree
):
    """The store has done it, but its answer was lost; asked again, it knows no such upload."""
    data = os.urandom(2 * PART)
    write_tree(folder, {"large": data})

    with fault_proxy(s3.port, times(1, "cut", "POST", "uploadId")) as proxy:
        (record,) = send(folder, endpoint_url=proxy.endpoint_url)

    assert s3_place.get("large") == data
    assert listed_etags(s3, s3_place) == {"large": record.etag}


def test_a_part_that_is_damaged_on_its_way_is_sent_again(
    s3, s3_place, send, small_parts, folder, write_tree
):
    data = os.urandom(3 * PART)
    write_tree(folder, {"large": data})

    with fault_proxy(s3.port, times(1, "damage", "PUT", "partNumber=2")) as proxy:
        (record,) = send(folder, endpoint_url=proxy.endpoint_url)

    assert s3_place.get("large") == data
    assert listed_etags(s3, s3_place) == {"large": record.etag}
    assert sum("partNumber=2" in path for _, path in proxy.requests) == 2


def test_a_small_file_that_is_damaged_on_its_way_never_counts(
    s3, s3_place, send, folder, write_tree
):
    write_tree(folder, {"small": b"weights"})

    with (
        fault_proxy(s3.port, times(99, "damage", "PUT", "/small")) as proxy,
        pytest.raises(StoreError),
    ):
        send(folder, endpoint_url=proxy.endpoint_url)

    assert s3_place.paths() == []


def test_a_file_is_created_once(s3_place, transport):
    key = f"{s3_place.prefix}/claim"

    answers = [create(transport, key, data) for data in (b"first", b"second")]

    assert answers == [True, False]
    assert s3_place.get("claim") == b"first"


def test_folders_that_hold_nothing_are_seen(s3_place, transport):
    make_folders(transport, f"{s3_place.prefix}/", ["a", "b c/数"])

    assert s3_place.paths() == ["a/", "b c/数/"]


def test_only_what_is_unfinished_of_the_files_that_are_named_is_thrown_away(
    s3, s3_place, transport
):
    names = ["tree/a", "tree/a", "tree/b", "tree/ü +&#", "trees/a"]
    above = s3_place.prefix.partition("/")[0]
    for name in names:
        s3.client.create_multipart_upload(Bucket=s3_place.bucket, Key=f"{above}/{name}")

    num_discarded = discard_unfinished(transport, f"{above}/tree/", {"a", "ü +&#"})

    assert num_discarded == 3
    found = s3.client.list_multipart_uploads(Bucket=s3_place.bucket, Prefix=above)
    assert {item["Key"] for item in found["Uploads"]} == {f"{above}/tree/b", f"{above}/trees/a"}


def test_the_threads_end_with_the_upload(send, small_parts, folder, write_tree):
    write_tree(folder, {"large": os.urandom(PART + 1)})

    send(folder)

    assert [thread.name for thread in threading.enumerate() if "digest" in thread.name] == []
