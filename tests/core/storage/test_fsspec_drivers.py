"""What drivers of clouds do in their own ways; seen with gcsfs and adlfs in front of emulators."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.memory import MemoryFileSystem

from trainjob.errors import StoreDenied, StoreError, StoreNotFound, StoreUnavailable
from trainjob.storage import fsspec_store
from trainjob.storage.fsspec_driver import open_driver
from trainjob.storage.fsspec_store import FsspecStore
from trainjob.storage.receipt import verify_receipt
from trainjob.storage.upload import upload_tree

URL = "memory://bucket/tree"


@pytest.fixture
def memory() -> Iterator[FsspecStore]:
    yield FsspecStore(URL)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_a_url_that_is_a_file_is_one_where_the_driver_finds_it_below_itself(memory, monkeypatch):
    """As adlfs does, which gives a list then, of nothing but the name."""
    memory.write("data.zip", b"1")
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: ["/bucket/tree/data.zip"])
    store = FsspecStore(f"{URL}/data.zip")

    assert store.list_files().files == ()
    assert store.is_file()


@pytest.mark.parametrize("order", [1, -1])
def test_an_empty_object_that_stands_for_a_folder_is_one(memory, monkeypatch, order):
    """As consoles of stores make them; gcsfs lists them as files beside the folder."""
    names = {
        "sub/": ("file", 0),
        "sub": ("directory", 0),
        "sub/a": ("file", 1),
        "alone/": ("file", 0),
    }
    items = [
        (name, {"name": f"/bucket/tree/{name}", "type": kind, "size": size, "etag": "1"})
        for name, (kind, size) in names.items()
    ]
    monkeypatch.setattr(MemoryFileSystem, "find", lambda *_, **__: dict(items[::order]))

    found = memory.list_files()

    assert [file.path for file in found.files] == ["sub/a"]
    assert found.folders == ("alone", "sub")


class ServiceRequestError(Exception):
    """What azure.core raises if nobody answers; no OSError."""


class WithStatus(Exception):
    status_code = 404


def wrapped(error: Exception) -> Exception:
    """As adlfs does with what its package says of an upload."""
    outer = RuntimeError("Failed to upload block: <?xml …>")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "kind", "found"),
    [
        (OSError("Forbidden: bucket/tree\nno right"), StoreDenied, "are not allowed to do this"),
        (ServiceRequestError("Cannot connect"), StoreUnavailable, "no whole answer from the store"),
        (wrapped(WithStatus()), StoreNotFound, "no such file, folder or bucket"),
    ],
)
def test_what_drivers_say_in_words_of_their_own_is_understood(
    memory, monkeypatch, error, kind, found
):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)

    with pytest.raises(kind, match=found):
        memory.read("x")


def test_no_name_is_a_pattern_where_the_driver_moves_what_patterns_match(monkeypatch):
    """As gcsfs does, for which `q?x` would be a pattern."""

    class Driver(AsyncFileSystemWrapper):  # type: ignore[misc]  # fsspec has no types
        def open(self, *args: Any, **options: Any) -> Any:
            return self.sync_fs.open(*args, **options)

        def mv(self, *_: Any, **__: Any) -> None:
            raise AssertionError("it takes names for patterns")

    monkeypatch.setattr(fsspec_store, "open_driver", lambda _: Driver(MemoryFileSystem()))
    store = FsspecStore("memory://bucket/q?x")
    assert isinstance(store._driver, AsyncFileSystem)

    store.write("file", b"1")

    assert store.read("file") == b"1"
    MemoryFileSystem.store.clear()


def test_a_receipt_names_no_empty_folder_that_the_store_does_not_keep(
    memory, tmp_path: Path, monkeypatch, caplog
):
    """As stores of objects keep none; their drivers make no object for it."""
    (tmp_path / "out" / "empty" / "inner").mkdir(parents=True)
    (tmp_path / "out" / "model").write_bytes(b"1")
    monkeypatch.setattr(MemoryFileSystem, "makedirs", lambda *_, **__: None)

    receipt = upload_tree(tmp_path / "out", URL, None, run_id="r", facts={}, label="out")

    assert receipt.folders == ()
    assert verify_receipt(URL, None).problems == ()
    assert "keeps no empty folders: 'empty/inner'" in caplog.text


def test_azure_sends_blocks_that_many_files_at_once_can_hold_in_memory(monkeypatch):
    """Of 50 MiB each, which is what adlfs has, 8 files took a gigabyte."""
    given: dict[str, Any] = {}

    class Driver(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
        def __init__(self, **options: Any) -> None:
            given.update(options)

    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda _: Driver)

    open_driver("abfs://container@account.dfs.core.windows.net/x/")

    assert given["blocksize"] == 8 << 20


def test_the_account_of_a_url_is_the_one_that_is_asked(monkeypatch):
    """A connection string in the environment names one, too, and adlfs takes that."""

    class Driver(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
        account_name = "other"  # which is that of the url, whoever is asked
        service_client = SimpleNamespace(account_name="mine")

    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda _: Driver)

    with pytest.raises(StoreError, match="asked for the account 'other', found 'mine'"):
        open_driver("abfs://container@other.dfs.core.windows.net/x/")
