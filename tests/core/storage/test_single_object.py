"""One file of a place, such as an archive: found without listing the others, by any engine."""

import io
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.s3_faults import fault_proxy
from trainjob.errors import StoreNotFound
from trainjob.storage.store import open_store

REPOSITORY = Path(__file__).parents[3]

_STAGE = """
import sys
from pathlib import Path
from trainjob.algorithm import Code
from trainjob.source import fetch_code
from trainjob.storage.stage import stage_channel
url, target = sys.argv[1], Path(sys.argv[2])
stage_channel(url, target / "data", None, label="data", holder="job")
fetch_code(Code(url=url), target / "code", None)
print(*sorted({"aiobotocore", "s3fs"} & sys.modules.keys()))
"""


def test_a_file_is_found_as_a_listing_has_it(any_place):
    for name in ("data.zip", "data.zip.md5", "data.zi", "folder/data.zip"):
        any_place.put(name, name.encode())

    with open_store(any_place.url, any_place.settings) as store:
        listed = {entry.path: entry for entry in store.list_files().files}
        found = [store.find(path) for path in ("data.zip", "folder/data.zip")]
        not_there = [store.find(path) for path in ("data.z", "folder", "gone/data.zip")]

    assert found == [listed["data.zip"], listed["folder/data.zip"]]
    assert not_there == [None, None, None]


@pytest.mark.usefixtures("engine")
def test_a_bucket_that_is_missing_is_told_and_not_taken_for_a_missing_object(s3):
    with (
        open_store("s3://no-such-bucket/x", s3.settings) as store,
        pytest.raises(StoreNotFound, match="no bucket of that name"),
    ):
        store.find("data.zip")


@pytest.mark.usefixtures("engine")
def test_it_takes_one_request(s3, s3_place):
    s3_place.put("data.zip", b"1")

    with fault_proxy(s3.port, lambda method, path: None) as proxy:
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        with open_store(s3_place.url, settings) as store:
            store.find("data.zip")

    assert len(proxy.requests) == 1


def test_an_archive_over_curl_loads_no_other_engine(s3, s3_place, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("train.py", "")
    s3_place.put("data.zip", buffer.getvalue())

    ended = subprocess.run(
        [sys.executable, "-c", _STAGE, f"{s3_place.url}/data.zip", str(tmp_path)],
        env=os.environ | s3.env | {"TRAINJOB_CACHE_DIR": str(tmp_path / "cache")},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "\n", "")
