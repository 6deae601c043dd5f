"""Jobs on data that the machine has: as a folder of a store, and as one archive."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.training_job import training_job
from tests.jobs import make_job
from trainjob.job import TrainingJob

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500), pytest.mark.usefixtures("prefect_server")]

FILES = {"value.txt": b"21", "notes.txt": b"first"}


@pytest.fixture
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket that jobs find."""
    for variable, value in s3.env.items():
        monkeypatch.setenv(variable, value)
    return str(s3.new_bucket())


def test_a_second_run_on_a_folder_stages_nothing_and_a_third_only_what_changed(
    bucket: str, tmp_path: Path, s3: Any
) -> None:
    for name, data in FILES.items():
        s3.put(bucket, f"data/{name}", data)

    first = _staging(bucket, tmp_path / "first")
    second = _staging(bucket, tmp_path / "second")
    s3.put(bucket, "data/notes.txt", b"the second")
    third = _staging(bucket, tmp_path / "third")

    assert "moved (curl), verified by etag" in first
    assert ", 0 B moved (cache), verified by etag" in second
    assert ", 10 B moved (curl), " in third
    assert third.endswith(" from cache, verified by etag")


def test_an_archive_is_unpacked_for_the_first_run_alone(
    bucket: str, tmp_path: Path, s3: Any
) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", folder))
    s3.put(bucket, "data/packed.zip", archive.read_bytes())

    first = _staging(bucket, tmp_path / "first")
    second = _staging(bucket, tmp_path / "second")

    assert first.startswith("data_url: 2 files, ")
    assert ", 0 B moved (cache), verified by etag" in second


def _staging(bucket: str, folder: Path) -> str:
    """Run a job and return what it says of its inputs."""
    inputs = [{"name": "data_url", "url": f"s3://{bucket}/data/"}]
    report = training_job(TrainingJob.parse(make_job(folder, inputs=inputs)))
    assert report.state == "Completed"
    return report.stages[0].summary
