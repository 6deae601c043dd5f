"""Stores that only a driver of fsspec reaches: the promises of all stores, as far as they go."""

import base64
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.web_server import WebServer
from trainjob.errors import (
    CorruptData,
    StoreDenied,
    StoreError,
    StoreNotFound,
    StoreUnavailable,
    TreeChanged,
)
from trainjob.storage import fsspec_store, workers
from trainjob.storage.deadline import Deadline, ending_at
from trainjob.storage.fsspec_driver import is_known
from trainjob.storage.fsspec_store import FsspecStore
from trainjob.storage.listing import Entry
from trainjob.storage.local import PARTIAL
from trainjob.storage.local_tree import list_folder
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    (tmp_path / "www").mkdir()
    with WebServer(tmp_path / "www") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def memory() -> Iterator[FsspecStore]:
    yield FsspecStore("memory://bucket/tree")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def quick_tries(monkeypatch):
    monkeypatch.setattr(fsspec_store, "_FIRST_PAUSE_S", 0.001)


def fetch(store: FsspecStore, target: Path) -> list[FileRecord]:
    files = store.list_files().files
    return store.download(files, target, Meter(None, files))


def test_a_tree_makes_the_round_trip_in_a_store_of_another_kind(
    memory, nasty_tree, tmp_path, write_tree, read_tree
):
    source = write_tree(tmp_path / "source", nasty_tree)
    files = list_folder(source).files

    sent = memory.upload(source, files, Meter(None, files))
    got = fetch(memory, tmp_path / "data")

    assert read_tree(tmp_path / "data") == nasty_tree
    assert {f.path: f.sha256 for f in sent} == {f.path: f.sha256 for f in got}
    assert {f.path: f.sha256 for f in got} == {
        name: hashlib.sha256(data).hexdigest() for name, data in nasty_tree.items()
    }


def test_a_web_server_is_a_store_that_can_be_read(web, nasty_tree, tmp_path, write_tree, read_tree):
    large = os.urandom(6 << 20)  # more than a block of fsspec, from a server without ranges
    tree = nasty_tree | {"large": large}
    write_tree(tmp_path / "www" / "tree", tree)
    store = FsspecStore(f"{web.url}/tree")

    got = fetch(store, tmp_path / "data")

    assert read_tree(tmp_path / "data") == tree
    assert {f.path for f in got} == set(tree)
    assert store.has_files()
    assert store.read("plain.txt") == tree["plain.txt"]
    assert store.digest(store.list_files().files, Meter(None, ())) == got


def test_links_to_other_places_of_a_server_are_not_its_files(web, tmp_path):
    folder = tmp_path / "www" / "tree"
    folder.mkdir(parents=True)
    (folder / "a&b").write_bytes(b"1")
    (folder / "index.html").write_text(
        '<a href="?C=N;O=D">by name</a> <a href="/">home</a> <a href="../">up</a>'
        '<a href="https://elsewhere.example/x">x</a> <a href="a&amp;b">file</a>'
        '<a href="mailto:admin@store.example">mail</a> <a href="javascript:void(0)">top</a>'
    )

    files = FsspecStore(f"{web.url}/tree").list_files().files

    assert [(file.path, file.size_bytes) for file in files] == [("a&b", 1)]


def test_a_page_that_leads_out_of_the_folder_is_told_as_it_is(web, tmp_path):
    folder = tmp_path / "www" / "tree"
    folder.mkdir(parents=True)
    (tmp_path / "www" / "secret").write_bytes(b"1")
    (folder / "index.html").write_text('<a href="%2e%2e/secret">x</a>')

    files = FsspecStore(f"{web.url}/tree").list_files().files

    assert [file.path for file in files] == ["../secret"]  # which check_paths refuses by name


@pytest.mark.usefixtures("quick_tries")
@pytest.mark.parametrize("fault", [503, "cut"])
def test_a_download_survives_what_networks_do_to_a_driver(web, tmp_path, read_tree, fault):
    (tmp_path / "www" / "file").write_bytes(b"x" * 1000)
    store = FsspecStore(web.url)
    web.faults["GET /file"] = [fault, fault]

    fetch(store, tmp_path / "data")

    assert read_tree(tmp_path / "data") == {"file": b"x" * 1000}


@pytest.mark.usefixtures("quick_tries")
@pytest.mark.parametrize(
    ("fault", "error", "found"),
    [
        (503, StoreUnavailable, "the store cannot answer now (503)"),
        ("cut", StoreUnavailable, "no whole answer from the store (ContentLengthError)"),
        (403, StoreDenied, "the store refuses these credentials (403)"),
        (404, TreeChanged, "the file was deleted while the tree was copied"),
    ],
)
def test_a_store_that_stays_broken_is_one_clear_error(web, tmp_path, fault, error, found):
    (tmp_path / "www" / "file").write_bytes(b"x" * 1000)
    store = FsspecStore(web.url)
    web.faults["GET /file"] = [fault] * 9

    with pytest.raises(error) as caught:
        fetch(store, tmp_path / "data")

    assert f"{web.url}/file: {found}; " in str(caught.value)


def test_a_folder_that_cannot_be_listed_is_never_left_out(web, tmp_path, write_tree):
    write_tree(tmp_path / "www", {"a/1": b"1", "b/2": b"2"})
    web.faults["GET /b/"] = [503]

    with pytest.raises(StoreUnavailable, match="/b: the store cannot answer now"):
        FsspecStore(web.url).list_files()


@pytest.mark.parametrize("where", ["memory", "web"])
def test_a_file_that_is_replaced_after_the_listing_is_a_changed_tree(request, tmp_path, where):
    if where == "memory":
        store = request.getfixturevalue("memory")
        store.write("file", b"old")
        listing = store.list_files()
        store.write("file", b"new")
    else:
        file = tmp_path / "www" / "file"
        store = FsspecStore(request.getfixturevalue("web").url)
        file.write_bytes(b"old")
        listing = store.list_files()
        file.write_bytes(b"new")
        os.utime(file, (1, 1))

    with pytest.raises(TreeChanged, match="changed while it was copied"):
        store.download(listing.files, tmp_path / "data", Meter(None, listing.files))


@pytest.mark.usefixtures("quick_tries")
def test_bytes_that_differ_from_the_md5_of_the_store_are_no_file(web, tmp_path):
    (tmp_path / "www" / "file").write_bytes(b"data")
    web.headers["Content-MD5"] = base64.b64encode(hashlib.md5(b"data").digest()).decode()
    assert fetch(FsspecStore(web.url), tmp_path / "data")[0].verified == "etag"
    (tmp_path / "www" / "file").write_bytes(b"dat\0")

    with pytest.raises(CorruptData, match="do not have the MD5 that the store tells"):
        fetch(FsspecStore(web.url), tmp_path / "data")


def test_a_stalled_driver_ends_with_the_deadline(web, tmp_path, monkeypatch):
    (tmp_path / "www" / "file").write_bytes(b"data")
    monkeypatch.setattr(workers, "_END_TIMEOUT_S", 0)
    store = FsspecStore(web.url)
    web.faults["GET /file"] = ["stall"]
    files = store.list_files().files

    with ending_at(Deadline(0.3)), pytest.raises(StoreUnavailable, match="in the time that was"):
        store.download(files, tmp_path / "data", Meter(None, files))


def test_an_upload_that_fails_leaves_the_old_file_and_nothing_else(memory):
    memory.write("file", b"old")

    def chunks() -> Iterator[bytes]:
        yield b"new"
        raise ValueError("the script's own")

    with pytest.raises(ValueError, match="own"):
        memory.upload_chunks("file", chunks())

    assert memory.read("file") == b"old"
    assert [entry.path for entry in memory.list_files().files] == ["file"]


def test_a_file_that_changes_after_the_listing_is_not_among_what_was_sent(
    memory, tmp_path, write_tree
):
    source = write_tree(tmp_path / "source", {"kept": b"1", "other": b"2"})
    files = list_folder(source).files
    (source / "other").write_bytes(b"longer")
    changed: list[str] = []

    sent = memory.upload(source, files, Meter(None, files), changed)

    assert [record.path for record in sent] == ["kept"]
    assert changed == ["other"]
    with pytest.raises(TreeChanged):
        memory.upload(source, files, Meter(None, files))
    assert not any(e.path.startswith(PARTIAL) for e in memory.list_files().files)


def test_small_files_are_written_read_and_deleted(memory):
    memory.write("a/b", b"1")
    memory.prove_writing()

    assert memory.read("a/b") == b"1"
    assert memory.create("a/b", b"2") is False
    assert memory.create("c", b"3") is True
    assert FsspecStore(f"{memory.url}c").is_file()
    assert not memory.is_file()
    memory.delete(["a/b", "a/b", "never there"])
    with pytest.raises(StoreNotFound, match="a/b: no such file"):
        memory.read("a/b")
    assert [entry.path for entry in memory.list_files().files] == ["c"]


def test_a_folder_that_is_not_there_is_empty(web, memory):
    for store in (memory, FsspecStore(f"{web.url}/nothing")):
        assert store.list_files().files == ()
        assert not store.has_files()
        assert not store.is_file()


def test_a_web_server_says_that_it_cannot_be_written(web):
    with pytest.raises(StoreError, match=r"http:// can only be read; use a store that can"):
        FsspecStore(web.url).prove_writing()


def test_a_server_that_is_not_there_is_unavailable(web):
    store = FsspecStore("http://127.0.0.1:1/tree")

    for ask in (store.list_files, store.is_file, lambda: store.read("x")):
        with pytest.raises(StoreUnavailable, match="check the address and the network"):
            ask()


def test_a_driver_that_is_missing_is_named_with_its_package():
    with pytest.raises(StoreError, match=r"driver for gs:// is not installed; .*pip .*gcsfs"):
        FsspecStore("gs://bucket/tree")


@pytest.mark.parametrize(
    "url", ["https://user:s3cret@host/tree", "https://host/tree?token=s3cret#x"]
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url):
    with pytest.raises(StoreError) as caught:
        FsspecStore(url)

    assert "s3cret" not in str(caught.value)
    assert "https://host/tree" in str(caught.value)


def test_what_fsspec_knows_is_known_but_for_what_has_a_store_of_its_own():
    assert all(is_known(scheme) for scheme in ("gs", "abfs", "hdfs", "http", "memory"))
    assert not any(is_known(scheme) for scheme in ("s3", "file", "local", "nope", ""))


def test_the_errors_of_any_driver_are_told_without_signed_urls(monkeypatch):
    class Driver(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
        protocol = "memory"

        def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
            raise RuntimeError("no login; https://host/x?sig=s3cret failed")

    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda scheme: Driver)

    with pytest.raises(StoreError, match=r"the driver failed \(RuntimeError: no login, ") as caught:
        FsspecStore("memory://tree").list_files()

    assert "s3cret" not in str(caught.value)


def test_a_file_of_unknown_size_is_refused_by_name(memory, monkeypatch):
    info = {"name": "/bucket/tree/file", "type": "file", "size": None}
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: {info["name"]: info})
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *_, **__: info)

    with pytest.raises(StoreError, match="tree/file: a file of unknown size"):
        memory.list_files()


def test_entries_tell_versions_apart(memory):
    memory.write("file", b"1")
    first: Entry = memory.list_files().files[0]
    memory.write("file", b"2")

    assert memory.list_files().files[0].version != first.version != ""


def test_one_file_is_found_without_the_others(memory):
    memory.write("data.zip", b"1")
    memory.write("folder/data.zip", b"2")

    listed = {entry.path: entry for entry in memory.list_files().files}

    assert memory.find("data.zip") == listed["data.zip"]
    assert memory.find("folder") is None
    assert memory.find("gone.zip") is None
