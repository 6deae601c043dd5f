"""Where what a run wrote lies: links where a browser can follow them, text to copy elsewhere."""

from typing import Any

from trainjob.job import TrainingJob
from trainjob.report import OutputReport, RunReport
from trainjob.report_places import places_markdown, places_of

JOB: dict[str, Any] = {
    "name": "digits",
    "algorithm": {"code": {"url": "code"}, "boot_file": "train.py"},
    "outputs": [{"name": "train_url", "url": "s3://bucket/out/{run_id}/"}],
    "checkpoints": {"url": "s3://bucket/checkpoints/{run_id}/"},
    "logs": {"url": "/data/logs/{run_id}/"},
}


def report(**changes: Any) -> RunReport:
    given: dict[str, Any] = {
        "outputs": (OutputReport("train_url", "s3://bucket/out/r1/", 5, 100),),
        "output_urls": {"train_url": "s3://bucket/out/r1/"},
        "logs": "/home/me/.trainjob/runs/r1/logs",
    }
    return RunReport("digits", "r1", **given | changes)


def test_outputs_come_first_with_their_receipts_then_checkpoints_and_logs() -> None:
    job = TrainingJob.parse(JOB)

    assert places_of(report(), job) == {
        "train_url": "s3://bucket/out/r1/",
        "receipt of train_url": "s3://bucket/out/r1/_trainjob/receipt.json",
        "checkpoints": "s3://bucket/checkpoints/r1/",
        "logs": "/data/logs/r1/",
        "logs on the machine": "/home/me/.trainjob/runs/r1/logs",
    }


def test_what_a_stopped_run_saved_is_among_them() -> None:
    stopped = report(state="Cancelled", outputs=())

    assert places_of(stopped, TrainingJob.parse(JOB)) == places_of(report(), TrainingJob.parse(JOB))


def test_of_a_run_that_failed_before_its_training_there_are_none() -> None:
    failed = report(state="Failed", outputs=(), logs=None)

    assert places_of(failed, TrainingJob.parse(JOB)) == {}
    assert places_of(report(), None) == {}


def test_a_url_is_a_link_and_a_path_is_text() -> None:
    """A link to a path would lead to the server of the UI."""
    page = places_markdown({"out": "s3://bucket/a b/", "logs": "/home/a|b/"}, "r1")

    assert "| out | [s3://bucket/a b/](<s3://bucket/a b/>) |" in page
    assert "| logs | `/home/a\\|b/` |" in page
    assert "python -m flows download r1 FOLDER" in page
