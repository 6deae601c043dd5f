"""A channel whose url is one file and no archive: a folder that holds this file alone."""

from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.core.storage.conftest import LocalPlace
from trainjob.errors import StoreError, TreeChanged
from trainjob.storage.cache.folder import Cache
from trainjob.storage.cache.hold import release
from trainjob.storage.cache.owner import Owner
from trainjob.storage.cache.source import Unpacking
from trainjob.storage.local import LocalStore
from trainjob.storage.stage import stage_channel


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


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_it_is_staged_alone_and_once(any_place, stage, tmp_path, read_tree, mode):
    any_place.put("a b/train.parquet", b"rows")
    any_place.put("a b/train.parquet.md5", b"beside it")
    any_place.put("a b/other", b"not asked for")
    url = f"{any_place.url}/a b/train.parquet"

    first = stage(url, any_place.settings, mode=mode)
    second = stage(url, any_place.settings, name="second", mode=mode)

    assert read_tree(tmp_path / "inputs" / "second") == {"train.parquet": b"rows"}
    is_here = isinstance(any_place, LocalPlace)
    assert (first.num_files, first.size_bytes, first.moved_bytes) == (1, 4, 0 if is_here else 4)
    assert first.is_in_place == is_here
    assert (second.moved_bytes, second.fingerprint) == (0, first.fingerprint)


def test_it_has_the_fingerprint_of_a_folder_with_this_file(any_place, stage):
    any_place.put("one/train.parquet", b"rows")
    any_place.put("many/train.parquet", b"rows")
    any_place.put("many/other", b"2")
    folder = stage(f"{any_place.url}/one", any_place.settings, name="folder")
    url = f"{any_place.url}/many/train.parquet"

    staged = stage(url, any_place.settings, expect=folder.fingerprint)

    assert staged.fingerprint == folder.fingerprint
    with pytest.raises(StoreError, match="not the expected sha256:0"):
        stage(url, any_place.settings, name="other", expect=f"sha256:{'0' * 64}")


def test_a_changed_file_is_staged_anew(any_place, stage, tmp_path, read_tree):
    any_place.put("train.parquet", b"rows")
    url = f"{any_place.url}/train.parquet"
    stage(url, any_place.settings)
    any_place.put("train.parquet", b"other rows")

    stage(url, any_place.settings, name="second")

    assert read_tree(tmp_path / "inputs" / "second") == {"train.parquet": b"other rows"}


def test_an_archive_that_is_to_be_kept_may_be_named_by_its_url(
    any_place, stage, tmp_path, read_tree
):
    any_place.put("data.zip", b"not even a zip")

    stage(f"{any_place.url}/data.zip", any_place.settings, unpacking=Unpacking(is_wanted=False))

    assert read_tree(tmp_path / "inputs" / "job") == {"data.zip": b"not even a zip"}


def test_a_store_of_another_kind_has_it_too(stage, tmp_path, read_tree):
    with fsspec.open("memory://one-file/train.parquet", "wb") as file:
        file.write(b"rows")

    stage("memory://one-file/train.parquet")

    assert read_tree(tmp_path / "inputs" / "job") == {"train.parquet": b"rows"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of somebody on this machine, beside another one."""
    (tmp_path / "other").write_bytes(b"not asked for")
    (tmp_path / "train.parquet").write_bytes(b"rows")
    (tmp_path / "train.parquet").chmod(0o664)
    return tmp_path / "train.parquet"


def test_a_file_of_this_machine_is_used_where_it_lies(stage, file, tmp_path, read_tree):
    """It may be larger than what is left of the disk, and it is somebody's own."""
    staged = stage(f"file://{file}")

    folder = tmp_path / "inputs" / "job"
    assert staged.is_in_place
    assert read_tree(folder) == {"train.parquet": b"rows"}
    assert (folder / "train.parquet").resolve() == file
    assert (file.stat().st_mode & 0o777, file.stat().st_nlink) == (0o664, 1)


def test_a_file_of_this_machine_is_read_once(stage, file, monkeypatch):
    first = stage(str(file))
    monkeypatch.setattr(LocalStore, "digest", None)

    second = stage(str(file), name="second")

    assert second.fingerprint == first.fingerprint


def test_a_private_copy_of_a_file_of_this_machine_may_be_written(stage, file, tmp_path):
    stage(str(file), mode="copy")
    (tmp_path / "inputs" / "job" / "train.parquet").write_bytes(b"of the script")

    assert file.read_bytes() == b"rows"


@pytest.mark.parametrize("archive", ["kept.zip", "kept.TAR"])
def test_an_archive_of_this_machine_that_is_to_be_kept_is_not_copied(stage, tmp_path, archive):
    (tmp_path / archive).write_bytes(b"not even an archive")

    staged = stage(f"file://{tmp_path}/{archive}", unpacking=Unpacking(is_wanted=False))

    assert staged.is_in_place


def test_nothing_of_the_cache_removes_a_file_of_this_machine(stage, cache, file):
    stage(str(file))
    [snapshot] = cache.snapshots()
    assert snapshot.stored_bytes == 0
    assert release(cache, "job") == []

    assert cache.evict(snapshot)

    assert file.read_bytes() == b"rows"


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda file, _: file.write_bytes(b"others"), "train.parquet: changed"),
        (lambda file, _: file.unlink(), "'train.parquet' is a link that leads to nothing"),
        (lambda _, folder: (folder / "new").touch(), "new: added"),
    ],
)
def test_a_file_that_changes_while_it_is_used_is_told_of(
    stage, cache, file, tmp_path, spoil, found
):
    stage(str(file))
    folder = (tmp_path / "inputs" / "job").resolve()
    folder.chmod(0o755)  # as if the script were root's
    spoil(file, folder)

    [note] = release(cache, "job")

    assert f"the dataset at {file} changed while the run used it: " in note
    assert found in note
    assert cache.snapshots() == []


def test_what_a_killed_job_put_beside_a_file_is_not_given_to_the_next(
    stage, cache, file, tmp_path, read_tree
):
    stage(str(file))
    folder = (tmp_path / "inputs" / "job").resolve()
    folder.chmod(0o755)
    (folder / "new").touch()
    [snapshot] = cache.snapshots()
    [lease] = snapshot.leases()
    token = str(Owner.nobody())
    lease.file.rename(lease.file.with_name(f"job@{token}"))

    stage(str(file), name="second")

    assert read_tree(tmp_path / "inputs" / "second") == {"train.parquet": b"rows"}


def test_a_file_that_changes_while_it_is_read_is_not_taken(stage, cache, file, monkeypatch):
    digest = LocalStore.digest

    def digest_and_change(*arguments: Any) -> object:
        records = digest(*arguments)
        file.write_bytes(b"other rows")
        return records

    monkeypatch.setattr(LocalStore, "digest", digest_and_change)

    with pytest.raises(TreeChanged, match="it changed while it was read"):
        stage(str(file))

    assert cache.snapshots() == []


def test_only_the_last_version_of_a_file_of_this_machine_is_known(stage, cache, file):
    stage(str(file))
    release(cache, "job")
    file.write_bytes(b"other rows")

    stage(str(file))

    assert len(cache.snapshots()) == 1
