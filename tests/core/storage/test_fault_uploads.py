"""What a network, a proxy or a busy store does to an upload: exact bytes or one clear error.

Never an object that is half there, and no parts that nobody completes. Both engines, and a size
that is one request and one that goes in parts.
"""

import hashlib
import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.storage.conftest import S3Place
from tests.core.storage.engines import shorten_parts, shorten_pauses, shorten_stalls
from tests.core.storage.scripted_store import Asked, Reply, error, scripted_store
from tests.s3_faults import Fault, times
from tests.s3_server import S3Server
from trainjob.errors import StoreDenied, StoreError, StoreUnavailable
from trainjob.storage.local_tree import list_folder
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.store import open_store

PART_BYTES = 5 << 20

_SEND = """
import sys
from pathlib import Path
from trainjob.storage.local_tree import list_folder
from trainjob.storage.meter import Meter
from trainjob.storage.store import open_store
folder = Path(sys.argv[1])
with open_store("s3://127.0.0.1-bucket/run") as store:
    store.upload(folder, list_folder(folder).files, Meter(None, ()))
# Not ru_maxrss, which counts what the process was before exec, too.
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def _take_everything(asked: Asked) -> Reply:
    if asked.method == "PUT":
        return Reply(headers={"ETag": f'"{hashlib.md5(asked.body).hexdigest()}"'})
    if asked.method == "POST":
        kind = "Complete" if "uploadId" in asked.path else "Initiate"
        result = f"{kind}MultipartUploadResult"
        return Reply(body=f"<{result}><UploadId>1</UploadId></{result}>".encode())
    return Reply(204)


def unfinished(s3: S3Server, place: S3Place) -> list[str]:
    found = s3.client.list_multipart_uploads(Bucket=place.bucket, Prefix=place.prefix)
    return [upload["Key"] for upload in found.get("Uploads", [])]


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    """As everywhere, but the parts of an upload are larger."""
    sizes = {"one request": 200_000, "in parts": 2 * PART_BYTES + 1}
    return {name: random.Random(name).randbytes(size) for name, size in sizes.items()}


@pytest.fixture
def upload(s3_place, proxy, tmp_path: Path, contents, size, engine, monkeypatch):
    """Send one file through the proxy, with little patience."""
    shorten_pauses(monkeypatch)
    shorten_parts(monkeypatch, PART_BYTES)
    (tmp_path / "object").write_bytes(contents[size])
    files = list_folder(tmp_path).files
    settings = replace(s3_place.settings, endpoint_url=proxy.endpoint_url)

    def run() -> list[FileRecord]:
        with open_store(s3_place.url, settings) as store:
            return store.upload(tmp_path, files, Meter(None, files))

    return run


@pytest.mark.parametrize("fault", ["503", "500", "429", "gone", "cut", "reset"])
def test_an_upload_is_exact_after_a_fault_that_passes(
    upload, s3_place, proxy, contents, size, fault
):
    proxy.rule = times(2, fault, "PUT", "/object")

    records = upload()

    assert s3_place.get("object") == contents[size]
    assert [r.sha256 for r in records] == [hashlib.sha256(contents[size]).hexdigest()]


@pytest.mark.usefixtures("engine")
def test_an_upload_in_parts_of_their_real_size_is_exact(s3_place, proxy, tmp_path, monkeypatch):
    shorten_pauses(monkeypatch)
    data = random.Random("large").randbytes(24 << 20)
    (tmp_path / "object").write_bytes(data)
    files = list_folder(tmp_path).files
    proxy.rule = times(2, "reset", "PUT", "/object")

    with open_store(
        s3_place.url, replace(s3_place.settings, endpoint_url=proxy.endpoint_url)
    ) as store:
        store.upload(tmp_path, files, Meter(None, files))

    assert s3_place.get("object") == data


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_an_upload_is_exact_after_a_store_that_does_not_answer(
    upload, s3_place, proxy, contents, size, method, monkeypatch
):
    """To a file or its parts, or to what begins and completes the parts."""
    shorten_stalls(monkeypatch)
    proxy.rule = times(1, "hang", method, "/object")

    upload()

    assert s3_place.get("object") == contents[size]


@pytest.mark.parametrize("size", ["in parts"], indirect=True)
@pytest.mark.parametrize("fault", ["short", "page", "flip"])
@pytest.mark.parametrize("part", ["uploads", "uploadId"], ids=["begun", "completed"])
def test_an_answer_about_parts_that_is_spoiled_is_asked_for_again(
    upload, s3_place, proxy, contents, size, part, fault
):
    """The log-in page of a network is not taken for the object."""
    proxy.rule = times(1, fault, "POST", f"{part}=")

    (record,) = upload()

    assert s3_place.get("object") == contents[size]
    assert record.size_bytes == len(contents[size])


@pytest.mark.parametrize("size", ["in parts"], indirect=True)
def test_a_token_that_ends_between_two_parts_is_an_error_and_leaves_nothing(
    upload, s3, s3_place, proxy
):
    num_parts, lock = [0], threading.Lock()

    def expire(method: str, path: str) -> Fault:
        with lock:
            num_parts[0] += "partNumber" in path
            return "expired" if "partNumber" in path and num_parts[0] > 1 else None

    proxy.rule = expire

    with pytest.raises(StoreDenied, match=r"ExpiredToken.*get new temporary"):
        upload()

    assert s3_place.paths() == []
    assert unfinished(s3, s3_place) == []


@pytest.mark.usefixtures("engine")
def test_memory_does_not_grow_with_the_files_that_are_sent(tmp_path):
    """A fresh process sends 4 files of 48 MiB, and has 150 MB at most with all its code."""
    for name in "abcd":
        with (tmp_path / name).open("wb") as file:
            file.truncate(48 << 20)

    with scripted_store(_take_everything) as server:
        env = {"AWS_ENDPOINT_URL": server.endpoint_url, "AWS_REGION": "us-east-1"}
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        ended = subprocess.run(
            [sys.executable, "-c", _SEND, str(tmp_path)],
            env=os.environ | env | keys,
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=False,
        )

    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) <= 150 << 10


@pytest.mark.parametrize(
    ("fault", "error", "found"),
    [
        ("503", StoreUnavailable, "cannot answer now"),
        ("gone", StoreUnavailable, "no whole answer from the store"),
        ("expired", StoreDenied, "ExpiredToken.*get new temporary credentials"),
        ("skew", StoreDenied, "RequestTimeTooSkewed.*set the clock of this machine"),
        ("403", StoreDenied, "not allowed to do this.*ask for the right"),
        ("400", StoreError, "InvalidRequest.*check the url and the settings"),
    ],
)
def test_a_fault_that_stays_is_one_error_and_leaves_nothing(
    upload, s3, s3_place, proxy, fault, error, found
):
    proxy.rule = times(10_000, fault, "PUT", "/object")

    with pytest.raises(error, match=found) as caught:
        upload()

    assert str(caught.value).startswith(f"{s3_place.url}/object: ")
    assert caught.value.retryable == (error is StoreUnavailable)
    assert s3_place.paths() == []
    assert unfinished(s3, s3_place) == []


@pytest.mark.usefixtures("engine")
def test_unfinished_uploads_are_aborted_though_one_is_gone_and_others_are_not_below_the_url():
    """By a store that does not look at the prefix that it is asked for."""
    keys = ["other/a", "mine/gone", "mine/a%20b", "mined/c", "mine/d"]
    uploads = "".join(f"<Upload><Key>{k}</Key><UploadId>{k}</UploadId></Upload>" for k in keys)
    page = (
        "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>"
        f"<EncodingType>url</EncodingType>{uploads}</ListMultipartUploadsResult>"
    )

    def reply(asked: Asked) -> Reply:
        if asked.method == "GET":
            return Reply(body=page.encode())
        return error(404, "NoSuchUpload") if "gone" in asked.path else Reply(204)

    with (
        scripted_store(reply) as server,
        open_store("s3://bucket/mine", server.settings) as store,
    ):
        num_aborted = store.discard_unfinished({"gone", "a b", "c", "d"})

    aborted = [asked.path for asked in server.asked if asked.method == "DELETE"]
    paths = sorted(path.partition("?")[0] for path in aborted)
    assert paths == ["/bucket/mine/a%20b", "/bucket/mine/d", "/bucket/mine/gone"]
    assert num_aborted == 3
