"""Checksums that a store keeps of objects prove what comes, whatever their ETags are."""

import base64
import hashlib
import json
import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.storage.conftest import S3Place
from tests.core.storage.engines import shorten_parts, shorten_pauses
from tests.core.storage.journals import num_noted_parts
from tests.core.storage.scripted_store import Asked, Reply, ScriptedStore, scripted_store
from tests.s3_faults import Fault, fault_proxy, times
from tests.waiting import wait_until
from trainjob.errors import CorruptData, StoreDenied
from trainjob.storage.cache.folder import Cache
from trainjob.storage.curl import told
from trainjob.storage.curl.bucket import Bucket
from trainjob.storage.settings import StoreSettings
from trainjob.storage.stage import StagedChannel, stage_channel

MIB = 1 << 20
ASKED = "x-amz-checksum-mode"
WAYS = ["CRC64NVME", "CRC32C", "CRC32", "SHA256"]
SIZES = {"small": 10_000, "in one piece": 300_000, "in parts": 3 * MIB + 17}
DATA = random.Random(7).randbytes(SIZES["in parts"])
LISTED = (
    "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>tree/file</Key>"
    "<ETag>{etag}</ETag><Size>{size}</Size></Contents></ListBucketResult>"
)

Stage = Callable[[str, StoreSettings], StagedChannel]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    shorten_parts(monkeypatch, MIB)

    def run(url: str, settings: StoreSettings) -> StagedChannel:
        wanting = replace(settings, checksums="when_supported")
        return stage_channel(url, tmp_path / "data", wanting, label="data", holder="job")

    return run


def checksum(way: str, data: bytes) -> dict[str, str]:
    """Return a checksum as S3 takes it, which the store compares with what it gets."""
    digest = told.digest_for(f"{way.lower()}:") or hashlib.sha256()
    digest.update(memoryview(data))
    value = base64.b64encode(bytes.fromhex(digest.hexdigest())).decode()
    return {f"Checksum{way}": value}


def put(place: S3Place, way: str, data: bytes) -> None:
    """Write an object with a checksum of the whole."""
    key = {"Bucket": place.bucket, "Key": f"{place.prefix}/file"}
    place.server.client.put_object(**key, Body=data, **checksum(way, data))


def put_in_parts(place: S3Place, data: bytes, kind: str) -> None:
    """Write an object whose ETag is no MD5, with a checksum of one of the kinds of S3."""
    client = place.server.client
    key = {"Bucket": place.bucket, "Key": f"{place.prefix}/file"}
    way = "CRC64NVME" if kind == "FULL_OBJECT" else "CRC32"
    how = {"ChecksumAlgorithm": way, "ChecksumType": kind}
    upload = {**key, "UploadId": client.create_multipart_upload(**key, **how)["UploadId"]}
    its = checksum(way, data)
    part = client.upload_part(**upload, PartNumber=1, Body=data, **its)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"], **its}]}
    client.complete_multipart_upload(**upload, MultipartUpload=parts)


def tell_before(cache: Path, what: str) -> None:
    """Let the lines of the parts that came say that something else was told of the whole."""
    [file] = cache.glob("incoming/*/parts")
    boot, *lines = file.read_text().splitlines()
    parts = [json.loads(line) for line in lines]
    for part in parts:
        if what == "nothing":
            part[-1] = ""
        elif what == "what is unknown here":
            part[-1] = "crc128:00"
    file.write_text("".join(f"{line}\n" for line in [boot, *map(json.dumps, parts)]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_an_object_is_proved_by_the_checksum_that_its_store_keeps(s3_place, stage, way, size):
    data = DATA[: SIZES[size]]
    put(s3_place, way, data)

    staged = stage(s3_place.url, s3_place.settings)

    assert staged.verified == "checksum"
    assert f"{staged.num_files} {staged.size_bytes}" == f"1 {len(data)}"


@pytest.mark.parametrize("size", SIZES)
def test_an_object_that_was_sent_in_parts_is_proved_by_a_checksum_of_the_whole(
    s3_place, stage, size
):
    put_in_parts(s3_place, DATA[: SIZES[size]], "FULL_OBJECT")

    assert stage(s3_place.url, s3_place.settings).verified == "checksum"


@pytest.mark.parametrize("size", SIZES)
def test_a_checksum_of_the_parts_proves_nothing(s3_place, stage, size):
    put_in_parts(s3_place, DATA[: SIZES[size]], "COMPOSITE")

    assert stage(s3_place.url, s3_place.settings).verified == "size"


@pytest.mark.parametrize("size", SIZES)
def test_a_bit_that_was_flipped_on_the_way_is_fetched_again(s3, s3_place, stage, tmp_path, size):
    data = DATA[: SIZES[size]]
    put_in_parts(s3_place, data, "FULL_OBJECT")

    with fault_proxy(s3.port, times(1, "flip", "GET", "/file")) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        staged = stage(s3_place.url, settings)

    assert staged.verified == "checksum"
    assert (tmp_path / "data" / "file").read_bytes() == data


@pytest.mark.parametrize("size", SIZES)
def test_bytes_that_are_always_wrong_are_never_published(
    s3, s3_place, stage, tmp_path, monkeypatch, size
):
    monkeypatch.setattr("trainjob.storage.curl.retry.FIRST_PAUSE_S", 0.001)
    put_in_parts(s3_place, DATA[: SIZES[size]], "FULL_OBJECT")

    with fault_proxy(s3.port, times(1000, "flip", "GET", "/file")) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        with pytest.raises(CorruptData, match="do not have the CRC64NVME that the store tells"):
            stage(s3_place.url, settings)

    assert not (tmp_path / "data").exists()


def store_of_parts(
    look: Callable[[], Reply], etag: str = '"0-2"', **headers: str
) -> AbstractContextManager[ScriptedStore]:
    """A store of one object that comes in parts; `look` answers the requests of HEAD."""

    def reply(asked: Asked) -> Reply:
        if "list-type" in asked.path:
            listed = LISTED.format(size=len(DATA), etag=etag).encode()
            return Reply(body=listed, headers={"Content_Type": "application/xml"})
        if asked.method == "HEAD":
            return look()
        first, last = map(int, asked.headers["range"].removeprefix("bytes=").split("-"))
        more = {"ETag": etag, "Content_Range": f"bytes {first}-{last}/{len(DATA)}"}
        return Reply(206, DATA[first : last + 1], more | headers)

    return scripted_store(reply)


def looked(**headers: str) -> Reply:
    """The answer to a HEAD of that object, with its checksum."""
    sha256 = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    return Reply(headers={"ETag": '"0-2"', "x_amz_checksum_sha256": sha256, **headers})


@pytest.mark.parametrize(
    "answer",
    [Reply(405), Reply(403), Reply(400), Reply(501), Reply(), Reply(headers={"ETag": '"0-2"'})],
    ids=["405", "403", "400", "501", "without ETag", "without checksum"],
)
def test_a_file_of_which_nothing_more_is_told_comes_all_the_same(stage, tmp_path, answer):
    with store_of_parts(lambda: answer) as store:
        staged = stage("s3://bucket/tree", store.settings)

    assert staged.verified == "size"
    assert (tmp_path / "data" / "file").read_bytes() == DATA


@pytest.mark.parametrize("status", [400, 408, 429, 503])
def test_a_refusal_that_passes_takes_no_proof(stage, monkeypatch, status):
    """One of 400 without a body, which may be of keys that are over, passes when a GET was sent."""
    shorten_pauses(monkeypatch)
    answers = iter([Reply(status)])

    with store_of_parts(lambda: next(answers, looked())) as store:
        staged = stage("s3://bucket/tree", store.settings)

    assert staged.verified == "checksum"


def test_a_checksum_that_is_said_to_be_of_the_parts_is_none_of_the_whole(stage):
    answer = looked(x_amz_checksum_type="COMPOSITE", x_amz_checksum_sha256="A" * 43 + "=")

    with store_of_parts(lambda: answer) as store:
        staged = stage("s3://bucket/tree", store.settings)

    assert staged.verified == "size"


def test_that_an_object_is_encrypted_may_be_told_with_its_parts_alone(stage):
    etag = f'"{hashlib.md5(b"another").hexdigest()}"'
    encrypted = {"x_amz_server_side_encryption": "aws:kms"}

    with store_of_parts(lambda: Reply(headers={"ETag": etag}), etag, **encrypted) as store:
        staged = stage("s3://bucket/tree", store.settings)

    assert staged.verified == "size"


@pytest.mark.parametrize("was_told", ["the checksum", "nothing", "what is unknown here"])
def test_an_interrupted_copy_is_proved_by_the_checksum_as_a_whole(
    s3, s3_place, stage, tmp_path, was_told
):
    """Whatever the process before knew of it, which may have been one of an older trainjob."""
    put_in_parts(s3_place, DATA, "FULL_OBJECT")
    passed = iter(range(2))

    def rule(method: str, path: str) -> Fault:
        is_part = method == "GET" and path.partition("?")[0].endswith("/file")
        if not is_part or next(passed, None) is not None:
            return None
        wait_until(lambda: num_noted_parts(Cache(tmp_path / "cache")) == 2)
        return "403"

    with fault_proxy(s3.port, rule) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        with pytest.raises(StoreDenied):
            stage(s3_place.url, settings)
        proxy.rule = lambda method, path: None
        tell_before(tmp_path / "cache", was_told)
        staged = stage(s3_place.url, settings)

    assert staged.verified == "checksum"
    assert staged.moved_bytes <= len(DATA) - MIB  # one of the two may be the short last one
    assert (tmp_path / "data" / "file").read_bytes() == DATA


def test_without_the_package_for_it_a_crc_is_not_compared(s3_place, stage, monkeypatch):
    put_in_parts(s3_place, DATA[:1000], "FULL_OBJECT")
    monkeypatch.setattr(told, "_crcs", dict)

    assert stage(s3_place.url, s3_place.settings).verified == "size"


def test_what_finds_crcs_is_not_loaded_for_a_store_that_tells_none(
    s3, s3_place, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(told, "_crcs", pytest.fail)
    s3_place.put("file", DATA)

    staged = stage_channel(s3_place.url, tmp_path / "data", s3.settings, label="d", holder="job")

    assert staged.verified == "etag"


def test_a_store_that_may_not_know_of_checksums_is_not_asked(s3, s3_place, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINJOB_CACHE_DIR", str(tmp_path / "cache"))
    put(s3_place, "CRC64NVME", b"data")

    staged = stage_channel(s3_place.url, tmp_path / "data", s3.settings, label="d", holder="job")

    assert staged.verified == "etag"


@pytest.mark.parametrize(
    ("endpoint", "is_asked"),
    [
        (None, True),
        ("https://s3.eu-west-1.amazonaws.com", True),
        ("https://s3.cn-north-1.amazonaws.com.cn", True),
        ("https://S3.us-east-1.amazonaws.com.", True),
        ("https://bucket.s3-fips.dualstack.us-gov-west-1.amazonaws.com", True),
        ("https://s3.eu-west-1.api.aws", True),
        ("https://ec2-1-2-3-4.compute-1.amazonaws.com:9000", False),
        ("https://minio-1.eu-west-1.elb.amazonaws.com", False),
        ("https://amazonaws.com.example", False),
        ("https://obs.cn-north-4.myhuaweicloud.com", False),
        ("http://127.0.0.1:9000", False),
    ],
)
def test_the_store_of_aws_is_asked_without_being_told_to(endpoint, is_asked, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = StoreSettings(
        endpoint_url=endpoint, region="eu-west-1", access_key="k", secret_key="s"
    )

    assert Bucket("bucket", settings).has_checksums is is_asked


def test_pieces_give_the_checksum_of_the_whole():
    for way in (*WAYS, "MD5"):
        name = way.lower()
        digest = told.digest_for(f"{name}:")
        whole = hashlib.sha256(DATA).hexdigest()
        if digest is None:
            assert name == "sha256"
            assert told.is_of(f"sha256:{whole}", DATA, whole)
            continue
        for start in range(0, len(DATA), 100_000):
            digest.update(memoryview(DATA)[start : start + 100_000])
        assert told.is_of(f"{name}:{digest.hexdigest()}", DATA, whole)
        assert not told.is_of(f"{name}:{digest.hexdigest()}", DATA[:-1], whole)
