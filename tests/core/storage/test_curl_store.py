"""Which engine a url gets, and what each engine must do alike."""

import hashlib
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.core.storage.engines import shorten_pauses
from tests.core.storage.scripted_store import Reply, scripted_store
from trainjob.errors import StoreError, StoreNotFound, StoreUnavailable
from trainjob.storage.curl.store import CurlStore
from trainjob.storage.fsspec_store import FsspecStore
from trainjob.storage.listing import Entry
from trainjob.storage.local import LocalStore
from trainjob.storage.local_tree import list_folder
from trainjob.storage.meter import Meter
from trainjob.storage.s3 import S3Store
from trainjob.storage.store import open_store

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("s3://bucket/x", CurlStore),
        ("/folder", LocalStore),
        ("file:///folder", LocalStore),
        ("memory://folder", FsspecStore),
    ],
)
def test_a_url_gets_the_engine_of_its_scheme(url, kind):
    assert type(open_store(url)) is kind


def test_the_environment_may_ask_for_s3fs(monkeypatch):
    monkeypatch.setenv("TRAINJOB_STORAGE_ENGINE", "fsspec")

    assert type(open_store("s3://bucket/x")) is S3Store


@pytest.mark.parametrize("engine", ["s3fs", "FSSPEC", "boto3"])
def test_an_engine_that_is_none_is_refused(monkeypatch, engine):
    """Who asks for another one, to tell whether it is the engine, must not get the same."""
    monkeypatch.setenv("TRAINJOB_STORAGE_ENGINE", engine)

    with pytest.raises(StoreError, match=f"'{engine}', which is no engine; set it to fsspec"):
        open_store("s3://bucket/x")


@pytest.mark.parametrize("how", ["is missing", "is broken"])
def test_s3fs_is_used_where_pycurl_cannot_be_loaded(tmp_path, how):
    (tmp_path / "pycurl.py").write_text("import no_such_library_of_pycurl\n")
    program = "from trainjob.storage.store import open_store; print(type(open_store('s3://b/x')))"
    if how == "is missing":
        program = f"import sys; sys.modules['pycurl'] = None; {program}"

    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "S3Store" in ended.stdout, ended.stderr


def test_reaching_a_store_over_libcurl_loads_nothing_that_is_large():
    program = (
        "import sys\n"
        "from trainjob.storage.store import open_store\n"
        "open_store('s3://b/x')\n"
        "print({'s3fs', 'aiohttp', 'fsspec', 'torch', 'asyncio', 'prefect'} & set(sys.modules))\n"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )

    assert ended.stdout == "set()\n"


def test_what_is_written_is_listed_read_copied_and_deleted(
    any_place, nasty_tree, write_tree, read_tree, tmp_path
):
    source = write_tree(tmp_path / "source", nasty_tree)
    files = list_folder(source).files

    with open_store(any_place.url, any_place.settings) as store:
        sent = store.upload(source, files, Meter(None, files))
        listed = sorted(store.list_files().files, key=lambda entry: entry.path)
        copied = store.download(listed, tmp_path / "copy", Meter(None, listed))
        read = {path: store.read(path) for path in nasty_tree}
        digests = store.digest(listed, Meter(None, listed))
        store.delete([*nasty_tree, "never there"])
        left = store.has_files()

    assert {entry.path: entry.size_bytes for entry in listed} == {
        path: len(data) for path, data in nasty_tree.items()
    }
    assert read == nasty_tree == read_tree(tmp_path / "copy")
    assert sorted(copied, key=str) == sorted(digests, key=str) == sorted(sent, key=str)
    assert {r.path: r.sha256 for r in copied} == {
        path: hashlib.sha256(data).hexdigest() for path, data in nasty_tree.items()
    }
    assert not left


def test_what_is_not_there_is_told_alike(any_place):
    with open_store(f"{any_place.url}/no", any_place.settings) as store:
        assert store.list_files().files == ()
        assert not store.has_files()
        assert not store.is_file()
        with pytest.raises(StoreNotFound, match="/no/file: "):
            store.read("file")


def test_a_file_is_created_once(any_place):
    with open_store(any_place.url, any_place.settings) as store:
        made = [store.create("claim", data) for data in (b"first", b"second")]

    assert made == [True, False]
    assert any_place.get("claim") == b"first"


def test_a_prefix_is_a_folder_and_not_the_start_of_names(any_place):
    any_place.put("data/in", b"1")
    any_place.put("database/out", b"2")

    with open_store(f"{any_place.url}/data", any_place.settings) as store:
        assert [entry.path for entry in store.list_files().files] == ["in"]


def test_a_long_listing_has_every_key_once(s3, shared_bucket):
    prefix = uuid.uuid4().hex
    with open_store(f"s3://{shared_bucket}/{prefix}", s3.settings) as store:
        store.make_folders([f"{number:05}" for number in range(2_345)])
        folders = store.list_files().folders
        store.delete([f"{folder}/" for folder in folders])
        left = store.list_files().folders

    assert folders == tuple(f"{number:05}" for number in range(2_345))
    assert left == ()


def page(items: str, more: str = "") -> Reply:
    body = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{items}{more}'
    return Reply(200, f"{body}</ListBucketResult>".encode())


def listed(reply: Reply) -> tuple[Entry, ...]:
    with (
        scripted_store(lambda _: reply) as server,
        CurlStore("s3://b/x", server.settings) as store,
    ):
        return store.list_files().files


def test_keys_that_a_store_does_not_encode_are_taken_as_they_are():
    item = "<Contents><Key>x/a+b%41&amp;c</Key><Size>1</Size><ETag>&quot;t&quot;</ETag></Contents>"

    assert listed(page(item)) == (Entry("a+b%41&c", 1, '"t"'),)
    assert listed(page(item, "<EncodingType>url</EncodingType>")) == (Entry("a bA&c", 1, '"t"'),)


def test_parts_of_an_owner_are_no_keys():
    item = (
        "<Contents>\n <Owner><ID>1</ID><Key>no</Key></Owner>\n <Size> 7 </Size>"
        "<Key>x/k</Key></Contents>"
    )

    assert listed(page(item)) == (Entry("k", 7, ""),)


@pytest.mark.parametrize(
    "more",
    [
        "<IsTruncated>true</IsTruncated>",
        "<IsTruncated>true</IsTruncated><NextContinuationToken>same</NextContinuationToken>",
    ],
)
def test_a_listing_that_would_never_end_is_an_error(more):
    with pytest.raises(StoreUnavailable, match="s3://b/x/: what the store answers is no list"):
        listed(page("", more))


def test_nothing_is_asked_for_after_the_last_page():
    item = "<Contents><Key>x/{}</Key><Size>1</Size></Contents>".format
    token = "<NextContinuationToken>{}</NextContinuationToken>"
    replies = [
        page(item("a"), "<IsTruncated>true</IsTruncated>" + token.format("t1")),
        page(item("b"), "<IsTruncated>true</IsTruncated>" + token.format("t2")),
        page(item("c"), "<IsTruncated>false</IsTruncated>" + token.format("t3")),
    ]

    with (
        scripted_store(lambda _: replies.pop(0)) as server,
        CurlStore("s3://b/x", server.settings) as store,
    ):
        assert [entry.path for entry in store.list_files().files] == ["a", "b", "c"]
    assert replies == []


def test_keys_of_another_folder_are_an_error(monkeypatch):
    shorten_pauses(monkeypatch)

    with pytest.raises(StoreUnavailable, match="is no list of its objects"):
        listed(page("<Contents><Key>other/k</Key><Size>1</Size></Contents>"))


def test_a_bucket_as_a_whole_can_be_listed():
    item = "<Contents><Key>k</Key><Size>1</Size></Contents>"

    with (
        scripted_store(lambda _: page(item)) as server,
        CurlStore("s3://b", server.settings) as store,
    ):
        assert [entry.path for entry in store.list_files().files] == ["k"]
        assert not store.is_file()

    (asked,) = server.asked
    assert "prefix=&" in f"{asked.path}&"


def test_a_name_that_is_too_long_for_a_key_is_refused_before_it_is_sent(tmp_path):
    path = "/".join(["d" * 200] * 6)
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    files = list_folder(tmp_path).files

    with (
        scripted_store(lambda _: Reply()) as server,
        CurlStore("s3://b", server.settings) as store,
    ):
        with pytest.raises(StoreError, match="more than the 1024 bytes that S3 takes"):
            store.upload(tmp_path, files, Meter(None, files))
        assert server.asked == []
