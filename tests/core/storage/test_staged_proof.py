"""What a staged dataset says of its proof: only what its bytes were really compared with."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest

from tests.core.storage.scripted_store import Asked, Reply, ScriptedStore, scripted_store
from tests.s3_faults import Fault, fault_proxy
from tests.waiting import wait_until
from trainjob.errors import CorruptData, StoreError
from trainjob.storage.cache.folder import Cache
from trainjob.storage.own_files import RECEIPT
from trainjob.storage.stage import StagedChannel, stage_channel
from trainjob.storage.upload import upload_tree

MD5_OF_ANOTHER = f'"{hashlib.md5(b"another").hexdigest()}"'
MD5_OF_BYTES = hashlib.md5(b"bytes").hexdigest()
LISTED = (
    "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>tree/file</Key>"
    "<ETag>{etag}</ETag><Size>{size}</Size></Contents></ListBucketResult>"
)


@pytest.fixture
def stage(tmp_path, monkeypatch) -> Callable[..., StagedChannel]:
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))

    def run(url: str, settings=None) -> StagedChannel:
        return stage_channel(url, tmp_path / "data", settings, label="data", holder="job")

    return run


def put_in_parts(s3_place, name: str, data: bytes) -> None:
    """Write an object whose ETag is no MD5 of it."""
    client, where = s3_place.server.client, {"Bucket": s3_place.bucket}
    where["Key"] = f"{s3_place.prefix}/{name}"
    upload = client.create_multipart_upload(**where)["UploadId"]
    part = client.upload_part(**where, UploadId=upload, PartNumber=1, Body=data)
    parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
    client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts)


def encrypting(data: bytes, headers: dict[str, str]) -> AbstractContextManager[ScriptedStore]:
    """A store of one object, whose ETag looks like an MD5 and is none of its bytes."""

    def reply(asked: Asked) -> Reply:
        if "list-type" in asked.path:
            listed = LISTED.format(etag=MD5_OF_ANOTHER, size=len(data))
            return Reply(body=listed.encode(), headers={"Content_Type": "application/xml"})
        status, body, more = 200, data, {}
        if wanted := asked.headers.get("range"):
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            status, body = 206, data[first : last + 1]
            more = {"Content_Range": f"bytes {first}-{last}/{len(data)}"}
        return Reply(status, body, {"ETag": MD5_OF_ANOTHER, **more, **headers})

    return scripted_store(reply)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("listed", ["{}", '"{}"'], ids=["listed bare", "listed in quotes"])
@pytest.mark.parametrize("answered", ["{}", '"{}"'], ids=["answered bare", "in quotes"])
@pytest.mark.parametrize(("etag", "proof"), [("tag-2", "size"), (MD5_OF_BYTES, "etag")])
def test_an_etag_in_quotes_is_the_one_without_them(stage, listed, answered, etag, proof):
    def reply(asked: Asked) -> Reply:
        if "list-type" in asked.path:
            body = LISTED.format(etag=listed.format(etag), size=5).encode()
            return Reply(body=body, headers={"Content_Type": "application/xml"})
        return Reply(200, b"bytes", {"ETag": answered.format(etag)})

    with scripted_store(reply) as store:
        staged = stage("s3://b/tree", store.settings)

    assert (staged.num_files, staged.verified) == (1, proof)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("size_bytes", [5, 1 << 20, 9 << 20], ids=["small", "large", "in parts"])
@pytest.mark.parametrize(
    "headers",
    [
        {"x-amz-server-side-encryption": "aws:kms"},
        {"x-amz-server-side-encryption-customer-algorithm": "AES256"},
    ],
    ids=["key service", "key of the client"],
)
def test_an_etag_that_only_looks_like_an_md5_proves_nothing(stage, headers, size_bytes):
    with encrypting(bytes(size_bytes), headers) as store:
        staged = stage("s3://bucket/tree", store.settings)

    assert staged.verified == "size"


@pytest.mark.usefixtures("engine")
def test_the_proof_of_a_dataset_is_that_of_its_weakest_file(s3_place, stage):
    s3_place.put("whole", b"1")
    before = stage(s3_place.url, s3_place.settings)
    put_in_parts(s3_place, "in parts", b"2")

    after = stage(s3_place.url, s3_place.settings)

    assert (before.verified, after.verified) == ("etag", "size")


def test_files_of_an_older_version_keep_their_proof(s3_place, stage):
    """They are linked and not compared again; so does a file that nothing proved."""
    s3_place.put("kept", b"1")
    put_in_parts(s3_place, "unproved", b"2")
    first = stage(s3_place.url, s3_place.settings)
    s3_place.put("added", b"3")
    second = stage(s3_place.url, s3_place.settings)
    s3_place.delete("unproved")

    third = stage(s3_place.url, s3_place.settings)

    assert [staged.verified for staged in (first, second, third)] == ["size", "size", "etag"]
    assert third.moved_bytes == 0


@pytest.mark.parametrize("is_proved", [True, False])
def test_files_of_a_try_that_broke_off_keep_their_proof(s3, s3_place, stage, tmp_path, is_proved):
    if is_proved:
        s3_place.put("first", b"1")
    else:
        put_in_parts(s3_place, "first", b"1")
    s3_place.put("second", b"2")
    incoming = Cache(tmp_path / "cache").incoming

    def refuse_second(method: str, path: str) -> Fault:
        if not path.endswith("/second"):
            return None
        wait_until(lambda: any("first" in file.read_text() for file in incoming.glob("*/journal")))
        return "403"

    with fault_proxy(s3.port, refuse_second) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        with pytest.raises(StoreError):
            stage(s3_place.url, settings)
        proxy.rule = lambda *_: None
        staged = stage(s3_place.url, settings)

    assert staged.moved_bytes == 1
    assert staged.verified == ("etag" if is_proved else "size")


def tarred(data: bytes) -> bytes:
    """A tar with one file, which has no checksum of what is in it."""
    buffer, member = io.BytesIO(), tarfile.TarInfo("file")
    member.size = len(data)
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def upload(place, write_tree, tmp_path) -> Callable[[dict[str, bytes]], None]:
    """Puts a tree to the place as `python -m flows upload` does, with a receipt."""

    def run(tree: dict[str, bytes]) -> None:
        outputs = write_tree(tmp_path / "outputs", tree)
        upload_tree(outputs, place.url, place.settings, run_id="run", facts={}, label="data")

    return run


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("model.pt", b"weights", b"WEIGHTS"),
        ("data.tar", tarred(b"right"), tarred(b"WRONG")),
    ],
    ids=["file", "archive"],
)
@pytest.mark.parametrize("is_named", [True, False], ids=["by its url", "by its folder"])
def test_a_single_file_is_compared_with_the_receipt_beside_it(
    place, stage, upload, tmp_path, name, content, wrong, is_named
):
    upload({name: content, **({"other": b"2"} if is_named else {})})
    url = f"{place.url}/{name}" if is_named else place.url
    place.put(name, wrong)

    with pytest.raises(CorruptData, match=rf"not what its receipt says: {name}; upload it again"):
        stage(url, place.settings)
    published = Cache(tmp_path / "cache").snapshots()
    place.put(name, content)
    staged = stage(url, place.settings)

    assert published == []
    assert staged.verified == "receipt"


def test_a_file_that_the_receipt_beside_it_does_not_name_is_not_proved_by_it(place, stage, upload):
    upload({"model.pt": b"weights"})
    place.put("added.pt", b"1")

    staged = stage(f"{place.url}/added.pt", place.settings)

    assert staged.verified != "receipt"


def test_an_archive_whose_receipt_names_more_than_is_there_is_refused(place, stage, upload):
    upload({"data.tar": tarred(b"right"), "gone": b"2"})
    place.delete("gone")

    with pytest.raises(CorruptData, match="not what its receipt says: gone; upload it again"):
        stage(place.url, place.settings)


@pytest.mark.parametrize("said", [b'{"format": 2}', b"", b"\0\0"], ids=["new", "empty", "garbled"])
def test_a_receipt_beside_one_file_has_to_be_read(place, stage, said):
    place.put("model.pt", b"weights")
    place.put(RECEIPT, said)

    with pytest.raises(CorruptData, match=r"a receipt .* that cannot be read"):
        stage(f"{place.url}/model.pt", place.settings)


def test_who_may_read_nothing_but_the_file_gets_it(s3, s3_place, stage):
    s3_place.put("model.pt", b"weights")

    with fault_proxy(s3.port, lambda _, path: "403" if RECEIPT in path else None) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        staged = stage(f"{s3_place.url}/model.pt", settings)

    assert staged.verified == "etag"
    assert any(RECEIPT in path for _, path in proxy.requests)
