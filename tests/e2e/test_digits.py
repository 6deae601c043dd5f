"""The digits examples as whole jobs: torchrun on S3, MPI on folders, verified outputs."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.training_job import training_job
from trainjob.job import Checkpoints, TrainingJob
from trainjob.storage.checkpoint_index import INDEXES
from trainjob.storage.receipt import verify_receipt
from trainjob.storage.settings import StoreSettings

ROOT = Path(__file__).parent.parent.parent
MNIST = ROOT.parent / "shared" / "data" / "mnist"
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500), pytest.mark.usefixtures("prefect_server")]


def example(name: str, source: str, target: str, **hyperparameters: int) -> TrainingJob:
    """The job of an example with other places for its data and its results."""
    job = TrainingJob.load(ROOT / "examples" / name / "job.yaml")
    [data], [results] = job.inputs, job.outputs
    return job.model_copy(
        update={
            "inputs": [data.model_copy(update={"url": source})],
            "outputs": [results.model_copy(update={"url": target})],
            "checkpoints": Checkpoints(url=f"{target.rstrip('/')}-checkpoints/"),
            "hyperparameters": job.hyperparameters | hyperparameters,
        }
    )


@pytest.mark.mpi
def test_digits_by_mpi_on_folders(digits_dataset: Path, tmp_path: Path) -> None:
    source, target = f"file://{digits_dataset}", f"file://{tmp_path}/out"

    report = training_job(example("digits_mpi", source, target, epochs=5))

    assert report.state == "Completed"
    assert _accuracy((tmp_path / "out" / "metrics.json").read_bytes()) >= 0.95
    assert verify_receipt(str(tmp_path / "out"), None).problems == ()


def test_digits_by_torchrun_on_s3(
    digits_dataset: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in s3.env.items():
        monkeypatch.setenv(variable, value)
    bucket = s3.new_bucket()
    for file in digits_dataset.iterdir():
        s3.put(bucket, f"data/{file.name}", file.read_bytes())

    report = training_job(
        example("digits", f"s3://{bucket}/data/", f"s3://{bucket}/out/", epochs=5)
    )

    assert report.state == "Completed"
    assert _accuracy(s3.get(bucket, "out/metrics.json")) >= 0.95
    verified = verify_receipt(f"s3://{bucket}/out/", StoreSettings.from_env())
    assert verified.problems == ()
    assert verified.num_files == 5  # model.pt, metrics.json, and three files of metrics
    [index] = s3.keys(bucket, f"out-checkpoints/{INDEXES}")
    assert b"step-00000225" in s3.get(bucket, index)


@pytest.mark.mpi
def test_a_startup_command_under_mpi(digits_dataset: Path, tmp_path: Path) -> None:
    report = training_job(example("startup_command", str(digits_dataset), str(tmp_path / "out")))

    assert report.state == "Completed"
    assert _accuracy((tmp_path / "out" / "metrics.json").read_bytes()) >= 0.95


@pytest.mark.skipif(not MNIST.is_dir(), reason="the MNIST files are not beside the checkout")
def test_digits_on_the_real_mnist_files_as_they_are(tmp_path: Path) -> None:
    report = training_job(example("digits", str(MNIST), str(tmp_path / "out"), epochs=1))

    assert report.state == "Completed"
    assert _accuracy((tmp_path / "out" / "metrics.json").read_bytes()) >= 0.93


def _accuracy(metrics: bytes) -> float:
    return float(json.loads(metrics)["test_accuracy"])
