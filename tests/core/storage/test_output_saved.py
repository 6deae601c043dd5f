"""Outputs of a run that did not end well: what is saved of them, and what is not."""

import os

import pytest

from tests.jobs import make_job
from trainjob.errors import OutputEmpty, StoreUnavailable
from trainjob.events import Noted, Saved, Transferred, listening
from trainjob.job import TrainingJob
from trainjob.saving import save_outputs, upload_all
from trainjob.storage.receipt import SUCCESS, read_receipt, verify_receipt
from trainjob.storage.settings import StoreSettings
from trainjob.workspace import Workspace


def test_what_could_not_be_saved_of_a_failed_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINJOB_WORKDIR", str(tmp_path / "runs"))
    job = TrainingJob.model_validate(make_job(tmp_path))
    folder = Workspace.of_run("run-1").output_dir("train_url")
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"weights")
    os.mkfifo(folder / "pipe")
    events: list[object] = []

    with listening(events.append):
        save_outputs(job, "run-1", StoreSettings(), {}, "Failed")

    (saved,) = [event for event in events if isinstance(event, Saved)]
    assert (saved.label, saved.num_files, saved.size_bytes) == ("train_url", 1, 7)
    assert saved.missing == ("'pipe' is not a regular file",)
    assert (tmp_path / "out" / "model.pt").read_bytes() == b"weights"


def test_what_an_earlier_attempt_wrote_is_saved_and_said(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINJOB_WORKDIR", str(tmp_path / "runs"))
    job = TrainingJob.model_validate(make_job(tmp_path))
    workspace = Workspace.of_run("run-1")
    for content in (b"first", b"second"):
        workspace.start_attempt(("train_url",))
        (workspace.output_dir("train_url") / "model.pt").write_bytes(content)
    for _ in range(9):
        workspace.start_attempt(("train_url",))
    events: list[object] = []

    with listening(events.append):
        save_outputs(job, "run-1", StoreSettings(), {}, "Cancelled")

    (saved,) = [event for event in events if isinstance(event, Saved)]
    assert (saved.num_files, saved.missing) == (1, ())
    assert (tmp_path / "out" / "model.pt").read_bytes() == b"second"
    (note,) = [event.text for event in events if isinstance(event, Noted)]
    assert note == "train_url: 1 file of these is of an earlier attempt: model.pt"


@pytest.fixture
def two_outputs(tmp_path, monkeypatch, write_tree):
    """Return a job with the outputs a and b, of which those exist that are asked for."""
    monkeypatch.setenv("TRAINJOB_WORKDIR", str(tmp_path / "runs"))

    def make(*written: str) -> TrainingJob:
        for name in written:
            write_tree(Workspace.of_run("run-1").output_dir(name), {"file": name.encode()})
        outputs = [{"name": name, "url": str(tmp_path / name)} for name in ("a", "b")]
        return TrainingJob.model_validate(make_job(tmp_path, outputs=outputs))

    return make


@pytest.mark.parametrize(("written", "missing"), [("a", "b"), ("b", "a")])
def test_an_output_that_fails_keeps_no_other_from_its_receipt_and_all_from_being_results(
    tmp_path, two_outputs, written, missing
):
    job = two_outputs(written)

    with pytest.raises(OutputEmpty, match=f"the output '{missing}'"):
        upload_all(job, "run-1", StoreSettings(), {}, "Completed")

    assert [file.path for file in read_receipt(str(tmp_path / written), None).files] == ["file"]
    assert not (tmp_path / written / SUCCESS).exists()


def test_outputs_are_marked_as_results_when_all_are_proved(tmp_path, two_outputs):
    job = two_outputs("a", "b")
    marked = []

    def look(event):
        if isinstance(event, Transferred):
            marked.extend(tmp_path.glob(f"?/{SUCCESS}"))

    with listening(look):
        reports = upload_all(job, "run-1", StoreSettings(), {}, "Completed")

    assert [report.name for report in reports] == ["a", "b"]
    assert marked == []
    assert all(verify_receipt(str(tmp_path / name), None).is_result for name in "ab")


def test_an_output_without_files_is_not_marked_as_a_result(tmp_path, two_outputs):
    job = two_outputs("a")

    upload_all(job, "run-1", StoreSettings(), {}, "AutoStopped")

    assert (tmp_path / "a" / SUCCESS).exists()
    assert not (tmp_path / "b").exists()


def test_all_outputs_that_fail_are_named_and_the_one_that_may_pass_decides(
    tmp_path, two_outputs, monkeypatch
):
    """A retry is worth it as long as it can bring one of them to its store."""
    job = two_outputs("b")

    def be_away(event):
        if isinstance(event, Transferred) and event.label == "b":
            raise StoreUnavailable("b is away; try again")

    with listening(be_away), pytest.raises(StoreUnavailable) as raised:
        upload_all(job, "run-1", StoreSettings(), {}, "Completed")

    assert str(raised.value).startswith("b is away; try again\n")
    assert "wrote nothing to the output 'a'" in str(raised.value)
