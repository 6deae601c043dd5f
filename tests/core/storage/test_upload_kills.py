"""An upload that ends half way leaves nothing that costs, lies, or stops the next one."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.s3_faults import fault_proxy
from tests.waiting import PATIENCE_S
from trainjob.storage import s3_transfer
from trainjob.storage.claim import CLAIM
from trainjob.storage.curl import large_file
from trainjob.storage.curl import upload as curl_upload
from trainjob.storage.own_files import RECEIPT, SUCCESS
from trainjob.storage.receipt import verify_receipt
from trainjob.storage.upload import upload_tree

REPOSITORY = Path(__file__).parents[3]
PART = 5 << 20  # the smallest that S3 takes
NUM_SMALL = 40

UPLOADER = f"""
import sys
from dataclasses import replace
from pathlib import Path
from trainjob.storage import s3_transfer
from trainjob.storage.curl import large_file, upload
from trainjob.storage.settings import StoreSettings
from trainjob.storage.upload import upload_tree

s3_transfer.MULTIPART_BYTES = s3_transfer.PART_BYTES = {PART}
upload.MULTIPART_BYTES = large_file.PART_BYTES = {PART}
source, url = sys.argv[1:]
settings = replace(StoreSettings.from_env(), addressing_style="path")
journal = Path(source).with_name("journal")
upload_tree(Path(source), url, settings, run_id="r", facts={{}}, label="out", journal=journal)
"""


@pytest.fixture
def outputs(tmp_path, write_tree):
    small = {f"small/{i:03d}": b"%d" % i for i in range(NUM_SMALL)}
    return write_tree(tmp_path / "outputs", {"large": os.urandom(3 * PART), **small})


@pytest.fixture
def small_parts(monkeypatch):
    for module, name in (
        (s3_transfer, "MULTIPART_BYTES"),
        (s3_transfer, "PART_BYTES"),
        (curl_upload, "MULTIPART_BYTES"),
        (large_file, "PART_BYTES"),
    ):
        monkeypatch.setattr(module, name, PART)


def unfinished(s3, s3_place) -> list[str]:
    found = s3.client.list_multipart_uploads(Bucket=s3_place.bucket, Prefix=s3_place.prefix)
    return [item["Key"] for item in found.get("Uploads", [])]


def upload(outputs: Path, s3_place, settings) -> None:
    upload_tree(
        outputs,
        s3_place.url,
        settings,
        run_id="r",
        facts={},
        label="out",
        journal=outputs.with_name("journal"),
    )


@pytest.mark.parametrize(
    ("method", "part", "is_multipart_left"),
    [
        ("PUT", "claim.json", False),
        ("PUT", f"small/{NUM_SMALL - 1:03d}", None),  # the order of the others is not known
        ("PUT", "partNumber=2", True),
        ("POST", "uploadId=", True),
        ("PUT", "receipt.json", False),
        ("PUT", "_SUCCESS", False),
    ],
)
@pytest.mark.usefixtures("engine")
def test_an_upload_that_is_killed_is_completed_by_the_next_try(
    s3, s3_place, outputs, method, part, is_multipart_left
):
    def hang(asked: str, path: str):
        return "hang" if asked == method and part in path else None

    with fault_proxy(s3.port, hang) as proxy:
        env = {
            **os.environ,
            **s3.env,
            "AWS_ENDPOINT_URL": proxy.endpoint_url,
            "PYTHONPATH": str(REPOSITORY),
        }
        command = [sys.executable, "-c", UPLOADER, str(outputs), s3_place.url]
        with subprocess.Popen(command, env=env) as process:
            assert proxy.stalled.wait(PATIENCE_S)
            process.kill()
        during = s3_place.paths()
        left = unfinished(s3, s3_place)
    upload(outputs, s3_place, s3.settings)

    assert SUCCESS not in during
    assert is_multipart_left is None or bool(left) == is_multipart_left
    assert unfinished(s3, s3_place) == []
    assert verify_receipt(s3_place.url, s3.settings).is_result
    assert len(s3_place.paths()) == NUM_SMALL + len(["large", RECEIPT, SUCCESS])


@pytest.mark.usefixtures("engine", "small_parts")
def test_a_stop_ends_the_upload_at_once_and_leaves_no_parts(s3, s3_place, outputs):
    main_thread = threading.get_ident()
    stopped: list[float] = []

    def hang(method: str, path: str):
        return "hang" if "partNumber=2" in path else None

    with fault_proxy(s3.port, hang) as proxy:

        def interrupt() -> None:
            proxy.stalled.wait()
            stopped.append(time.monotonic())
            signal.pthread_kill(main_thread, signal.SIGINT)

        stopper = threading.Thread(target=interrupt)
        stopper.start()
        settings = replace(s3.settings, endpoint_url=proxy.endpoint_url)
        with pytest.raises(KeyboardInterrupt):
            upload(outputs, s3_place, settings)
        took_s = time.monotonic() - stopped[0]
        stopper.join()

    assert took_s < 30
    assert unfinished(s3, s3_place) == []
    assert CLAIM in s3_place.paths()
    assert SUCCESS not in s3_place.paths()
