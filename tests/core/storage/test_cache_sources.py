"""Archives, private copies, and stores that tell no versions."""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.web_server import WebServer
from trainjob.errors import StoreError, TreeChanged
from trainjob.events import Event, Transferred, listening
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import hold, release
from trainjob.storage.cache.incoming import Incoming
from trainjob.storage.cache.snapshot import Snapshot
from trainjob.storage.cache.source import Unpacking, find_source
from trainjob.storage.local import LocalStore
from trainjob.storage.own_files import OWN_FOLDER, RECEIPT, SUCCESS
from trainjob.storage.stage import stage_channel
from trainjob.storage.unpack import unpack_dataset
from trainjob.storage.upload import upload_tree

UNPACK = "trainjob.storage.cache.build.unpack_dataset"
TREE = {"a.txt": b"1", "deep/b.txt": b"22"}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Cache:
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")


@pytest.fixture
def stage(cache, tmp_path):
    def run(url: str, settings=None, name: str = "job", **options):
        target = tmp_path / "inputs" / name
        return stage_channel(url, target, settings, label="data", holder=name, **options)

    return run


def zipped(tree: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in tree.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_url_with_and_without_its_last_slash_is_one_dataset(place, stage, cache):
    place.put("file", b"1")
    first = stage(place.url.rstrip("/") + "/", place.settings)

    second = stage(place.url.rstrip("/"), place.settings)

    assert second.moved_bytes == 0
    assert second.fingerprint == first.fingerprint
    assert len(cache.snapshots()) == 1


def test_an_archive_is_unpacked_once(s3_place, stage, tmp_path, read_tree):
    data = zipped(TREE)
    s3_place.put("digits/data.zip", data)

    first = stage(f"{s3_place.url}/digits", s3_place.settings)
    second = stage(f"{s3_place.url}/digits", s3_place.settings, name="second")

    assert read_tree(tmp_path / "inputs" / "second") == TREE
    assert (first.num_files, first.size_bytes, first.moved_bytes) == (2, 3, len(data))
    assert (second.moved_bytes, second.cached_bytes) == (0, len(data))


def test_an_archive_tells_how_far_it_is_fetched_and_unpacked(s3_place, stage):
    data = zipped(TREE)
    s3_place.put("data.zip", data)
    events: list[Event] = []

    with listening(events.append):
        stage(s3_place.url, s3_place.settings)

    last = {event.label: event for event in events if isinstance(event, Transferred)}
    assert last == {
        "data": Transferred("data", 1, 1, len(data), len(data)),
        "unpack data": Transferred("unpack data", 2, 2, 3, 3),
    }


def test_an_archive_has_the_fingerprint_of_its_folder(stage, write_tree, tmp_path):
    folder = write_tree(tmp_path / "source", TREE)
    (tmp_path / "data.zip").write_bytes(zipped(TREE))

    assert stage(str(tmp_path / "data.zip")).fingerprint == stage(str(folder)).fingerprint


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_a_dataset_that_our_own_upload_brought_keeps_its_fingerprint(
    place, stage, write_tree, tmp_path, mode
):
    folder = write_tree(tmp_path / "source", TREE)
    before = stage(str(folder), name="before")
    for name in ("one", "two"):  # whose receipts say when they were written
        url = f"{place.url}/{name}"
        upload_tree(folder, url, place.settings, run_id=name, facts={}, label="data")

        staged = stage(url, place.settings, name=name, mode=mode, expect=before.fingerprint)

        assert staged.fingerprint == before.fingerprint


def test_a_url_may_name_the_archive_itself(place, stage, tmp_path, read_tree):
    place.put("data.zip", zipped(TREE))
    place.put("data.zip.md5", b"beside it")

    staged = stage(f"{place.url}/data.zip", place.settings)

    assert read_tree(tmp_path / "inputs" / "job") == TREE
    assert not staged.is_in_place


def fingerprint_of_before(snapshot: Snapshot) -> str:
    """As a trainjob found it that counted a receipt among the files."""
    rows = sorted([line.path, line.size_bytes, line.sha256] for line in snapshot.files())
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def test_what_was_pinned_when_a_receipt_counted_is_still_the_same_data(
    place, stage, cache, write_tree, tmp_path
):
    folder = write_tree(tmp_path / "source", TREE)
    upload_tree(folder, place.url, place.settings, run_id="run", facts={}, label="data")
    found = stage(place.url, place.settings)
    [snapshot] = cache.snapshots()
    of_before = fingerprint_of_before(snapshot)

    staged = stage(place.url, place.settings, name="pinned", expect=of_before)

    assert staged.fingerprint == found.fingerprint != of_before
    with pytest.raises(StoreError, match="not the expected sha256:0"):
        stage(place.url, place.settings, name="other", expect=f"sha256:{0:064}")


def test_an_archive_that_was_cached_when_a_receipt_in_it_counted_can_be_copied(
    stage, cache, tmp_path, read_tree
):
    tree = TREE | {RECEIPT: b"{}", SUCCESS: b""}
    (tmp_path / "data.zip").write_bytes(zipped(tree))
    stage(str(tmp_path / "data.zip"), name="first")
    [snapshot] = cache.snapshots()
    of_before = replace(snapshot.header, fingerprint=fingerprint_of_before(snapshot))
    (snapshot.root / "snapshot.json").write_text(of_before.text())

    stage(str(tmp_path / "data.zip"), name="copy", mode="copy")

    assert of_before.fingerprint != snapshot.header.fingerprint
    assert read_tree(tmp_path / "inputs" / "copy") == tree


@pytest.mark.parametrize("has_receipt", [False, True])
def test_what_an_older_trainjob_cached_is_used_unless_a_receipt_counted_in_it(
    s3_place, has_receipt
):
    for path in ("ü/a", "b", *([RECEIPT] if has_receipt else [])):
        s3_place.put(path, b"1")
    source = find_source(f"{s3_place.url}/", s3_place.settings, Unpacking())
    files = sorted((file.path, file.size_bytes, file.version) for file in source.listing.files)
    identity = [source.url, source.endpoint, None]
    of_before = hashlib.sha256(json.dumps([1, identity, files, []]).encode()).hexdigest()[:32]

    assert (source.key == of_before) == (not has_receipt)


@pytest.mark.parametrize("said", [b'{"error": "no such file"}', 400, 410, 500])
def test_what_a_web_server_says_of_a_receipt_is_not_asked(stage, tmp_path, said, read_tree):
    (tmp_path / "www" / OWN_FOLDER).mkdir(parents=True)
    (tmp_path / "www" / "model.pt").write_bytes(b"weights")
    with WebServer(tmp_path / "www") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        if isinstance(said, bytes):
            (tmp_path / "www" / RECEIPT).write_bytes(said)
        else:
            server.faults[f"GET /{RECEIPT}"] = [said] * 10
        try:
            stage(f"{server.url}/model.pt")
        finally:
            server.shutdown()
            thread.join()

    assert read_tree(tmp_path / "inputs" / "job") == {"model.pt": b"weights"}


def test_an_archive_of_this_machine_is_not_copied(stage, tmp_path, monkeypatch, read_tree):
    """It may be larger than what is left of the disk."""
    data = zipped(TREE)
    (tmp_path / "data.zip").write_bytes(data)
    monkeypatch.setattr(LocalStore, "download", None)

    staged = stage(str(tmp_path / "data.zip"))

    assert read_tree(tmp_path / "inputs" / "job") == TREE
    assert (staged.moved_bytes, staged.verified) == (len(data), "size")
    assert (tmp_path / "data.zip").read_bytes() == data


@pytest.mark.parametrize("spoils", [False, True], ids=["replaced", "cut off"])
@pytest.mark.parametrize("is_before", [True, False], ids=["before", "meanwhile"])
def test_an_archive_that_changes_while_it_is_unpacked_is_not_taken(
    stage, cache, tmp_path, monkeypatch, is_before, spoils
):
    archive, keep = tmp_path / "data.zip", Incoming.keep
    archive.write_bytes(zipped(TREE))

    def change_and(step: Callable[..., object], *arguments: Any, **options: Any) -> object:
        archive.write_bytes(b"PK" if spoils else zipped({"other": b"3"}))
        return step(*arguments, **options)

    if is_before:
        monkeypatch.setattr(Incoming, "keep", lambda *arguments: change_and(keep, *arguments))
    else:
        monkeypatch.setattr(UNPACK, partial(change_and, unpack_dataset))

    with pytest.raises(TreeChanged, match=r"data\.zip: the file changed while it was copied"):
        stage(str(archive))

    assert cache.snapshots() == []


def test_what_a_try_left_is_in_nobodys_way(stage, cache, tmp_path, monkeypatch, read_tree):
    archive = tmp_path / "data.zip"
    archive.write_bytes(zipped(TREE))

    def unpack_half(_archive, _url, target, *_arguments, **_options):
        target.mkdir()
        (target / "half").touch()
        raise TreeChanged("as if it had changed")

    monkeypatch.setattr(UNPACK, unpack_half)
    with pytest.raises(TreeChanged):
        stage(str(archive))
    monkeypatch.setattr(UNPACK, unpack_dataset)
    stage(str(archive))

    assert read_tree(tmp_path / "inputs" / "job") == TREE
    assert list(cache.incoming.iterdir()) == []


def test_an_archive_that_is_wanted_as_it_is_stays_one(s3_place, stage, tmp_path, read_tree):
    data = zipped(TREE)
    s3_place.put("data.zip", data)

    stage(s3_place.url, s3_place.settings)
    stage(s3_place.url, s3_place.settings, unpacking=Unpacking(is_wanted=False))

    assert read_tree(tmp_path / "inputs" / "job") == {"data.zip": data}


def test_an_archive_that_our_own_upload_brought_is_unpacked(
    place, stage, write_tree, tmp_path, read_tree
):
    """What the upload writes beside it is none of the data."""
    data = zipped(TREE)
    outputs = write_tree(tmp_path / "outputs", {"data.zip": data})
    upload_tree(outputs, place.url, place.settings, run_id="run", facts={}, label="data")

    first = stage(place.url, place.settings)
    stage(place.url, place.settings, name="kept", unpacking=Unpacking(is_wanted=False))

    assert read_tree(tmp_path / "inputs" / "job") == TREE
    assert (first.moved_bytes, first.verified) == (len(data), "receipt")
    assert read_tree(tmp_path / "inputs" / "kept").keys() == {"data.zip", RECEIPT, SUCCESS}


def test_an_archive_is_unpacked_only_if_what_is_beside_it_is_ours(
    place, stage, tmp_path, read_tree
):
    place.put("data.zip", zipped(TREE))
    place.put(SUCCESS, b"")

    stage(place.url, place.settings)

    assert read_tree(tmp_path / "inputs" / "job").keys() == {"data.zip", SUCCESS}


def test_a_changed_archive_is_unpacked_anew(s3_place, stage, tmp_path, read_tree):
    s3_place.put("data.zip", zipped(TREE))
    stage(s3_place.url, s3_place.settings)
    s3_place.put("data.zip", zipped({"c": b"3"}))

    stage(s3_place.url, s3_place.settings)

    assert read_tree(tmp_path / "inputs" / "job") == {"c": b"3"}


def test_what_has_no_versions_is_nobody_elses(stage, cache, tmp_path, monkeypatch, read_tree):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    url = f"memory://{tmp_path.name}"
    monkeypatch.setattr(
        "trainjob.storage.cache.source.Source.has_versions", property(lambda _: False)
    )
    memory.pipe(f"/{tmp_path.name}/file", b"old")
    stage(url)
    memory.pipe(f"/{tmp_path.name}/file", b"new")

    stage(url, name="second")
    release(cache, "job")
    release(cache, "second")

    assert cache.snapshots() == []


def test_a_later_process_of_the_run_keeps_what_an_earlier_one_staged(
    s3_place, stage, cache, tmp_path
):
    s3_place.put("file", b"1")
    stage(s3_place.url, s3_place.settings)
    folder = tmp_path / "inputs" / "job"
    [snapshot] = cache.snapshots()
    [lease] = snapshot.leases()
    lease.file.unlink()

    assert hold(cache, folder, "job")
    assert not cache.evict(snapshot)
    release(cache, "job")
    assert cache.evict(snapshot)
    assert not hold(cache, folder, "job")


def test_a_private_copy_needs_nobody_to_keep_it(s3_place, stage, cache, tmp_path):
    s3_place.put("file", b"1")
    stage(s3_place.url, s3_place.settings, mode="copy")

    assert hold(cache, tmp_path / "inputs" / "job", "job")
    assert not hold(cache, Path(tmp_path / "inputs" / "nothing"), "job")


def test_the_cached_half_of_a_private_copy_may_go_as_soon_as_the_copy_is_there(
    s3_place, stage, cache, tmp_path, read_tree
):
    s3_place.put("file", b"1")
    stage(s3_place.url, s3_place.settings, mode="copy")

    [snapshot] = cache.snapshots()
    assert cache.evict(snapshot)
    assert read_tree(tmp_path / "inputs" / "job") == {"file": b"1"}


def test_what_another_job_shares_stays_when_a_private_copy_is_made(s3_place, stage, cache):
    s3_place.put("file", b"1")
    stage(s3_place.url, s3_place.settings, name="shares")
    stage(s3_place.url, s3_place.settings, mode="copy")

    [snapshot] = cache.snapshots()
    assert [user.holder for user in snapshot.users()] == ["shares"]
