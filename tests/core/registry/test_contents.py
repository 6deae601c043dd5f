"""What is in a version of data: a summary in it, and a list of its files beside it."""

import gzip
import hashlib
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainjob.registry.contents import ListedFile, contents_of
from trainjob.registry.data import DataSource
from trainjob.registry.file_list import keep_list, listed_files
from trainjob.registry.folder import registry_of_machine
from trainjob.registry.records import RegistryError, SavedDataset
from trainjob.registry.register import register_dataset, register_model
from trainjob.registry.registry import Registry
from trainjob.storage.manifest import FileRecord, fingerprint
from trainjob.storage.own_files import RECEIPT


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("TRAINJOB_REGISTRY", str(tmp_path / "registry"))
    return registry_of_machine()


def listed(*paths: str) -> list[ListedFile]:
    return [ListedFile(path, 1, "0" * 64) for path in paths]


def folder_of(folder: Path, *paths: str) -> Path:
    for path in paths:
        file = folder / "data" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    return folder / "data"


def registered(registry: Registry, data: Path, **facts) -> SavedDataset:
    return register_dataset(registry, "digits", DataSource(str(data)), None, **facts)


@pytest.mark.parametrize(
    ("paths", "classes"),
    [
        (["cat/1.png", "cat/2.JPG", "dog/1.png", "README.md"], {"cat": 2, "dog": 1}),
        (["train/cat/1.png", "train/dog/1.png", "val/cat/1.png"], {"cat": 2, "dog": 1}),
        (["pets/Train/cat/1.png", "pets/Val/dog/1.png"], {"cat": 1, "dog": 1}),
        (["pets/images/cat/1.png", "pets/images/dog/1.png", "pets/a.csv"], {"cat": 1, "dog": 1}),
        (["cat/1.png"], {}),  # one folder of images is no classes
        (["cat/1.png", "dog/1.png", "3.png"], {}),
        (["cat/1.png", "dog/big/1.png"], {}),
        (["train/1.png", "val/1.png"], {}),
        (["a/1.txt", "b/1.txt"], {}),
        ([], {}),
    ],
)
def test_folders_that_hold_all_images_are_classes(paths, classes, tmp_path) -> None:
    contents = contents_of(listed(*paths), tmp_path)

    assert contents.classes == classes
    assert contents.num_classes == (len(classes) or None)
    assert contents.num_samples == (sum(classes.values()) or None)


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["train/a.bin", "VALIDATION/b.bin"], {"train": 1, "val": 1}),
        (["x/train/a.bin", "x/test/b.bin", "y/train/a.txt"], {"train": 2, "test": 1}),
        (["training.csv", "train.bin/a"], {}),
    ],
)
def test_folders_of_training_and_validation_data_are_found(paths, splits, tmp_path) -> None:
    assert contents_of(listed(*paths), tmp_path).splits == splits


def test_samples_are_counted_where_there_is_one_a_line(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2}')
    (tmp_path / "V1.manifest").write_text("{}\n")

    assert contents_of(listed("a.jsonl", "V1.manifest"), tmp_path).num_samples == 3
    large = [ListedFile("a.jsonl", 1 << 30, "0" * 64)]
    assert contents_of(large, tmp_path).num_samples is None


def test_rare_endings_and_none_are_counted_together(tmp_path) -> None:
    paths = ["x", "a.b c", *(f"{i}.e{i}" for i in range(30)), "second.e29"]

    endings = contents_of(listed(*paths), tmp_path).endings

    assert next(iter(endings)) == ".e29"
    assert (len(endings), endings["others"].num_files) == (21, 12)
    assert sum(amount.size_bytes for amount in endings.values()) == len(paths)


def test_classes_of_a_very_large_dataset_are_only_counted(tmp_path) -> None:
    contents = contents_of(listed(*(f"{i}/1.png" for i in range(1000))), tmp_path)

    assert (contents.num_classes, contents.classes, contents.num_samples) == (1000, {}, 1000)


def is_not_opened(path: str) -> bool:
    """Tell whether it is none of the files whose lines are counted."""
    return not path.lower().endswith((".jsonl", ".manifest"))


@given(st.lists(st.text(min_size=1).filter(is_not_opened), unique=True))
def test_a_summary_counts_every_file_once(paths) -> None:
    contents = contents_of(listed(*paths), Path("/nowhere"))

    assert sum(amount.num_files for amount in contents.endings.values()) == len(paths)


def test_a_version_says_what_is_in_it_and_lists_every_file(registry, tmp_path) -> None:
    paths = ["train/cat/1.png", "train/dog/ü 1.png", "val/cat/2.png"]
    data = folder_of(tmp_path, *paths)

    saved = registered(registry, data)

    assert saved.contents is not None
    assert saved.contents.splits == {"train": 2, "val": 1}
    files = listed_files(registry, saved)
    assert [file.path for file in files] == paths
    assert fingerprint(FileRecord(*file) for file in files) == saved.fingerprint


def test_the_files_in_an_archive_are_listed(registry, tmp_path) -> None:
    data = folder_of(tmp_path, "d/a.txt", "d/b.txt")
    with tarfile.open(tmp_path / "d.tar.gz", "w:gz") as archive:
        archive.add(data / "d", "d")

    source = DataSource(str(tmp_path / "d.tar.gz"))
    model = register_model(registry, "net", source, None)

    assert [file.path for file in listed_files(registry, model)] == ["d/a.txt", "d/b.txt"]


def test_training_and_validation_folders_make_a_dataset_split(registry, tmp_path) -> None:
    data = folder_of(tmp_path, "train/a.txt", "val/b.txt")

    found, said = registered(registry, data), registered(registry, data, is_split=False)

    assert (found.is_split, said.is_split) == (True, False)
    assert registered(registry, folder_of(tmp_path / "other", "train/a")).is_split is None


def test_versions_of_the_same_data_share_one_list(registry, tmp_path) -> None:
    data = folder_of(tmp_path, "a.txt")
    first, second = registered(registry, data), registered(registry, data)

    registry.delete("dataset", first.name, first.version)

    assert [file.path for file in listed_files(registry, second)] == ["a.txt"]
    assert len(list((tmp_path / "registry" / "files").iterdir())) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: b"",
        lambda packed: packed[:-9],
        lambda packed: b"x" + packed,
        lambda packed: gzip.compress(json.dumps(["b.txt", 5, "0" * 64]).encode()),
        lambda packed: gzip.compress(b"[1]\n"),
    ],
)
def test_a_list_that_was_changed_is_refused(registry, tmp_path, damage) -> None:
    saved = registered(registry, folder_of(tmp_path, "a.txt"))
    [file] = (tmp_path / "registry" / "files").iterdir()
    file.write_bytes(damage(file.read_bytes()))

    with pytest.raises(RegistryError, match="found a list that is not that of sha256:"):
        listed_files(registry, saved)


def test_the_list_of_a_version_in_whose_fingerprint_a_receipt_counts_is_right(
    registry, tmp_path
) -> None:
    saved = registered(registry, folder_of(tmp_path, "a.txt"))
    files = sorted(listed("a.txt", RECEIPT))
    text = "".join(f"{json.dumps(file)}\n" for file in files)
    of_before = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    keep_list(registry, of_before, files)

    found = listed_files(registry, saved.model_copy(update={"fingerprint": of_before}))

    assert found == files


def test_data_that_was_not_read_has_no_list(registry, tmp_path) -> None:
    known = "sha256:" + "0" * 64
    source = DataSource(str(folder_of(tmp_path, "a.txt")), expect=known)
    saved = register_dataset(registry, "digits", source, None)

    with pytest.raises(RegistryError, match="found none, since the data was not read but said"):
        listed_files(registry, saved)


def test_of_very_many_files_only_the_summary_is_kept(registry, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trainjob.registry.file_list.MAX_LISTED", 1)
    saved = registered(registry, folder_of(tmp_path, "a.txt", "b.txt"))

    with pytest.raises(RegistryError, match="found none, since there are 2, more than 1; list "):
        listed_files(registry, saved)
    assert saved.contents is not None


def test_a_long_list_is_small(registry) -> None:
    files = [ListedFile(f"train/{i % 10}/{i:06}.png", i, f"{i:064x}") for i in range(10_000)]

    assert keep_list(registry, "sha256:" + "0" * 64, files)

    packed = registry.place.files_of("sha256:" + "0" * 64)
    assert packed is not None
    assert len(packed) < 100 * len(files)
