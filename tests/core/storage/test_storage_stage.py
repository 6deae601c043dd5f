"""Bringing a tree to this machine: exact, verified, or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from trainjob.errors import StoreError, StoreNotFound, TreeChanged, UnsafeKey
from trainjob.events import Transferred, listening
from trainjob.storage.manifest import fingerprint
from trainjob.storage.meter import Meter
from trainjob.storage.stage import stage_tree
from trainjob.storage.store import open_store


def test_a_tree_arrives_as_it_is(place, nasty_tree, tmp_path, read_tree):
    for name, data in nasty_tree.items():
        place.put(name, data)

    staged = stage_tree(place.url, tmp_path / "data", place.settings, "data")

    assert read_tree(tmp_path / "data") == nasty_tree
    assert {file.path: file.size_bytes for file in staged.files} == {
        name: len(data) for name, data in nasty_tree.items()
    }
    assert staged.num_files == len(nasty_tree)
    assert staged.size_bytes == sum(map(len, nasty_tree.values()))
    assert staged.fingerprint == fingerprint(staged.files)


def test_a_tree_has_one_fingerprint_in_every_store(s3_place, tmp_path, write_tree):
    write_tree(tmp_path / "here", {"a": b"1", "b/c": b"2"})
    s3_place.put("a", b"1")
    s3_place.put("b/c", b"2")

    here = stage_tree(str(tmp_path / "here"), tmp_path / "one", None, "data")
    there = stage_tree(s3_place.url, tmp_path / "two", s3_place.settings, "data")

    assert here.fingerprint == there.fingerprint


def test_doing_it_again_gives_the_same_tree_without_leftovers(place, tmp_path, read_tree):
    place.put("kept", b"1")
    place.put("folder/removed", b"2")
    target = tmp_path / "inputs" / "data"
    stage_tree(place.url, target, place.settings, "data")
    (target / "of the script").write_bytes(b"x")
    place.delete("folder/removed")
    place.put("kept", b"new")

    stage_tree(place.url, target, place.settings, "data")

    assert read_tree(target) == {"kept": b"new"}
    assert [path.name for path in target.parent.iterdir()] == ["data"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(place, tmp_path):
    place.put("file", b"1")
    left = tmp_path / f".data.{'0' * 32}.partial"
    of_another = tmp_path / f".data-x.{'0' * 32}.partial"
    for folder in (left, of_another):
        (folder / "sub").mkdir(parents=True)

    stage_tree(place.url, tmp_path / "data", place.settings, "data")

    assert not left.exists()
    assert of_another.exists()


@pytest.mark.parametrize("suffix", ["", "/", "///"])
def test_a_prefix_is_a_folder_and_not_the_start_of_a_name(place, tmp_path, read_tree, suffix):
    place.put("data/x", b"1")
    place.put("database/y", b"2")
    place.put("data.txt", b"3")

    stage_tree(f"{place.url}/data{suffix}", tmp_path / "data", place.settings, "data")

    assert read_tree(tmp_path / "data") == {"x": b"1"}


def test_a_missing_or_empty_source_is_not_found_and_leaves_nothing(place, tmp_path):
    target = tmp_path / "inputs" / "data"

    with pytest.raises(StoreNotFound, match="no such folder, or no file in it") as caught:
        stage_tree(f"{place.url}/nothing", target, place.settings, "data")

    assert f"{place.url.removeprefix('file://')}/nothing/: " in str(caught.value)
    assert not target.exists()


def test_a_single_file_is_told_from_a_missing_folder(place, tmp_path):
    place.put("data.csv", b"1")

    with pytest.raises(StoreNotFound, match="give the folder that holds it"):
        stage_tree(f"{place.url}/data.csv", tmp_path / "data", place.settings, "data")


def test_a_failing_copy_leaves_the_old_tree_and_nothing_else(place, tmp_path, read_tree):
    place.put("file", b"old")
    target = tmp_path / "inputs" / "data"
    stage_tree(place.url, target, place.settings, "data")

    with pytest.raises(StoreNotFound):
        stage_tree(f"{place.url}/other", target, place.settings, "data")

    assert read_tree(target) == {"file": b"old"}
    assert [path.name for path in target.parent.iterdir()] == ["data"]


def test_a_file_that_is_replaced_after_the_listing_is_never_mixed_in(place, tmp_path):
    place.put("same-size", b"old")
    with open_store(place.url, place.settings) as store:
        listing = store.list_files()
        place.delete("same-size")
        place.put("same-size", b"new")

        with pytest.raises(TreeChanged, match="changed while it was copied"):
            store.download(listing.files, tmp_path, Meter("data", listing.files))


def test_a_file_that_is_deleted_after_the_listing_is_a_changed_tree(place, tmp_path):
    place.put("gone", b"old")
    with open_store(place.url, place.settings) as store:
        listing = store.list_files()
        place.delete("gone")

        with pytest.raises(TreeChanged):
            store.download(listing.files, tmp_path, Meter("data", listing.files))


def test_progress_ends_with_the_whole_tree(place, tmp_path):
    for i in range(50):
        place.put(f"{i}", b"x" * 1000)
    events: list[Any] = []

    with listening(events.append):
        stage_tree(place.url, tmp_path / "data", place.settings, "my data")

    assert events[-1] == Transferred("my data", 50, 50, 50_000, 50_000)
    assert len(events) < 20
    assert [e.size_bytes for e in events] == sorted(e.size_bytes for e in events)


def test_a_url_of_another_kind_says_which_kinds_there_are(tmp_path):
    for url in ("nope://bucket/x", "relative/path", "s3://", "s3:///key", "file://host/path"):
        with pytest.raises(StoreError, match="give s3://bucket/prefix/, file:///path or an abs"):
            stage_tree(url, tmp_path / "data", None, "data")


def test_folder_markers_become_folders(s3_place, tmp_path, read_tree):
    s3_place.put("", b"")
    s3_place.put("empty folder/", b"")
    s3_place.put("full/", b"")
    s3_place.put("full/file", b"1")

    staged = stage_tree(s3_place.url, tmp_path / "data", s3_place.settings, "data")

    assert read_tree(tmp_path / "data") == {"full/file": b"1"}
    assert (tmp_path / "data" / "empty folder").is_dir()
    assert staged.num_files == 1


def test_a_prefix_with_markers_only_is_empty(s3_place, tmp_path):
    s3_place.put("", b"")
    s3_place.put("sub/", b"")

    with pytest.raises(StoreNotFound, match="no file in it"):
        stage_tree(s3_place.url, tmp_path / "data", s3_place.settings, "data")


def test_a_file_that_is_a_folder_too_is_refused(s3_place, tmp_path):
    s3_place.put("a", b"1")
    s3_place.put("a/b", b"2")

    with pytest.raises(UnsafeKey, match="'a' is both a file and a folder"):
        stage_tree(s3_place.url, tmp_path / "data", s3_place.settings, "data")

    assert list(tmp_path.iterdir()) == []


def test_a_whole_bucket_is_a_tree(s3, tmp_path, read_tree):
    bucket = s3.new_bucket()
    s3.put(bucket, "some/x", b"1")

    stage_tree(f"s3://{bucket}", tmp_path / "data", s3.settings, "data")

    assert read_tree(tmp_path / "data") == {"some/x": b"1"}


def test_links_in_a_folder_are_followed(tmp_path, write_tree, read_tree):
    write_tree(tmp_path / "elsewhere", {"big/file": b"1"})
    source = write_tree(tmp_path / "source", {"own": b"2"})
    (source / "linked").symlink_to(tmp_path / "elsewhere" / "big")

    stage_tree(str(source), tmp_path / "data", None, "data")

    assert read_tree(tmp_path / "data") == {"own": b"2", "linked/file": b"1"}
    assert not (tmp_path / "data" / "linked").is_symlink()


def test_what_was_executable_stays_executable(tmp_path, write_tree):
    source = write_tree(tmp_path / "source", {"start.sh": b"#!/bin/sh\n", "data": b""})
    (source / "start.sh").chmod(0o755)
    (source / "data").chmod(0o444)

    stage_tree(str(source), tmp_path / "code", None, "code")

    assert (tmp_path / "code" / "start.sh").stat().st_mode & 0o111
    assert not (tmp_path / "code" / "data").stat().st_mode & 0o111


def test_a_tree_larger_than_the_disk_is_refused_before_the_first_byte(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    with (source / "huge").open("wb") as file:
        file.truncate(shutil.disk_usage(tmp_path).free + (1 << 40))

    with pytest.raises(StoreError, match=r"free for .* of files; make space"):
        stage_tree(str(source), tmp_path / "inputs" / "data", None, "data")

    assert list((tmp_path / "inputs").iterdir()) == []


@pytest.mark.parametrize("make", ["loop", "dangling", "pipe"])
def test_what_is_no_file_is_refused_by_name(tmp_path, write_tree, make):
    source = write_tree(tmp_path / "source", {"file": b"1"})
    odd = source / "odd one"
    if make == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to(source if make == "loop" else Path("nowhere"))

    with pytest.raises(UnsafeKey, match=r"'odd one' (is|leads)"):
        stage_tree(str(source), tmp_path / "data", None, "data")

    assert not (tmp_path / "data").exists()
