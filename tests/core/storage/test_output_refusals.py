"""What cannot be kept in a store is told while the training runs, when it can still be mended."""

import os
from pathlib import Path

import pytest

from tests.waiting import wait_until
from trainjob.errors import StoreError, UnsafeKey
from trainjob.storage.checkpoint_mirror import CheckpointMirror
from trainjob.storage.output_mirror import OutputMirror
from trainjob.storage.sync import Mirror
from trainjob.storage.sync_thread import syncing

LONG = "/".join(["d" * 200] * 5)


@pytest.fixture
def told() -> list[StoreError]:
    return []


@pytest.fixture(params=["outputs", "checkpoints"])
def mirror(request, folder, s3_place) -> Mirror:
    if request.param == "outputs":
        return OutputMirror(folder, s3_place.url, s3_place.settings, run_id="r", label="train_url")
    return CheckpointMirror(folder, s3_place.url, s3_place.settings, job="j", run_id="r")


def test_what_cannot_be_sent_is_told_by_name_while_the_rest_is_sent(
    mirror: Mirror, folder: Path, s3_place, write_tree, told, caplog
):
    write_tree(folder, {LONG: b"1", "model.pt": b"weights"})
    os.mkfifo(folder / "pipe")

    with syncing([mirror], interval_s=0.02, settle_s=0.01, on_problem=told.append) as sync:
        wait_until(lambda: told and "model.pt" in s3_place.paths())
        os.mkfifo(folder / "another")
        wait_until(lambda: len(told) > 1)

    first, second = map(str, told)  # each thing once
    assert first.startswith(f"{mirror.url.rstrip('/')}: ")
    assert f"{LONG!r} has a key of more than the 1024 bytes that S3 takes" in first
    assert "'pipe' is not a regular file" in first
    assert "'another' is not a regular file" in second
    assert "pipe" not in second
    assert all(isinstance(error, UnsafeKey) for error in told)
    # In the log of the run at once; who is told may keep it for the report at the end.
    said = [one.getMessage() for one in caplog.records if one.name.startswith("trainjob.")]
    assert said == [f"{mirror.label}: {first}", f"{mirror.label}: {second}"]
    (report,) = sync.reports
    assert report.error is None
    assert set(report.missing) == {LONG, "pipe", "another"}


def test_a_link_that_leads_somewhere_a_moment_later_is_not_told(folder, place):
    mirror = OutputMirror(folder, place.url, place.settings, run_id="r", label="train_url")
    (folder / "latest").symlink_to("model.pt")
    os.mkfifo(folder / "pipe")

    first = mirror.push(is_final=False)
    (folder / "model.pt").write_bytes(b"1")
    second = mirror.push(is_final=False)

    assert dict(first.odd) == {}
    assert dict(second.odd) == {"pipe": "is not a regular file"}


def test_a_step_of_which_a_file_cannot_be_sent_does_not_count_without_it(
    folder, s3_place, write_tree
):
    step = {"model.pt": b"1", LONG: b"2", "COMPLETE": b""}
    write_tree(folder, {f"step-00000001/{name}": data for name, data in step.items()})
    mirror = CheckpointMirror(folder, s3_place.url, s3_place.settings, job="j", run_id="r")

    report = mirror.push(is_final=True)

    assert report.num_files == 0
    assert set(report.missing) == {"step-00000001/", f"step-00000001/{LONG}"}
