"""Large files on their way to a store that keeps checksums: proved by what it finds itself."""

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.core.storage.checksum_store import ASKED, KIND, ChecksumStore
from tests.core.storage.engines import shorten_parts, shorten_pauses
from tests.core.storage.scripted_store import Asked, Reply, error, scripted_store
from tests.s3_faults import fault_proxy, times
from trainjob.errors import CorruptData, StoreDenied
from trainjob.storage.curl import told
from trainjob.storage.journal import Journal
from trainjob.storage.local_tree import list_folder
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.receipt import read_receipt, verify_receipt
from trainjob.storage.settings import StoreSettings
from trainjob.storage.store import open_store
from trainjob.storage.upload import upload_tree

PART = 5 << 20
DATA = os.urandom(2 * PART + 17)
URL = "s3://bucket/tree"

Send = Callable[[str, StoreSettings], FileRecord]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shorten_parts(monkeypatch, PART)
    shorten_pauses(monkeypatch)
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "model.pt").write_bytes(DATA)
    return folder


@pytest.fixture
def send(source: Path) -> Send:
    """Send one large file to a store that is said to keep checksums, and prove nothing yet."""

    def run(url: str, settings: StoreSettings) -> FileRecord:
        files = list_folder(source).files
        with open_store(url, wanting(settings)) as store:
            [record] = store.upload(source, files, Meter(None, files))
        return record

    return run


def wanting(settings: StoreSettings) -> StoreSettings:
    return replace(settings, checksums="when_supported")


def save(source: Path, url: str, settings: StoreSettings, **options: Any) -> list[FileRecord]:
    """Upload the folder as a run does, and return what its receipt says of the files."""
    settings = wanting(settings)
    upload_tree(source, url, settings, run_id="r", facts={}, label="out", **options)
    return list(read_receipt(url, settings).files)


def test_a_large_file_is_proved_by_the_checksum_that_the_store_finds(s3_place, source):
    (source / "small").write_bytes(b"1")

    files = save(source, s3_place.url, s3_place.settings)

    assert s3_place.get("model.pt") == DATA
    how = {"model.pt": "checksum", "small": "etag"}
    assert {file.path: file.verified for file in files} == how
    assert verify_receipt(s3_place.url, s3_place.settings).problems == ()


def test_no_byte_is_read_again_though_etags_are_no_md5s(source):
    with scripted_store(ChecksumStore()) as server:
        [file] = save(source, URL, server.settings)

        assert file.verified == "checksum"
        assert [asked for asked in server.asked if asked.path == "/bucket/tree/model.pt"] == []


def test_a_store_that_is_not_said_to_keep_checksums_is_asked_for_none(source):
    store = ChecksumStore(has_md5s=True)

    with scripted_store(store) as server:
        upload_tree(source, URL, server.settings, run_id="r", facts={}, label="out")
        [file] = read_receipt(URL, server.settings).files

    assert file.verified == "etag"
    assert [upload.how for upload in store.uploads] == [{}]


def test_without_what_finds_checksums_none_is_asked_for(source, monkeypatch):
    monkeypatch.setattr(told, "_crcs", dict)
    store = ChecksumStore(has_md5s=True)

    with scripted_store(store) as server:
        [file] = save(source, URL, server.settings)

    assert file.verified == "etag"
    assert [upload.how for upload in store.uploads] == [{}]


@pytest.mark.parametrize(
    "begins",
    [
        {},
        {ASKED: "CRC64NVME", KIND: "COMPOSITE"},
        {ASKED: "CRC32", KIND: "FULL_OBJECT"},
        {ASKED: "CRC64NVME"},
    ],
)
def test_a_store_that_keeps_no_checksum_of_the_whole_is_proved_by_its_etags(source, begins):
    """So it is with most: they do not know what they are asked for, and say nothing of it."""
    store = ChecksumStore(has_md5s=True, begins=begins)

    with scripted_store(store) as server:
        [file] = save(source, URL, server.settings)

    assert file.verified == "etag"
    assert len(store.uploads) == 1


def test_a_part_that_is_damaged_on_its_way_is_sent_again(s3, s3_place, send):
    with fault_proxy(s3.port, times(1, "damage", "PUT", "partNumber=2")) as proxy:
        record = send(s3_place.url, replace(s3.settings, endpoint_url=proxy.endpoint_url))

    assert s3_place.get("model.pt") == DATA
    assert record.verified == "checksum"
    assert sum("partNumber=2" in path for _, path in proxy.requests) == 2


@pytest.mark.parametrize("part", ["partNumber=2", "partNumber="])
def test_parts_that_are_always_damaged_never_count(s3, s3_place, source, part):
    with fault_proxy(s3.port, times(1000, "damage", "PUT", part)) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        with pytest.raises(CorruptData, match=r"model.pt: other bytes than were sent"):
            save(source, s3_place.url, settings)

    assert not {"_SUCCESS", "_trainjob/receipt.json"} & set(s3_place.paths())


@pytest.mark.parametrize(
    "store",
    [
        ChecksumStore(tells=("whole",), damages=2),
        ChecksumStore(tells=()),
        ChecksumStore(tells=("part",)),
        ChecksumStore(spoils=True),
        ChecksumStore(has_no_etag=True),
    ],
    ids=["damaged", "tells nothing", "tells of parts alone", "finds another", "without ETag"],
)
def test_what_is_not_proved_by_its_checksum_is_sent_and_proved_without(source, store):
    with scripted_store(store) as server:
        [file] = save(source, URL, server.settings)

    assert store.objects["tree/model.pt"].data == DATA
    assert file.verified == "read back"
    assert [bool(upload.how) for upload in store.uploads] == [True, False]


def test_a_file_that_changes_meanwhile_is_not_sent_without_a_checksum(source):
    """The bytes that were digested are others than those that were sent."""
    store = ChecksumStore(spoils=True)
    changed: list[str] = []
    files = list_folder(source).files

    def reply(asked: Asked) -> Reply:
        if asked.method == "POST" and "uploadId" in asked.path:
            (source / "model.pt").write_bytes(b"begun anew")
        return store(asked)

    with scripted_store(reply) as server, open_store(URL, wanting(server.settings)) as opened:
        records = opened.upload(source, files, Meter(None, files), changed)

    assert (records, changed) == ([], ["model.pt"])
    assert len(store.uploads) == 1


def test_what_is_sent_without_is_proved_by_its_etag_where_that_is_an_md5(source):
    with scripted_store(ChecksumStore(has_md5s=True, tells=("whole",), damages=2)) as server:
        [file] = save(source, URL, server.settings)

    assert file.verified == "etag"


def test_a_store_that_tells_of_the_whole_alone_is_believed(source):
    with scripted_store(ChecksumStore(tells=("whole",))) as server:
        [file] = save(source, URL, server.settings)

    assert file.verified == "checksum"


@pytest.mark.parametrize(
    ("where", "refusal"),
    [
        ("begin", error(400, "InvalidRequest")),
        ("begin", error(501, "NotImplemented")),
        ("begin", Reply(501)),
        ("part", error(400, "InvalidArgument")),  # MinIO
        ("part", error(400, "InvalidRequest")),
        ("complete", error(400, "InvalidPart")),
        ("complete", error(400, "InvalidRequest")),
    ],
)
def test_a_store_that_refuses_what_it_is_not_told_of_gets_it_without(source, where, refusal):
    """And what it has of the first upload is thrown away."""
    store = ChecksumStore(refuses=refusal, where=where, has_md5s=True)
    (source / "another.pt").write_bytes(DATA[::-1])

    with scripted_store(store) as server:
        files = save(source, URL, server.settings)

    assert store.objects["tree/model.pt"].data == DATA
    assert store.objects["tree/another.pt"].data == DATA[::-1]
    assert {file.verified for file in files} == {"etag"}
    refused = {number for number, upload in enumerate(store.uploads) if upload.how}
    assert store.aborted == (set() if where == "begin" else refused)


def test_a_refusal_is_remembered(source):
    store = ChecksumStore(refuses=error(400, "InvalidRequest"))
    files = list_folder(source).files

    with scripted_store(store) as server, open_store(URL, wanting(server.settings)) as opened:
        for _ in range(3):
            opened.upload(source, files, Meter(None, files))

    assert [bool(upload.how) for upload in store.uploads] == [True, False, False, False]


@pytest.mark.parametrize(("method", "part"), [("POST", "uploads="), ("PUT", "partNumber=2")])
def test_keys_that_are_over_are_no_want_of_a_checksum(s3, s3_place, send, method, part):
    with (
        fault_proxy(s3.port, times(1000, "expired", method, part)) as proxy,
        pytest.raises(StoreDenied, match="ExpiredToken"),
    ):
        send(s3_place.url, replace(s3.settings, endpoint_url=proxy.endpoint_url))

    assert sum("uploads=" in path and "prefix" not in path for _, path in proxy.requests) == 1


def test_an_object_whose_completion_was_not_heard_of_is_complete(s3, s3_place, send):
    with fault_proxy(s3.port, times(1, "cut", "POST", "uploadId")) as proxy:
        record = send(s3_place.url, replace(s3.settings, endpoint_url=proxy.endpoint_url))

    assert s3_place.get("model.pt") == DATA
    assert record.verified == "checksum"


@pytest.mark.parametrize("more", [{}, {"x-amz-checksum-sha256": "right"}])
def test_an_object_whose_parts_are_gone_is_known_by_its_checksum(send, more):
    right = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    store = ChecksumStore(loses=True, tells_more=dict.fromkeys(more, right))

    with scripted_store(store) as server:
        assert send(URL, server.settings).verified == "checksum"


@pytest.mark.parametrize(
    ("of_it", "is_there"),
    [({"spoils": True}, True), ({"tells": ("part",)}, True), ({"makes": False}, False)],
)
def test_an_object_that_is_not_known_by_its_checksum_is_sent_again(send, of_it, is_there):
    """Without one, where its ETag shows whether the object is there."""
    store = ChecksumStore(loses=True, has_md5s=True, **of_it)

    with scripted_store(store) as server:
        if is_there:
            assert send(URL, server.settings).verified == ""
        else:
            with pytest.raises(CorruptData, match=r"lost the parts .* try again"):
                send(URL, server.settings)

    assert [bool(upload.how) for upload in store.uploads] == [True, False]


@pytest.mark.parametrize("is_new_line", [False, True], ids=["written anew", "added"])
def test_a_later_process_knows_what_was_proved_by_a_checksum(
    s3, s3_place, source, send, tmp_path, is_new_line
):
    """What was sent ahead is not sent or read again, and the receipt says how it was proved."""
    file = tmp_path / "journal"
    save(source, s3_place.url, s3_place.settings)
    journal = Journal(file, s3_place.url, "r")
    if is_new_line:
        journal.save()
    [entry] = list_folder(source).files
    journal.remember(entry, send(s3_place.url, s3_place.settings))
    journal.save()

    with fault_proxy(s3.port, lambda *_: None) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        [saved] = save(source, s3_place.url, settings, journal=file)

    assert saved.verified == "checksum"
    assert [path for _, path in proxy.requests if "model.pt" in path] == []


def test_the_proof_of_what_came_from_a_store_is_none_of_what_is_sent(source, tmp_path):
    file = tmp_path / "journal"
    [entry] = list_folder(source).files
    journal = Journal(file, URL, "r")
    for proof in ("etag", "checksum", "read back", ""):
        journal.remember(entry, FileRecord("model.pt", len(DATA), "0" * 64, verified=proof))
        journal.save()

        found = [known.record(entry) for known in (journal, Journal(file, URL, "r"))]

        assert [record and record.verified for record in found] == ["", ""]


def test_a_proof_that_is_not_known_here_is_none(s3_place, source, send, tmp_path):
    """A newer trainjob may have left it, and no receipt could be read that says it."""
    file = tmp_path / "journal"
    [entry] = list_folder(source).files
    journal = Journal(file, s3_place.url, "r")
    journal.remember(entry, send(s3_place.url, s3_place.settings))
    journal.save()

    file.write_text(file.read_text().replace('"checksum"', '"oath"'))

    assert Journal(file, s3_place.url, "r").record(entry) is None
