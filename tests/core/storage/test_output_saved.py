"""Outputs of a run that did not end well: what is saved of them, and what is not."""

import os
from typing import Any

import pytest

from tests.jobs import make_job
from trainjob.errors import OutputEmpty, StoreUnavailable, TreeChanged
from trainjob.events import Noted, Saved, Transferred, listening
from trainjob.job import TrainingJob
from trainjob.report import OutputReport
from trainjob.saving import save_outputs, upload_all
from trainjob.storage.own_files import RECEIPT, SUCCESS
from trainjob.storage.receipt import Receipt, read_receipt, verify_receipt
from trainjob.storage.settings import StoreSettings
from trainjob.storage.upload import upload_tree
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


@pytest.mark.parametrize("state", ["Cancelled", "Failed", "Crashed"])
def test_a_run_that_is_stopped_after_its_result_was_marked_keeps_the_result(
    tmp_path, two_outputs, state
):
    job = two_outputs("a", "b")
    upload_all(job, "run-1", StoreSettings(), {}, "Completed")
    (Workspace.of_run("run-1").output_dir("a") / "file").write_bytes(b"of another time")
    events: list[object] = []

    with listening(events.append):
        save_outputs(job, "run-1", StoreSettings(), {}, state)

    saved = [event for event in events if isinstance(event, Saved)]
    assert [(event.label, event.num_files, event.missing) for event in saved] == [
        ("a", 1, ()),
        ("b", 1, ()),
    ]
    assert "a: its finished result" in next(e.text for e in events if isinstance(e, Noted))
    assert (tmp_path / "a" / "file").read_bytes() == b"a"
    assert all(verify_receipt(str(tmp_path / name), None).is_result for name in "ab")


@pytest.mark.parametrize("moment", ["b", "verify b"])
def test_a_result_that_comes_while_a_stopped_run_is_saved_stays(tmp_path, two_outputs, moment):
    """The run was started again elsewhere, and was faster than what saves it here."""
    job = two_outputs("b")
    folder = Workspace.of_run("run-1").output_dir("b")
    results: list[Receipt] = []

    def complete(event):
        if isinstance(event, Transferred) and event.label == moment and not results:
            how: dict[str, Any] = {"run_id": "run-1", "facts": {}, "label": "other"}
            results.append(upload_tree(folder, str(tmp_path / "b"), None, **how))

    events: list[object] = []
    with listening(complete), listening(events.append):
        save_outputs(job, "run-1", StoreSettings(), {}, "Cancelled")

    assert len(results) == 1
    assert [event.missing for event in events if isinstance(event, Saved)] == [()]
    assert verify_receipt(str(tmp_path / "b"), None).is_result


@pytest.mark.parametrize(
    "change", [{"run_id": "run-2"}, {"state": "Cancelled"}, {"fingerprint": "0"}]
)
def test_a_tree_that_is_no_longer_what_was_proved_is_not_marked_as_a_result(
    tmp_path, two_outputs, change
):
    """Another process of the run may have written its own receipt while others were proved."""
    job = two_outputs("a", "b")
    receipt_file = tmp_path / "a" / RECEIPT

    def replace_receipt(event):
        if isinstance(event, Transferred) and event.label == "verify b":
            other = read_receipt(str(tmp_path / "a"), None).model_copy(update=change)
            receipt_file.write_text(other.model_dump_json())

    with listening(replace_receipt), pytest.raises(TreeChanged, match="retry"):
        upload_all(job, "run-1", StoreSettings(), {}, "Completed")

    assert not (tmp_path / "a" / SUCCESS).exists()


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


def test_what_was_uploaded_is_told_with_what_brought_it_and_how_it_was_proved(
    s3_place, tmp_path, monkeypatch, write_tree
):
    monkeypatch.setenv("TRAINJOB_WORKDIR", str(tmp_path / "runs"))
    outputs = [
        {"name": "there", "url": s3_place.url},
        {"name": "here", "url": str(tmp_path / "here")},
    ]
    job = TrainingJob.model_validate(make_job(tmp_path, outputs=outputs))
    for name in ("there", "here"):
        write_tree(Workspace.of_run("run-1").output_dir(name), {"a": b"1", "b": b"2"})

    reports = upload_all(job, "run-1", s3_place.settings, {}, "Completed")

    there, here = map(str, reports)
    assert there.startswith("there: 2 files, 2 B (curl), verified by etag")
    assert here == "here: 2 files, 2 B (local), verified by reading back"


@pytest.mark.parametrize(
    ("num_files", "num_read_back", "num_by_checksum", "said"),
    [
        (3, 0, 0, "etag"),
        (3, 0, 3, "checksum"),
        (3, 0, 1, "etag, 1 file by checksum"),
        (3, 1, 2, "checksum, 1 file by reading back"),
        (4, 1, 2, "etag, 2 files by checksum, 1 file by reading back"),
        (0, 0, 0, "etag"),
    ],
)
def test_a_report_of_an_upload_says_how_many_files_were_proved_how(
    num_files, num_read_back, num_by_checksum, said
):
    counts = {"num_read_back": num_read_back, "num_by_checksum": num_by_checksum}

    assert str(OutputReport("a", "s3://b/a", num_files, 6, **counts)).endswith(
        f"verified by {said}"
    )


def test_a_report_of_an_upload_says_what_was_only_looked_at():
    report = OutputReport("a", "s3://b/a", 3, 6, (), "s3fs", 1, "by looking")

    line = "a: 3 files, 6 B (s3fs), verified by etag, 1 file by reading back, claimed by looking"
    assert str(report) == line
