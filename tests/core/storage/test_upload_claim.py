"""Whose an output folder is, and how it was proved that it holds what was sent."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from trainjob.errors import CorruptData, OutputNotEmpty
from trainjob.storage import upload
from trainjob.storage.claim import CLAIM, own_files, write_claim
from trainjob.storage.fsspec_store import FsspecStore
from trainjob.storage.listing import Entry
from trainjob.storage.local_tree import list_folder
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.read_back import read_back
from trainjob.storage.receipt import read_receipt, verify_receipt
from trainjob.storage.store import Store, open_store
from trainjob.storage.upload import upload_tree


class WithoutConditions:
    """A store that writes whatever the condition is, as those that do not know `If-None-Match`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def create(self, path: str, data: bytes) -> bool:
        self._store.write(path, data)
        return True


@pytest.fixture
def memory() -> Iterator[FsspecStore]:
    """A store whose driver looks whether there is a file, and writes it then."""
    yield FsspecStore("memory://bucket/tree")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def store(place):
    with open_store(place.url, place.settings) as store:
        yield store


def test_a_file_is_created_only_once(any_place):
    with open_store(any_place.url, any_place.settings) as store:
        answers = [store.create("a/b", data) for data in (b"first", b"second")]

    assert answers == [True, False]
    assert any_place.get("a/b") == b"first"
    assert any_place.paths() == ["a/b"]


def test_folders_that_hold_nothing_are_made_and_deleted(any_place):
    with open_store(any_place.url, any_place.settings) as store:
        store.write("full/file", b"1")
        store.make_folders(["a/empty", "full", "gone"])
        store.delete(["gone/", "never/was/"])
        folders = set(store.list_files().folders)
        store.delete(["full/"])

        assert {"a/empty", "full"} <= folders
        assert "gone" not in folders
        assert store.read("full/file") == b"1"


def test_what_of_ours_is_unfinished_in_an_object_store_is_thrown_away(s3, s3_place, engine):
    for name in ("a", "b/ü +&#", "of/others", "a.of.others"):
        s3.client.create_multipart_upload(Bucket=s3_place.bucket, Key=f"{s3_place.prefix}/{name}")

    with open_store(s3_place.url, s3_place.settings) as store:
        num_discarded = [store.discard_unfinished({"a", "b/ü +&#"}) for _ in range(2)]

    assert num_discarded == [2, 0]
    found = s3.client.list_multipart_uploads(Bucket=s3_place.bucket, Prefix=s3_place.prefix)
    left = {item["Key"].removeprefix(f"{s3_place.prefix}/") for item in found["Uploads"]}
    assert left == {"of/others", "a.of.others"}


def test_an_upload_leaves_alone_what_others_are_sending(s3, s3_place, tmp_path, write_tree, engine):
    """A place where nothing is complete yet counts as empty."""
    outputs = write_tree(tmp_path / "outputs", {"a": b"1"})
    keys = [f"{s3_place.prefix}/{name}" for name in ("a", "500GB.tar")]
    for key in keys:
        s3.client.create_multipart_upload(Bucket=s3_place.bucket, Key=key)

    upload_tree(outputs, s3_place.url, s3_place.settings, run_id="r", facts={}, label="out")

    found = s3.client.list_multipart_uploads(Bucket=s3_place.bucket, Prefix=s3_place.prefix)
    assert [item["Key"] for item in found["Uploads"]] == keys[1:]


def test_one_of_many_that_create_a_file_succeeds(place):
    answers: list[bool] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        with open_store(place.url, place.settings) as store:
            start.wait()
            answers.append(store.create("claim", b"%d" % number))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answers) == [False] * 7 + [True]


def test_a_claim_is_exclusive_where_the_store_makes_it_so(store):
    first, how = write_claim(store, "run-1", {"a"})
    again, still = write_claim(store, "run-1", {"a", "b"})

    assert (how, still) == ("by the store", "by the store")
    assert [claim.files for claim in (first, again)] == [frozenset("a"), frozenset("ab")]
    with pytest.raises(OutputNotEmpty, match="in use by the run run-1"):
        write_claim(store, "run-2", {"a"})


def test_a_claim_says_when_the_store_does_not_make_it_exclusive(store):
    claims = [write_claim(WithoutConditions(store), "run-1", {"a"}) for _ in range(2)]

    assert [how for _, how in claims] == ["by looking", "by looking"]


def test_a_claim_says_when_looking_and_writing_are_two_steps(memory):
    """Though such a store says no to the second of two that come one after the other."""
    claims = [write_claim(memory, "run-1", {"a"}) for _ in range(2)]

    assert [how for _, how in claims] == ["by looking", "by looking"]
    with pytest.raises(OutputNotEmpty, match="in use by the run run-1"):
        write_claim(memory, "run-2", {"a"})


def test_the_claim_of_a_run_that_was_faster_is_not_replaced(store, place):
    """It came after this run had found the folder empty."""
    write_claim(store, "run-1", {"a"})
    before = place.get(CLAIM)

    with pytest.raises(OutputNotEmpty):
        write_claim(store, "run-2", {"a"})

    assert place.get(CLAIM) == before


@pytest.mark.parametrize("wrap", [lambda store: store, WithoutConditions])
def test_a_result_that_came_meanwhile_is_not_claimed(store, place, tmp_path, write_tree, wrap):
    """The other run, which has ended since this one found the folder empty, has no claim left."""
    outputs = write_tree(tmp_path / "outputs", {"a": b"1"})
    upload_tree(outputs, place.url, place.settings, run_id="run-1", facts={}, label="out")
    before = place.paths()

    with pytest.raises(OutputNotEmpty, match="the output of the run run-1"):
        write_claim(wrap(store), "run-2", {"a"})

    assert place.paths() == before


def test_of_two_runs_that_found_the_folder_empty_the_later_one_replaces_nothing(
    place, tmp_path, write_tree, monkeypatch
):
    folders = {name: write_tree(tmp_path / name, {"a": name.encode()}) for name in ("one", "two")}

    def run(run_id: str) -> None:
        upload_tree(
            folders[run_id], place.url, place.settings, run_id=run_id, facts={}, label="out"
        )

    def look_and_wait(store: Store, present: set[str], run_id: str) -> set[str]:
        own = own_files(store, present, run_id)
        if run_id == "two":
            run("one")
        return own

    monkeypatch.setattr(upload, "own_files", look_and_wait)
    with pytest.raises(OutputNotEmpty):
        run("two")

    assert place.get("a") == b"one"
    assert verify_receipt(place.url, place.settings).problems == ()


def test_the_receipt_says_how_the_folder_was_claimed_and_each_file_verified(
    place, tmp_path, write_tree
):
    outputs = write_tree(tmp_path / "outputs", {"a": b"1", "b/c": b""})

    upload_tree(outputs, place.url, place.settings, run_id="r", facts={}, label="out")

    receipt = read_receipt(place.url, place.settings)
    how = "etag" if place.url.startswith("s3") else "read back"
    assert receipt.claimed == "by the store"
    assert {file.path: file.verified for file in receipt.files} == {"a": how, "b/c": how}


class Listed:
    """Notes what is read of a store."""

    url = "s3://bucket/folder/"

    def __init__(self, store: Store) -> None:
        self._store = store
        self.digested: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def digest(self, files: Sequence[Entry], meter: Meter) -> list[FileRecord]:
        self.digested += [entry.path for entry in files]
        return self._store.digest(files, meter)


def test_only_what_the_etag_does_not_prove_is_read_back(s3_place, tmp_path, write_tree):
    source = write_tree(tmp_path / "source", {"known": b"1", "without": b"2", "other": b"3"})
    files = list_folder(source).files

    with open_store(s3_place.url, s3_place.settings) as store:
        sent = {file.path: file for file in store.upload(source, files, Meter(None, files))}
        sent["without"] = replace(sent["without"], etag="")
        sent["other"] = replace(sent["other"], etag=sent["known"].etag)
        listed = Listed(store)
        proved = read_back(listed, list(sent.values()), None)

    assert sorted(listed.digested) == ["other", "without"]
    assert {file.path: file.verified for file in proved} == {
        "known": "etag",
        "without": "read back",
        "other": "read back",
    }


@pytest.mark.parametrize("keep_etag", [True, False])
def test_what_somebody_replaced_since_it_was_sent_is_found(
    s3_place, tmp_path, write_tree, keep_etag
):
    source = write_tree(tmp_path / "source", {"model.pt": b"weights"})
    files = list_folder(source).files

    with open_store(s3_place.url, s3_place.settings) as store:
        (sent,) = store.upload(source, files, Meter(None, files))
        s3_place.put("model.pt", b"WEIGHTS")
        with pytest.raises(CorruptData, match=r"model.pt: other bytes than were sent"):
            read_back(store, [sent if keep_etag else replace(sent, etag="")], None)
