"""Keys that S3 allows and a file system does not, or not all of them: exact or refused by name."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.s3_any_keys import AnyKeyServer, any_keys
from trainjob.errors import StoreError, TreeChanged, UnsafeKey
from trainjob.storage import stage
from trainjob.storage.cache import build
from trainjob.storage.paths import check_case, folds_case
from trainjob.storage.settings import StoreSettings
from trainjob.storage.stage import stage_channel, stage_tree
from trainjob.storage.store import open_store

NFC = unicodedata.normalize("NFC", "é")
NFD = unicodedata.normalize("NFD", "é")

EXACT = (
    "plain",
    "a space",
    " leading and trailing ",
    "+plus %41 %2F & = ? #fragment;semi",
    "back\\slash",
    "quote'\"`$(x)",
    "tilde~ star* [x] {y} <z> |",
    "-dash",
    "~",
    ".hidden",
    "...",
    "a..b",
    NFC,
    NFD,
    "\N{GRINNING FACE}",
    "\u202eright-to-left",
    "n" * 255,
    "a/b/c/d/e/f",
    "empty",
    "a:b@c,d!",
)
"""Names that a Linux file system holds as they are."""

HOSTILE = {
    "x//a": "is an absolute path",
    "x/a//b": "has an empty part",
    "x/./a": r"has \. or \.\. as a part",
    "x/a/..": r"has \. or \.\. as a part",
    "x/../../etc/passwd": r"has \. or \.\. as a part",
    "x/a\0b": "holds a NUL",
    "x/" + "n" * 256: "more than 255 bytes",
    "x/" + "é" * 128: "more than 255 bytes",
    "x/full/": "ends in / as folders do, and holds bytes",
}


def content(key: str) -> bytes:
    return b"" if key.endswith("/empty") else key.encode("utf-8", "surrogateescape")


@contextmanager
def serving(*keys: str, page_keys: int = 1000, is_encoding: bool = True) -> Iterator[AnyKeyServer]:
    objects = {key: content(key) for key in keys}
    with any_keys(AnyKeyServer(objects, page_keys=page_keys, is_encoding=is_encoding)) as server:
        yield server


@pytest.mark.parametrize("is_encoding", [True, False], ids=["encoded", "as they are"])
@pytest.mark.usefixtures("engine")
def test_names_that_a_file_can_have_arrive_as_they_are(tmp_path, read_tree, is_encoding):
    with serving(*(f"x/{name}" for name in EXACT), is_encoding=is_encoding) as server:
        stage_tree("s3://b/x", tmp_path / "data", server.settings, "data")

    assert read_tree(tmp_path / "data") == {name: content(f"x/{name}") for name in EXACT}


@pytest.mark.parametrize(("key", "reason"), HOSTILE.items())
@pytest.mark.usefixtures("engine")
def test_a_hostile_key_is_refused_by_name_before_the_first_byte(tmp_path, key, reason):
    with serving("x/fine", key) as server, pytest.raises(UnsafeKey, match=reason) as caught:
        stage_tree("s3://b/x", tmp_path / "data", server.settings, "data")

    assert "the key '" in str(caught.value)
    assert "; rename or remove it there" in str(caught.value)
    assert all("list-type=2" in path for path in server.asked)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("engine", "error"),
    # botocore replaces what it cannot decode, so that there is no such object then.
    [("curl", UnsafeKey), ("s3fs", TreeChanged)],
    indirect=["engine"],
)
def test_a_key_that_is_no_text_is_no_file(tmp_path, engine, error):
    with serving("x/fine", "x/\udcff") as server, pytest.raises(error):
        stage_tree("s3://b/x", tmp_path / "data", server.settings, "data")

    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (("x/a", "x/a/b"), "'a' is both a file and a folder"),
        (("x/a", "x/a/"), "'a' is both a file and a folder"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_keys_that_hide_one_another_are_refused(tmp_path, keys, reason):
    server = AnyKeyServer(dict.fromkeys(keys, b""))

    with any_keys(server), pytest.raises(UnsafeKey, match=reason):
        stage_tree("s3://b/x", tmp_path / "data", server.settings, "data")


@pytest.mark.usefixtures("engine")
def test_a_control_character_is_exact_or_refused_by_name(tmp_path, read_tree):
    """XML 1.0 cannot hold most of them, so a store that lists keys as they are cannot tell them."""
    keys = [f"x/a{chr(code)}b" for code in (1, 8, 9, 10, 13, 27, 127)]
    with serving(*keys) as server:
        stage_tree("s3://b/x", tmp_path / "data", server.settings, "data")

    assert {f"x/{name}" for name in read_tree(tmp_path / "data")} == set(keys)


@pytest.mark.usefixtures("engine")
def test_a_listing_that_cannot_be_read_is_an_error_and_never_the_half(tmp_path):
    with (
        serving("x/fine", "x/a\x01b", is_encoding=False) as server,
        open_store("s3://b/x", server.settings) as store,
        pytest.raises(StoreError),
    ):
        store.list_files()


@pytest.mark.usefixtures("engine")
def test_every_page_of_a_listing_counts(tmp_path):
    keys = [f"x/{number:03}" for number in range(25)]

    with (
        serving(*keys, page_keys=10) as server,
        open_store("s3://b/x", server.settings) as store,
    ):
        files = store.list_files().files

    assert [f"x/{entry.path}" for entry in files] == keys
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        (("Read.me", "READ.me"), "'READ.me' is the same as 'Read.me'"),
        (("Data/a", "data/b"), "'data' is the same as 'Data'"),
        ((NFC, NFD), "is the same as"),
    ],
)
def test_names_that_differ_in_case_are_refused_where_the_disk_ignores_it(files, refused):
    with pytest.raises(UnsafeKey, match=f"the key .*{refused}.* on this disk, which ignores case"):
        check_case("s3://b/x/", files)


def test_names_that_are_told_apart_are_not_refused():
    check_case("s3://b/x/", ["a/b", "a/c", "b", "c/b"])


def stage_code(target: Path, settings: StoreSettings) -> object:
    return stage_tree("s3://b/x", target, settings, "code")


def stage_data(target: Path, settings: StoreSettings) -> object:
    return stage_channel("s3://b/x", target, settings, label="data", holder="job")


@pytest.mark.parametrize(("asks", "run"), [(stage, stage_code), (build, stage_data)])
def test_staging_asks_the_disk_before_the_first_byte(tmp_path, monkeypatch, asks, run):
    """On a disk that ignores case, of which the test has none to write to."""
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(asks, "folds_case", lambda _: True)

    with serving("x/Read.me", "x/READ.me") as server, pytest.raises(UnsafeKey, match="ignores"):
        run(tmp_path / "data", server.settings)

    assert all("list-type=2" in path for path in server.asked)
    assert not (tmp_path / "data").exists()


def test_a_copy_of_a_folder_of_this_machine_asks_the_disk_that_it_goes_to(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(stage, "folds_case", lambda _: True)
    source, target = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    for name in ("Read.me", "READ.me"):
        (source / name).touch()

    with pytest.raises(UnsafeKey, match="ignores case"):
        stage_channel(str(source), target, None, label="data", holder="job", mode="copy")

    assert not target.exists()


def test_a_disk_is_asked_whether_it_ignores_case_and_left_as_it_was(tmp_path):
    (tmp_path / "small").touch()

    assert folds_case(tmp_path) == (tmp_path / "SMALL").exists()

    assert [path.name for path in tmp_path.iterdir()] == ["small"]
