"""Reaching a store from where Python code runs: threads, other loops, processes that end."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.core.storage.engines import use_engine
from tests.core.storage.scripted_store import Reply, scripted_store
from trainjob.errors import StoreError
from trainjob.events import listening
from trainjob.storage.s3_client import S3Client, objects
from trainjob.storage.stage import stage_tree
from trainjob.storage.store import open_store

REPOSITORY = Path(__file__).parents[3]


def test_a_page_that_does_not_tell_where_the_next_begins_is_an_error(monkeypatch):
    """So do stores that know only the first version of the listing (NextMarker)."""
    use_engine(monkeypatch, "s3fs")
    page = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"

    with (
        scripted_store(lambda _: Reply(body=page.encode())) as server,
        open_store("s3://b/x", server.settings) as store,
        pytest.raises(StoreError, match="does not tell of all"),
    ):
        store.list_files()


def test_a_listing_is_read_to_its_end(s3, s3_place):
    for name in "abcde":
        s3_place.put(name, b"1")
    client = S3Client(s3.settings)

    async def keys() -> list[str]:
        found = objects(client, Bucket=s3_place.bucket, Prefix=s3_place.prefix, MaxKeys=2)
        return [item["Key"][-1] async for item in found]

    found = client.run(keys())
    client.close()

    assert found == list("abcde")


def test_many_threads_copy_at_the_same_time(s3, s3_place, tmp_path, read_tree):
    tree = {f"{i}": os.urandom(1000) for i in range(20)}
    for name, data in tree.items():
        s3_place.put(name, data)
    threads = [
        threading.Thread(
            target=stage_tree, args=(s3_place.url, tmp_path / f"{i}", s3.settings, "data")
        )
        for i in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(read_tree(tmp_path / f"{i}") == tree for i in range(4))


def test_a_copy_works_inside_another_loop(s3, s3_place, tmp_path, read_tree):
    s3_place.put("file", b"1")

    async def inside(target: Path) -> None:
        stage_tree(s3_place.url, target, s3.settings, "data")

    for i in range(2):
        asyncio.run(inside(tmp_path / f"{i}"))

    assert read_tree(tmp_path) == {"0/file": b"1", "1/file": b"1"}


@pytest.mark.parametrize(
    "use", ["stage_tree({url!r}, Path({target!r}), None, 'd')", "forget({url!r})"]
)
def test_a_process_ends_without_a_word_after_using_a_store(s3, s3_place, tmp_path, use):
    s3_place.put("file", b"1")
    program = (
        "from pathlib import Path\n"
        "from trainjob.storage.stage import stage_tree\n"
        "from trainjob.storage.store import open_store\n"
        "def forget(url): global store; store = open_store(url); store.list_files()\n"
        + use.format(url=s3_place.url, target=str(tmp_path / "data"))
    )

    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, **s3.env},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", "")


def test_a_store_can_be_used_again_after_closing(s3, s3_place):
    s3_place.put("file", b"1")
    store = open_store(s3_place.url, s3.settings)

    for _ in range(2):
        with store:
            assert store.has_files()


def test_an_error_of_a_watcher_stops_the_copy(s3, s3_place, tmp_path):
    s3_place.put("file", b"1")

    def fail(event: object) -> None:
        raise StoreError("stop")

    with listening(fail), pytest.raises(StoreError, match="stop"):
        stage_tree(s3_place.url, tmp_path / "data", s3.settings, "data")

    assert list(tmp_path.iterdir()) == []
