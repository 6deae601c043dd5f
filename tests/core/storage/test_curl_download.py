"""Copies and readings over libcurl: ranges, digests in threads, stores that do less than S3."""

import errno
import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.core.storage.engines import shorten_pauses
from tests.core.storage.scripted_store import Asked, Reply, ScriptedStore, scripted_store
from trainjob.errors import CorruptData, StoreError, StoreUnavailable, TreeChanged
from trainjob.storage.arrived_parts import ArrivedParts
from trainjob.storage.curl import arriving_file, reading
from trainjob.storage.curl.arriving_file import ArrivingFile
from trainjob.storage.curl.store import CurlStore
from trainjob.storage.listing import Entry
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter

PART_BYTES = 1 << 20


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    shorten_pauses(monkeypatch)
    monkeypatch.setattr(arriving_file, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(reading, "RANGE_BYTES", PART_BYTES)


def md5_tag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


class Objects:
    """What a store holds, answered with ranges and conditions as S3 does."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.tags = {key: md5_tag(data) for key, data in objects.items()}
        self.headers: dict[str, str] = {}

    def reply(self, asked: Asked) -> Reply:
        key = unquote(urlsplit(asked.path).path).removeprefix("/b/x/")
        if key not in self.objects:
            return Reply(404)
        if asked.headers.get("if-match") not in (None, self.tags[key]):
            return Reply(412)
        headers = {"ETag": self.tags[key], **self.headers}
        data = self.objects[key]
        if "range" not in asked.headers:
            return Reply(200, data, headers)
        first, last = map(int, asked.headers["range"].removeprefix("bytes=").split("-"))
        return Reply(206, data[first : last + 1], headers)

    def entries(self) -> list[Entry]:
        return [Entry(key, len(self.objects[key]), self.tags[key]) for key in self.objects]


@pytest.fixture
def objects() -> Objects:
    sizes = (0, 1, 300_000, PART_BYTES, PART_BYTES + 1, 5 * PART_BYTES + 17, 3 * PART_BYTES)
    return Objects({f"d/{size}": random.Random(size).randbytes(size) for size in sizes})


@pytest.fixture
def server(objects: Objects) -> Iterator[ScriptedStore]:
    with scripted_store(objects.reply) as server:
        yield server


@pytest.fixture
def store(server: ScriptedStore) -> Iterator[CurlStore]:
    with CurlStore("s3://b/x", server.settings) as store:
        yield store


def records(objects: dict[str, bytes]) -> list[FileRecord]:
    return [
        FileRecord(key, len(data), hashlib.sha256(data).hexdigest())
        for key, data in objects.items()
    ]


def digest_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("trainjob-digest")]


def open_files(folder: Path) -> list[Path]:
    links = [link.resolve() for link in Path("/proc/self/fd").iterdir() if link.exists()]
    return [link for link in links if link.is_relative_to(folder)]


def test_files_of_all_sizes_are_exact_and_told_when_they_are_there(store, objects, tmp_path):
    told: list[FileRecord] = []

    def done(record: FileRecord) -> None:
        assert (tmp_path / record.path).read_bytes() == objects.objects[record.path]
        told.append(record)

    entries = objects.entries()
    found = store.download(entries, tmp_path, Meter(None, entries), done)

    assert found == records(objects.objects)
    assert sorted(told, key=str) == sorted(found, key=str)
    assert (digest_threads(), open_files(tmp_path)) == ([], [])


def test_parts_that_are_there_are_digested_and_not_asked_for(store, server, objects, tmp_path):
    entries, note = objects.entries(), tmp_path / "parts"
    store.download(entries, tmp_path, Meter(None, entries), None, ArrivedParts(note, "boot"))
    size = 5 * PART_BYTES + 17
    parts = ArrivedParts(note, "boot")
    large = [entry for entry in entries if parts.of(entry, PART_BYTES)]
    server.asked.clear()

    found = store.download(large, tmp_path, Meter(None, large), None, parts)

    assert max(entry.size_bytes for entry in large) == size
    assert server.asked == []
    assert found == [record for record in records(objects.objects) if record.path in _paths(large)]


@pytest.mark.parametrize("tags", ['"old-6"', '"new-6"'])
def test_parts_of_another_version_are_never_mixed_in(store, server, objects, tmp_path, tags):
    """Their ETags are no digests, so that nothing but the version can tell."""
    key, note = f"d/{5 * PART_BYTES + 17}", tmp_path / "parts"
    objects.tags[key] = '"old-6"'
    (old,) = (entry for entry in objects.entries() if entry.path == key)
    store.download([old], tmp_path, Meter(None, [old]), None, ArrivedParts(note, "boot"))
    before = objects.objects[key]
    objects.objects[key] = before[::-1]
    objects.tags[key] = tags
    (new,) = (entry for entry in objects.entries() if entry.path == key)
    server.asked.clear()

    store.download([new], tmp_path, Meter(None, [new]), None, ArrivedParts(note, "boot"))

    is_same = tags == old.version
    assert (tmp_path / key).read_bytes() == (before if is_same else before[::-1])
    assert len(server.asked) == (0 if is_same else 6)


def test_an_answer_that_is_too_long_spoils_no_part_that_is_there(store, server, objects, tmp_path):
    key, note = f"d/{5 * PART_BYTES + 17}", tmp_path / "parts"
    objects.tags[key] = '"no-digest"'
    (entry,) = (entry for entry in objects.entries() if entry.path == key)
    store.download([entry], tmp_path, Meter(None, [entry]))
    parts = ArrivedParts(note, "boot")
    for number in (0, 1, 3, 4, 5):
        parts.note(entry, PART_BYTES, number, "")
    server.reply = lambda asked: objects.reply(Asked("GET", asked.path, {}, b""))  # the whole of it
    with pytest.raises(StoreError, match="does not serve parts of objects"):
        store.download([entry], tmp_path, Meter(None, [entry]), None, parts)
    server.reply = objects.reply

    store.download([entry], tmp_path, Meter(None, [entry]), None, ArrivedParts(note, "boot"))

    assert (tmp_path / key).read_bytes() == objects.objects[key]


def test_parts_that_cannot_be_read_are_forgotten(store, objects, tmp_path, monkeypatch):
    key, note = f"d/{5 * PART_BYTES + 17}", tmp_path / "parts"
    (entry,) = (entry for entry in objects.entries() if entry.path == key)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)

    with pytest.raises((OSError, StoreError)):
        store.download([entry], tmp_path, Meter(None, [entry]), None, ArrivedParts(note, "boot"))

    assert ArrivedParts(note, "boot").of(entry, PART_BYTES) is None


def test_a_digest_that_never_began_is_no_part_that_cannot_be_read(tmp_path):
    """An error elsewhere cancels it, and is what is raised."""
    parts, is_over = ArrivedParts(tmp_path / "parts", "boot"), threading.Event()
    entry = Entry("large", 2 * PART_BYTES, '"tag"')
    for number in (0, 1):
        parts.note(entry, PART_BYTES, number, "")
    pool = ThreadPoolExecutor(1)
    pool.submit(is_over.wait)
    file = ArrivingFile(
        str(tmp_path / "large"), entry, Meter(None, [entry]), pool, parts.of(entry, PART_BYTES)
    )

    pool.shutdown(wait=False, cancel_futures=True)
    try:
        assert not file.is_unreadable
    finally:
        is_over.set()
        file.close()


def test_parts_that_are_not_what_they_should_be_are_fetched_again(store, server, objects, tmp_path):
    entries, note = objects.entries(), tmp_path / "parts"
    store.download(entries, tmp_path, Meter(None, entries), None, ArrivedParts(note, "boot"))
    (large,) = (entry for entry in entries if entry.size_bytes == 5 * PART_BYTES + 17)
    with (tmp_path / large.path).open("r+b") as file:
        file.write(b"not this")
    parts = ArrivedParts(note, "boot")
    server.asked.clear()

    [found] = store.download([large], tmp_path, Meter(None, [large]), None, parts)

    assert len(server.asked) == 6
    assert (tmp_path / large.path).read_bytes() == objects.objects[large.path]
    assert found.verified == "etag"


def _paths(entries: list[Entry]) -> set[str]:
    return {entry.path for entry in entries}


def test_a_reading_keeps_nothing_and_says_what_is_there(store, objects, tmp_path):
    entries = objects.entries()

    assert store.digest(entries, Meter(None, entries)) == records(objects.objects)
    assert list(tmp_path.iterdir()) == []


def test_every_request_names_the_version(store, server, objects, tmp_path):
    entries = objects.entries()

    store.download(entries, tmp_path, Meter(None, entries))
    store.digest(entries, Meter(None, entries))

    assert all(asked.headers["if-match"] for asked in server.asked)


@pytest.mark.parametrize("knows_if_match", [True, False])
@pytest.mark.parametrize("size", [1, 300_000, 5 * PART_BYTES + 17])
def test_another_version_is_never_taken(store, server, objects, tmp_path, size, knows_if_match):
    entries = [entry for entry in objects.entries() if entry.size_bytes == size]
    objects.tags = dict.fromkeys(objects.tags, '"other"')
    if not knows_if_match:
        server.reply = lambda asked: objects.reply(
            Asked("GET", asked.path, {"if-match": '"other"'} | _range(asked), b"")
        )

    for work in (store.download, lambda files, _, meter: store.digest(files, meter)):
        with pytest.raises(TreeChanged, match="changed while it was copied"):
            work(entries, tmp_path, Meter(None, entries))

    assert (digest_threads(), open_files(tmp_path)) == ([], [])


def _range(asked: Asked) -> dict[str, str]:
    return {"range": asked.headers["range"]} if "range" in asked.headers else {}


def test_a_deleted_object_is_a_change(store, objects, tmp_path):
    entry = Entry("gone", 1, '"tag"')

    with pytest.raises(TreeChanged, match="deleted while the tree was copied"):
        store.download([entry], tmp_path, Meter(None, [entry]))


def test_an_etag_that_is_no_md5_is_not_compared(store, objects, tmp_path):
    objects.tags = {key: f'"{number}-2"' for number, key in enumerate(objects.objects)}
    entries = objects.entries()

    assert store.download(entries, tmp_path, Meter(None, entries)) == records(objects.objects)


@pytest.mark.parametrize("size", [1, 5 * PART_BYTES + 17])
def test_an_object_encrypted_with_other_keys_has_no_md5(store, objects, tmp_path, size):
    objects.tags = dict.fromkeys(objects.tags, md5_tag(b"of what is stored"))
    objects.headers = {"x-amz-server-side-encryption": "aws:kms"}
    entries = [entry for entry in objects.entries() if entry.size_bytes == size]

    (record,) = store.download(entries, tmp_path, Meter(None, entries))

    assert record.size_bytes == size


@pytest.mark.parametrize("size", [1, 5 * PART_BYTES + 17])
def test_wrong_bytes_are_fetched_again_and_then_refused(store, server, objects, tmp_path, size):
    objects.tags = dict.fromkeys(objects.tags, md5_tag(b"other"))
    entries = [entry for entry in objects.entries() if entry.size_bytes == size]
    told: list[FileRecord] = []

    with pytest.raises(CorruptData, match="do not have the MD5 that the store tells"):
        store.download(entries, tmp_path, Meter(None, entries), told.append)

    assert told == []
    assert len(server.asked) >= 6
    assert (digest_threads(), open_files(tmp_path)) == ([], [])


@pytest.mark.parametrize("size", [1, 300_000, 5 * PART_BYTES + 17])
def test_an_object_of_another_size_than_listed_is_no_copy(store, objects, tmp_path, size):
    entry = Entry(f"d/{size}", size + 1, objects.tags[f"d/{size}"])

    with pytest.raises(StoreUnavailable, match=f"{size} of {size + 1} bytes arrived"):
        store.download([entry], tmp_path, Meter(None, [entry]))
    with pytest.raises(StoreUnavailable, match=f"{size} of {size + 1} bytes arrived"):
        store.digest([entry], Meter(None, [entry]))


def test_a_store_without_ranges_is_named(store, server, objects, tmp_path):
    server.reply = lambda asked: objects.reply(Asked("GET", asked.path, {}, b""))
    entries = [entry for entry in objects.entries() if entry.size_bytes > 5 * PART_BYTES]

    with pytest.raises(StoreError, match="does not serve parts of objects"):
        store.download(entries, tmp_path, Meter(None, entries))
    with pytest.raises(StoreError, match="does not serve parts of objects"):
        store.digest(entries, Meter(None, entries))


def test_a_folder_in_the_way_is_named(store, objects, tmp_path):
    for path in ("d/1", f"d/{PART_BYTES}"):
        (tmp_path / path).mkdir(parents=True)
        entries = [entry for entry in objects.entries() if entry.path == path]

        with pytest.raises(StoreError, match=f"{tmp_path}/{path}: "):
            store.download(entries, tmp_path, Meter(None, entries))


def test_an_error_of_who_hears_of_files_ends_the_copy(store, objects, tmp_path):
    def fail(_: FileRecord) -> None:
        raise RuntimeError("stop")

    entries = objects.entries()

    with pytest.raises(RuntimeError, match="stop"):
        store.download(entries, tmp_path, Meter(None, entries), fail)

    assert (digest_threads(), open_files(tmp_path)) == ([], [])


def test_a_small_file_of_bookkeeping_is_checked_by_its_md5(store, server, objects):
    good: list[Asked] = []
    flipped: list[Asked] = []

    def reply(asked: Asked) -> Reply:
        answer = objects.reply(asked)
        (good if flipped else flipped).append(asked)
        return answer if good else Reply(200, b"?", answer.headers)

    server.reply = reply

    assert store.read("d/1") == objects.objects["d/1"]
    assert (len(flipped), len(good)) == (1, 1)


def test_memory_does_not_grow_with_the_files(tmp_path):
    """A fresh process copies 160 MB; what it needs beyond its start stays small."""
    data = os.urandom(PART_BYTES) * 20
    objects = Objects({f"{number}": data for number in range(8)})
    program = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from trainjob.storage.listing import Entry\n"
        "from trainjob.storage.meter import Meter\n"
        "from trainjob.storage.settings import StoreSettings\n"
        "from trainjob.storage.store import open_store\n"
        "files = [Entry(f'{n}', int(sys.argv[2]), sys.argv[3]) for n in range(8)]\n"
        "settings = StoreSettings(**json.loads(sys.argv[1]))\n"
        "with open_store('s3://b/x', settings) as store:\n"
        "    store.download(files, Path(sys.argv[4]), Meter(None, files))\n"
        # Not ru_maxrss, which counts what the process was before exec, too.
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
    )

    with scripted_store(objects.reply) as server:
        settings = (
            f'{{"endpoint_url": "{server.endpoint_url}", "access_key": "k", "secret_key": "s"}}'
        )
        arguments = [settings, str(len(data)), md5_tag(data), str(tmp_path)]
        ended = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        )

    assert int(ended.stdout) <= 150 << 10
