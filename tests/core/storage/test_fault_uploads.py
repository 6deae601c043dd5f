"""What a network, a proxy or a busy store does to an upload: exact bytes or one clear error.

Never an object that is half there, and no parts that nobody completes. Both engines, and a size
that is one request and one that goes in parts.
"""

import hashlib
from pathlib import Path

import pytest

from tests.core.storage.engines import shorten_pauses
from tests.s3_faults import times
from trainjob.errors import StoreDenied, StoreError, StoreUnavailable
from trainjob.storage.local_tree import list_folder
from trainjob.storage.manifest import FileRecord
from trainjob.storage.meter import Meter
from trainjob.storage.store import open_store


@pytest.fixture
def upload(s3_place, proxy, tmp_path: Path, contents, size, engine, monkeypatch):
    """Send one file through the proxy, with little patience."""
    shorten_pauses(monkeypatch)
    (tmp_path / "object").write_bytes(contents[size])
    files = list_folder(tmp_path).files
    settings = s3_place.settings.model_copy(update={"endpoint_url": proxy.endpoint_url})

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
    left = s3.client.list_multipart_uploads(Bucket=s3_place.bucket, Prefix=s3_place.prefix)
    assert left.get("Uploads", []) == []
