"""The digits job on data that the machine has: as a folder of a store, and as one archive."""

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from flows.training_job import training_job
from trainjob.job import Checkpoints, TrainingJob

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600), pytest.mark.usefixtures("prefect_server")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    command = [sys.executable, str(ROOT / "examples" / "make_dataset.py"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_a_second_run_on_a_folder_stages_nothing_and_a_third_only_what_changed(
    dataset: Path, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = _bucket(s3, dataset.iterdir(), monkeypatch)
    s3.put(bucket, "data/notes.txt", b"first")

    first = _staging(bucket, tmp_path / "first")
    second = _staging(bucket, tmp_path / "second")
    s3.put(bucket, "data/notes.txt", b"the second")
    third = _staging(bucket, tmp_path / "third")

    assert "moved (curl), verified by etag" in first
    assert ", 0 B moved (cache), verified by etag" in second
    assert ", 10 B moved (curl), " in third
    assert third.endswith(" from cache, verified by etag")


def test_an_archive_is_unpacked_for_the_first_run_alone(
    dataset: Path, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "digits"), "zip", dataset))
    bucket = _bucket(s3, [archive], monkeypatch)

    first = _staging(bucket, tmp_path / "first")
    second = _staging(bucket, tmp_path / "second")

    assert first.startswith(f"data_url: {len(list(dataset.iterdir()))} files, ")
    assert ", 0 B moved (cache), verified by etag" in second


def _bucket(s3: Any, files: Iterable[Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a bucket that holds these files, and let jobs find it."""
    for variable, value in s3.env.items():
        monkeypatch.setenv(variable, value)
    bucket: str = s3.new_bucket()
    for file in files:
        s3.put(bucket, f"data/{file.name}", file.read_bytes())
    return bucket


def _staging(bucket: str, out: Path) -> str:
    """Train for one epoch and return what the run says of its inputs."""
    job = TrainingJob.load(ROOT / "examples" / "digits" / "job.yaml")
    [data], [results] = job.inputs, job.outputs
    update = {
        "inputs": [data.model_copy(update={"url": f"s3://{bucket}/data/"})],
        "outputs": [results.model_copy(update={"url": str(out)})],
        "checkpoints": Checkpoints(url=f"{out}-checkpoints/"),
        "hyperparameters": job.hyperparameters | {"epochs": 1},
        "resources": job.resources.model_copy(update={"processes_per_node": 1}),
    }
    report = training_job(job.model_copy(update=update))
    assert report.state == "Completed"
    return report.stages[0].summary
