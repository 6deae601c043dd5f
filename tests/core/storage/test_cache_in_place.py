"""Folders of this machine, which are used where they lie."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from trainjob.errors import StoreError, TreeChanged
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import release
from trainjob.storage.listing import Entry
from trainjob.storage.local import LocalStore
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.stage import stage_channel

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


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_of_this_machine_is_used_where_it_lies(stage, write_tree, tmp_path, scheme):
    source = write_tree(tmp_path / "source", TREE)

    staged = stage(f"{scheme}{source}")

    target = tmp_path / "inputs" / "job"
    assert target.is_symlink()
    assert target.resolve() == source
    assert (staged.is_in_place, staged.moved_bytes, staged.num_files) == (True, 0, 2)


def test_a_folder_of_this_machine_is_read_once(stage, write_tree, tmp_path, monkeypatch):
    source = write_tree(tmp_path / "source", TREE)
    first = stage(str(source))
    monkeypatch.setattr(LocalStore, "digest", None)

    second = stage(str(source), name="second")

    assert second.fingerprint == first.fingerprint


def test_only_what_changed_in_a_folder_of_this_machine_is_read_again(
    stage, write_tree, tmp_path, monkeypatch
):
    """One that grows by a file a day may have a terabyte."""
    source, digest = write_tree(tmp_path / "source", TREE), LocalStore.digest
    read: list[str] = []

    def note(store: LocalStore, files: Sequence[Entry], meter: Meter) -> list[FileRecord]:
        read.extend(entry.path for entry in files)
        return digest(store, files, meter)

    monkeypatch.setattr(LocalStore, "digest", note)
    stage(str(source))
    read.clear()
    (source / "a.txt").write_bytes(b"33")
    (source / "added").write_bytes(b"4")

    staged = stage(str(source), name="second")

    other = write_tree(tmp_path / "other", {**TREE, "a.txt": b"33", "added": b"4"})
    assert sorted(read) == ["a.txt", "added"]
    assert staged.fingerprint == stage(str(other), name="other").fingerprint


def test_a_folder_whose_earlier_manifest_was_spoiled_is_read(stage, cache, write_tree, tmp_path):
    source = write_tree(tmp_path / "source", TREE)
    stage(str(source))
    [first] = cache.snapshots()
    (first.root / "files.json").write_bytes(b"")
    (source / "added").write_bytes(b"3")

    assert stage(str(source), name="second").num_files == 3


def test_a_folder_that_changes_while_it_is_read_is_not_taken(
    stage, cache, write_tree, tmp_path, monkeypatch
):
    source = write_tree(tmp_path / "source", TREE)
    digest = LocalStore.digest

    def digest_and_add(*arguments):
        (source / "added").touch()
        return digest(*arguments)

    monkeypatch.setattr(LocalStore, "digest", digest_and_add)

    with pytest.raises(TreeChanged, match="it changed while it was read"):
        stage(str(source))

    assert cache.snapshots() == []


def test_a_folder_that_holds_the_cache_is_refused_with_the_reason(
    stage, write_tree, tmp_path, monkeypatch
):
    source = write_tree(tmp_path / "source", TREE)
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(source / "work" / "cache"))

    with pytest.raises(StoreError, match="a folder that holds the cache itself") as caught:
        stage(str(source))

    assert not caught.value.retryable
    assert "set TRAINJOB_CACHE_DIR to another place" in str(caught.value)


def test_a_dataset_dated_in_the_future_does_not_take_the_place_of_the_next_one(
    stage, cache, write_tree, tmp_path
):
    """As it is after a machine started with a wrong clock, and on a second one whose clock is."""
    source = write_tree(tmp_path / "source", TREE)
    stage(str(source))
    release(cache, "job")
    [first] = cache.snapshots()
    header = replace(first.header, created="2999-01-01T00:00:00.000+00:00")
    (first.root / "snapshot.json").write_text(header.text())
    (source / "added").write_bytes(b"3")

    staged = stage(str(source), name="second")

    assert staged.num_files == 3
    assert [snapshot.header.num_files for snapshot in cache.snapshots()] == [3]


def test_a_folder_that_a_script_changes_in_place_is_told_of(stage, cache, write_tree, tmp_path):
    source = write_tree(tmp_path / "source", TREE)
    stage(str(source))
    (tmp_path / "inputs" / "job" / "a.txt").write_bytes(b"2")

    [note] = release(cache, "job")

    assert note == f"the dataset at {source} changed while the run used it: a.txt: changed"
    assert source.is_dir()


def test_a_folder_that_can_no_longer_be_listed_is_told_with_the_reason(
    stage, cache, write_tree, tmp_path
):
    source = write_tree(tmp_path / "source", TREE)
    stage(str(source))
    (tmp_path / "inputs" / "job" / "latest").symlink_to("nowhere")

    [note] = release(cache, "job")

    assert "changed while the run used it" in note
    assert "'latest' is a link that leads to nothing" in note
    assert "missing" not in note


def test_a_folder_of_this_machine_can_be_copied(stage, write_tree, tmp_path, read_tree):
    source = write_tree(tmp_path / "source", TREE)

    stage(str(source), mode="copy")
    (tmp_path / "inputs" / "job" / "a.txt").write_bytes(b"of the script")

    assert read_tree(source) == TREE
