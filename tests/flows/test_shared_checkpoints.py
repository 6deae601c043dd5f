"""What is said of checkpoints that one run of a job leaves to the next."""

from pathlib import Path

import pytest

from flows.submitting import shared_checkpoints
from tests.jobs import make_job
from trainjob.job import TrainingJob


@pytest.mark.parametrize(("url", "is_told"), [("ck/", True), ("ck/{run_id}/", False)])
def test_checkpoints_that_runs_share_are_told(url: str, is_told: bool, tmp_path: Path) -> None:
    data = make_job(tmp_path, checkpoints={"url": str(tmp_path / url)})
    job = TrainingJob.model_validate(data)

    said = list(shared_checkpoints(job))

    assert bool(said) == is_told
    assert all(str(tmp_path / url) in line for line in said)
