"""What only an object store can do wrong: networks, versions, parts, hostile keys, loops."""

import hashlib
import os
import signal
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.core.storage.engines import shorten_parts, shorten_pauses, use_engine
from tests.s3_faults import fault_proxy, times
from trainjob.errors import (
    CorruptData,
    StoreDenied,
    StoreUnavailable,
    TreeChanged,
    UnsafeKey,
)
from trainjob.events import listening
from trainjob.storage.own_files import SUCCESS
from trainjob.storage.receipt import verify_receipt
from trainjob.storage.settings import StoreSettings
from trainjob.storage.stage import stage_tree
from trainjob.storage.upload import upload_tree

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture
def small_parts(monkeypatch):
    """Multipart from 5 MiB, the smallest part that S3 takes."""
    shorten_parts(monkeypatch, 5 << 20)


@pytest.fixture
def big_output(tmp_path) -> tuple[Path, bytes]:
    data = array("I", range(3 << 20)).tobytes()  # 12 MiB in which no two parts are equal
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "model.pt").write_bytes(data)
    return tmp_path / "outputs", data


@pytest.fixture
def quick_tries(monkeypatch):
    shorten_pauses(monkeypatch)


def through(proxy, settings: StoreSettings) -> StoreSettings:
    return replace(settings, endpoint_url=proxy.endpoint_url)


@pytest.mark.usefixtures("quick_tries")
@pytest.mark.parametrize("fault", ["cut", "flip", "503"])
def test_a_download_survives_what_networks_do(s3, s3_place, tmp_path, read_tree, fault):
    tree = {"big": os.urandom(3 << 20), "small": b"data"}
    for name, data in tree.items():
        s3_place.put(name, data)

    with fault_proxy(s3.port, times(2, fault, "GET", "/big")) as proxy:
        staged = stage_tree(s3_place.url, tmp_path / "data", through(proxy, s3.settings), "data")

    assert read_tree(tmp_path / "data") == tree
    assert sum("/big" in path for _, path in proxy.requests) == 3
    assert {f.path: f.sha256 for f in staged.files}["big"] == hashlib.sha256(
        tree["big"]
    ).hexdigest()


@pytest.mark.usefixtures("quick_tries")
@pytest.mark.parametrize(
    ("fault", "error"),
    [("cut", StoreUnavailable), ("flip", CorruptData), ("503", StoreUnavailable)],
)
def test_a_network_that_stays_broken_leaves_the_old_tree(
    s3, s3_place, tmp_path, read_tree, fault, error
):
    s3_place.put("file", b"old data")
    target = tmp_path / "inputs" / "data"
    stage_tree(s3_place.url, target, s3.settings, "data")
    s3_place.put("file", b"new data")

    with (
        fault_proxy(s3.port, times(99, fault, "GET", "/file")) as proxy,
        pytest.raises(error) as caught,
    ):
        stage_tree(s3_place.url, target, through(proxy, s3.settings), "data")

    assert caught.value.retryable
    assert f"{s3_place.url}/file: " in str(caught.value)
    assert read_tree(target) == {"file": b"old data"}
    assert [path.name for path in target.parent.iterdir()] == ["data"]


@pytest.mark.usefixtures("quick_tries")
def test_a_copy_that_starts_over_takes_its_bytes_back(s3, s3_place, tmp_path):
    s3_place.put("file", b"x" * 1000)
    events: list[Any] = []

    with listening(events.append), fault_proxy(s3.port, times(2, "cut", "GET", "/file")) as proxy:
        stage_tree(s3_place.url, tmp_path / "data", through(proxy, s3.settings), "data")

    assert (events[-1].num_files, events[-1].size_bytes) == (1, 1000)


def test_an_object_that_is_replaced_during_the_copy_is_never_mixed_in(s3, s3_place, tmp_path):
    s3_place.put("file", b"old")
    target = tmp_path / "inputs" / "data"

    def replace(method: str, path: str) -> None:
        if method == "GET" and path.endswith("/file"):
            s3_place.put("file", b"new")

    with fault_proxy(s3.port, replace) as proxy, pytest.raises(TreeChanged) as caught:
        stage_tree(s3_place.url, target, through(proxy, s3.settings), "data")

    assert caught.value.retryable
    assert list(target.parent.iterdir()) == []


def test_a_file_of_several_parts_arrives_whole(s3, s3_place, tmp_path, small_parts, big_output):
    source, data = big_output

    upload_tree(source, s3_place.url, s3.settings, run_id="r", facts={}, label="train_url")
    stage_tree(s3_place.url, tmp_path / "back", s3.settings, "data")

    head = s3.client.head_object(Bucket=s3_place.bucket, Key=f"{s3_place.prefix}/model.pt")
    assert head["ETag"].endswith('-3"')
    assert (tmp_path / "back" / "model.pt").read_bytes() == data
    assert verify_receipt(s3_place.url, s3.settings).problems == ()


@pytest.mark.parametrize("checksums", ["when_required", "when_supported"])
def test_a_tree_makes_the_round_trip_with_either_kind_of_checksums(
    s3, s3_place, tmp_path, write_tree, read_tree, small_parts, big_output, checksums
):
    source, data = big_output
    write_tree(source, {"small": b"data", "empty": b""})
    settings = replace(s3.settings, checksums=checksums)

    upload_tree(source, s3_place.url, settings, run_id="r", facts={}, label="train_url")
    stage_tree(s3_place.url, tmp_path / "back", settings, "data")

    back = read_tree(tmp_path / "back")
    assert (back["model.pt"], back["small"], back["empty"]) == (data, b"data", b"")
    assert verify_receipt(s3_place.url, settings).problems == ()


@pytest.mark.usefixtures("quick_tries")
def test_parts_survive_a_busy_store(s3, s3_place, small_parts, big_output):
    source, data = big_output

    with fault_proxy(s3.port, times(1, "503", "PUT", "partNumber=2")) as proxy:
        settings = through(proxy, s3.settings)
        upload_tree(source, s3_place.url, settings, run_id="r", facts={}, label="train_url")

    assert s3_place.get("model.pt") == data


@pytest.mark.usefixtures("quick_tries")
def test_parts_that_are_not_completed_are_not_left_in_the_store(
    s3, s3_place, small_parts, big_output
):
    source, _ = big_output

    with fault_proxy(s3.port, times(99, "503", "PUT", "partNumber=2")) as proxy:
        settings = through(proxy, s3.settings)
        with pytest.raises(StoreUnavailable):
            upload_tree(source, s3_place.url, settings, run_id="r", facts={}, label="train_url")

    uploads = s3.client.list_multipart_uploads(Bucket=s3_place.bucket, Prefix=s3_place.prefix)
    assert uploads.get("Uploads", []) == []
    assert SUCCESS not in s3_place.paths()


@pytest.mark.usefixtures("quick_tries")
def test_an_upload_that_broke_off_is_completed_by_the_same_run(s3, s3_place, tmp_path, write_tree):
    source = write_tree(tmp_path / "outputs", {f"{i}": b"%d" % i for i in range(20)})

    def upload(settings: StoreSettings) -> None:
        upload_tree(source, s3_place.url, settings, run_id="r", facts={}, label="train_url")

    with fault_proxy(s3.port, times(99, "503", "PUT", "/tree/15")) as proxy:
        with pytest.raises(StoreUnavailable):
            upload(through(proxy, s3.settings))
        assert SUCCESS not in s3_place.paths()
    upload(s3.settings)

    assert verify_receipt(s3_place.url, s3.settings).problems == ()


@pytest.mark.usefixtures("quick_tries")
def test_bytes_that_come_back_wrong_are_no_complete_upload(
    s3, s3_place, tmp_path, write_tree, monkeypatch
):
    use_engine(monkeypatch, "s3fs")  # the other one knows by the ETag what arrived
    source = write_tree(tmp_path / "outputs", {"model.pt": b"weights"})

    with fault_proxy(s3.port, times(99, "flip", "GET", "/model.pt")) as proxy:
        settings = through(proxy, s3.settings)
        with pytest.raises(CorruptData, match=r"model.pt: other bytes than were sent"):
            upload_tree(source, s3_place.url, settings, run_id="r", facts={}, label="train_url")

    assert SUCCESS not in s3_place.paths()


def test_a_stop_ends_the_copy_at_once_and_leaves_nothing(s3, s3_place, tmp_path):
    s3_place.put("file", b"x" * 100_000)
    target = tmp_path / "inputs" / "data"
    main_thread = threading.get_ident()

    with fault_proxy(s3.port, times(1, "stall", "GET", "/file")) as proxy:

        def interrupt() -> None:
            proxy.stalled.wait()
            signal.pthread_kill(main_thread, signal.SIGINT)

        stopper = threading.Thread(target=interrupt)
        stopper.start()
        with pytest.raises(KeyboardInterrupt):
            stage_tree(s3_place.url, target, through(proxy, s3.settings), "data")
        stopper.join()

    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
def test_wrong_credentials_are_denied_and_never_shown(s3, s3_place, tmp_path, write_tree, wrong):
    source = write_tree(tmp_path / "outputs", {"file": b"1"})
    value = "wr0ng-s3cret" if wrong == "secret_key" else "wr0ng-key"
    settings = replace(s3.settings, **{wrong: value})

    for work in (
        lambda: stage_tree(s3_place.url, tmp_path / "data", settings, "data"),
        lambda: verify_receipt(s3_place.url, settings),
        lambda: upload_tree(source, s3_place.url, settings, run_id="r", facts={}, label="x"),
    ):
        with pytest.raises(StoreDenied) as caught:
            work()
        assert "wr0ng" not in str(caught.value)
        assert not caught.value.retryable


def test_credentials_that_may_only_read_are_named_as_such(s3, s3_place, tmp_path, write_tree):
    source = write_tree(tmp_path / "outputs", {"file": b"1"})

    with pytest.raises(StoreDenied, match="not allowed to do this"):
        upload_tree(source, s3_place.url, s3.reader_settings, run_id="r", facts={}, label="x")

    assert s3_place.paths() == []


@contextmanager
def listing_server(keys: list[str]) -> Iterator[tuple[StoreSettings, list[str]]]:
    """A store that lists `keys`, which real servers refuse to hold, and notes what is asked."""
    asked: list[str] = []
    items = "".join(
        f'<Contents><Key>{quote(key)}</Key><Size>1</Size><ETag>"e"</ETag></Contents>'
        for key in keys
    )
    body = (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'
        f"<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>{items}"
        "</ListBucketResult>"
    ).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        yield (
            StoreSettings(
                endpoint_url=endpoint,
                access_key="k",
                secret_key="s",
                addressing_style="path",
            ),
            asked,
        )
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "key",
    ["x/../../escape", "x//etc/passwd", "x/a//b", "x/./a", "x/a\0b", "x/" + "n" * 256, "x/f/"],
)
def test_a_hostile_key_is_refused_before_the_first_byte(tmp_path, key):
    with listing_server(["x/fine", key]) as (settings, asked), pytest.raises(UnsafeKey):
        stage_tree("s3://b/x", tmp_path / "data", settings, "data")

    assert len(asked) == 1
    assert "list-type=2" in asked[0]
    assert list(tmp_path.iterdir()) == []
