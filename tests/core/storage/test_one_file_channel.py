"""A channel whose url is one file and no archive: a folder that holds this file alone."""

import fsspec
import pytest

from trainjob.errors import StoreError
from trainjob.storage.cache.source import Unpacking
from trainjob.storage.stage import stage_channel


@pytest.fixture
def stage(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))

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
    assert (first.num_files, first.size_bytes, first.moved_bytes) == (1, 4, 4)
    assert not first.is_in_place
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


def test_a_file_of_this_machine_stays_as_it_is(stage, tmp_path):
    """It is copied: what is shared is read-only, and it is somebody's own."""
    (tmp_path / "train.parquet").write_bytes(b"rows")
    (tmp_path / "train.parquet").chmod(0o664)

    stage(f"file://{tmp_path}/train.parquet")

    assert (tmp_path / "train.parquet").stat().st_mode & 0o777 == 0o664
    assert (tmp_path / "train.parquet").stat().st_nlink == 1
