"""The setting `checksums`, for stores that want the newer ones and for those that refuse them."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.core.storage.scripted_store import Asked, Reply, scripted_store
from trainjob.storage.curl import objects
from trainjob.storage.local_tree import list_folder
from trainjob.storage.meter import Meter
from trainjob.storage.store import open_store

CHECKSUM = "x-amz-checksum-sha256"
BEGUN = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
COMPLETED = b"<CompleteMultipartUploadResult/>"


def written_with(
    checksums: Any, tmp_path, monkeypatch
) -> dict[str, tuple[bytes, Mapping[str, str]]]:
    """Write in every way there is; return body and headers of every PUT by its path."""
    monkeypatch.setattr(objects, "PART_BYTES", 4)
    (tmp_path / "file").write_bytes(b"content")
    files = list_folder(tmp_path).files

    def reply(asked: Asked) -> Reply:
        if asked.method == "POST":
            return Reply(200, BEGUN if asked.path.endswith("?uploads=") else COMPLETED)
        return Reply()

    with scripted_store(reply) as server:
        settings = replace(server.settings, checksums=checksums)
        with open_store("s3://b", settings) as store:
            store.upload(tmp_path, files, Meter(None))
            store.write("written", b"1")
            store.create("created", b"2")
            store.make_folders(["folder"])
            store.upload_chunks("small", [b"12", b"3"])
            store.upload_chunks("large", [b"1234", b"5"])
        puts = [asked for asked in server.asked if asked.method == "PUT"]
    return {asked.path.removeprefix("/b/"): (asked.body, asked.headers) for asked in puts}


def test_whole_objects_carry_the_checksum_where_it_is_wanted(tmp_path, monkeypatch):
    sent = written_with("when_supported", tmp_path, monkeypatch)

    whole = {path: (body, h) for path, (body, h) in sent.items() if "uploadId" not in path}
    assert whole.keys() == {"file", "written", "created", "folder/", "small"}
    for body, headers in whole.values():
        assert base64.b64decode(headers[CHECKSUM]) == hashlib.sha256(body).digest()
        assert CHECKSUM in headers["Authorization"].partition("SignedHeaders=")[2]


def test_parts_carry_an_md5_either_way(tmp_path, monkeypatch):
    sent = written_with("when_supported", tmp_path, monkeypatch)

    parts = [(body, h) for path, (body, h) in sent.items() if "uploadId" in path]
    assert len(parts) == 2
    for body, headers in parts:
        # S3 refuses one in a part whose upload was not begun with it.
        assert CHECKSUM not in headers
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        assert base64.b64decode(headers["content-md5"]) == md5


def test_a_store_that_knows_no_such_checksum_gets_none(tmp_path, monkeypatch):
    sent = written_with("when_required", tmp_path, monkeypatch)

    assert len(sent) == 7
    assert not any(CHECKSUM in headers for _, headers in sent.values())


@pytest.mark.usefixtures("engine")
def test_a_real_store_takes_objects_with_the_checksum(s3, s3_place):
    settings = replace(s3.settings, checksums="when_supported")

    with open_store(s3_place.url, settings) as store:
        store.write("a", b"data")
        assert store.read("a") == b"data"
