"""One dataset in three forms: as a folder, as one zip, and as many small objects."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.training_job import training_job
from trainjob.job import Checkpoints, InputChannel, TrainingJob

ROOT = Path(__file__).parent.parent.parent
FORMS = ("idx", "zip", "pictures")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500), pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def datasets(
    digits_in: Callable[[str], Path], s3: Any, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Put the three forms into one bucket; return their urls."""
    for variable, value in s3.env.items():
        monkeypatch.setenv(variable, value)
    bucket = s3.new_bucket()
    for form in FORMS:
        folder = digits_in(form)
        for file in folder.rglob("*.*"):
            s3.put(bucket, f"{form}/{file.relative_to(folder)}", file.read_bytes())
    urls = {form: f"s3://{bucket}/{form}/" for form in FORMS}
    return urls | {"zip": f"s3://{bucket}/zip/digits.zip"}


def test_the_network_learns_the_same_from_every_form(
    datasets: dict[str, str], tmp_path: Path
) -> None:
    told = {form: learn(url, tmp_path / f"out-{form}") for form, url in datasets.items()}

    assert told["idx"]["test_accuracy"] >= 0.8
    assert told["zip"] == told["idx"]
    assert told["pictures"] == told["idx"]


def learn(url: str, out: Path) -> Any:
    """Train the example for two epochs; return its metrics."""
    job = TrainingJob.load(ROOT / "examples" / "digits" / "job.yaml")
    [results] = job.outputs
    job = job.model_copy(
        update={
            "inputs": [InputChannel(name="data_url", url=url)],
            "outputs": [results.model_copy(update={"url": str(out)})],
            "checkpoints": Checkpoints(url=f"{out}-checkpoints"),
            "hyperparameters": job.hyperparameters | {"epochs": 2},
        }
    )
    assert training_job(job).state == "Completed"
    return json.loads((out / "metrics.json").read_text())
