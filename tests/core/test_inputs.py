"""The inputs of a run: staged once, there while it trains, let go of after it."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import make_job
from tests.waiting import wait_until
from trainjob.errors import StoreError
from trainjob.events import Event, Noted, listening
from trainjob.inputs import StagedInput, holding_inputs, stage_channels
from trainjob.job import TrainingJob
from trainjob.storage.cache import heartbeat
from trainjob.storage.cache.folder import Cache
from trainjob.workspace import Workspace


@pytest.fixture
def bucket(s3: Any) -> str:
    name: str = s3.new_bucket()
    s3.put(name, "data/value.txt", b"21")
    return name


@pytest.fixture
def job(tmp_path: Path, bucket: str) -> TrainingJob:
    channel = {"name": "data_url", "url": f"s3://{bucket}/data/"}
    return TrainingJob.parse(make_job(tmp_path, inputs=[channel]))


def changed(job: TrainingJob, **update: Any) -> TrainingJob:
    [channel] = job.inputs
    return job.model_copy(update={"inputs": [channel.model_copy(update=update)]})


def test_a_second_run_on_the_same_data_moves_nothing(job: TrainingJob, s3: Any) -> None:
    [first] = stage_channels(job, Workspace.of_run("first"), s3.settings)
    [second] = stage_channels(job, Workspace.of_run("second"), s3.settings)

    assert str(first) == "data_url: 1 file, 2 B, 2 B moved (curl), verified by etag"
    assert str(second) == "data_url: 1 file, 2 B, 0 B moved (cache), verified by etag"
    assert second.fingerprint == first.fingerprint


def test_a_resume_says_what_was_there() -> None:
    staged = StagedInput(
        "data_url", "s3://b/", "link", 2, 3072, "sha256:0", "curl", "size", 1024, 2048
    )

    assert str(staged) == (
        "data_url: 2 files, 3 KiB, 1 KiB moved (curl), 2 KiB from cache, verified by size"
    )


def test_a_stream_is_not_staged(job: TrainingJob, s3: Any) -> None:
    workspace = Workspace.of_run("run")

    [staged] = stage_channels(changed(job, mode="stream"), workspace, s3.settings)

    assert str(staged) == "data_url: streamed, nothing copied"
    assert not workspace.input_dir("data_url").exists()


def test_the_inputs_are_kept_while_a_run_trains_and_no_longer(job: TrainingJob, s3: Any) -> None:
    workspace, cache = Workspace.of_run("run"), Cache.of_machine()
    stage_channels(job, workspace, s3.settings)
    [snapshot] = cache.snapshots()

    with holding_inputs(job, workspace, s3.settings):
        is_evicted = cache.evict(snapshot)

    assert not is_evicted
    assert cache.evict(snapshot)


def test_the_inputs_of_a_training_that_takes_weeks_are_kept(
    job: TrainingJob, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other containers take a lease that nobody touches for one of a process that is gone."""
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.01)
    workspace = Workspace.of_run("run")
    stage_channels(job, workspace, s3.settings)
    [lease] = Cache.of_machine().snapshots()[0].leases()

    with holding_inputs(job, workspace, s3.settings):
        os.utime(lease.file, (1, 1))

        wait_until(lambda: lease.file.stat().st_mtime > 1)


def test_a_resumed_run_gets_what_the_cache_gave_up(job: TrainingJob, s3: Any) -> None:
    workspace = Workspace.of_run("run")
    stage_channels(job, workspace, s3.settings)
    shutil.rmtree(Cache.of_machine().root)

    with holding_inputs(job, workspace, s3.settings):
        assert (workspace.input_dir("data_url") / "value.txt").read_bytes() == b"21"


def test_a_resumed_run_does_not_go_on_with_other_data(
    job: TrainingJob, s3: Any, bucket: str
) -> None:
    workspace = Workspace.of_run("run")
    stage_channels(job, workspace, s3.settings)
    shutil.rmtree(Cache.of_machine().root)
    s3.put(bucket, "data/value.txt", b"22")

    with pytest.raises(StoreError, match="not the expected sha256:"):  # noqa: SIM117
        with holding_inputs(job, workspace, s3.settings):
            pass


def test_a_script_that_wrote_into_its_input_is_told_of(job: TrainingJob, s3: Any) -> None:
    workspace = Workspace.of_run("run")
    stage_channels(job, workspace, s3.settings)
    events: list[Event] = []

    with listening(events.append), holding_inputs(job, workspace, s3.settings):
        folder = workspace.input_dir("data_url").resolve()
        folder.chmod(0o755)
        (folder / "cache.tmp").write_bytes(b"of the script")

    [note] = [event.text for event in events if isinstance(event, Noted)]
    assert note.startswith(f"the script wrote into its input {job.inputs[0].url}, which other runs")
    assert "cache.tmp: added" in note
    assert Cache.of_machine().snapshots() == []


def test_a_run_that_ends_leaves_the_shared_data(job: TrainingJob, s3: Any) -> None:
    workspace = Workspace.of_run("run")
    stage_channels(job, workspace, s3.settings)
    [snapshot] = Cache.of_machine().snapshots()

    workspace.drop_copies(keeps_checkpoints=False)

    assert not workspace.input_dir("data_url").exists()
    assert (snapshot.data / "value.txt").read_bytes() == b"21"
