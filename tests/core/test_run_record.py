"""What a run says at its end, gathered from its events."""

from pathlib import Path

import pytest

from trainjob.errors import TrainingFailed
from trainjob.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    MetricsSummarised,
    Noted,
    Saved,
    StageFailed,
)
from trainjob.job import TrainingJob
from trainjob.metrics.summary import MetricSummary
from trainjob.report import StageReport, report_markdown
from trainjob.run_record import RunRecord

JOB = {"name": "digits", "algorithm": {"code": {"url": "/c"}, "boot_file": "t.py"}}


def record_of(*events: Event) -> RunRecord:
    record = RunRecord("r1", "digits", TrainingJob.parse(JOB))
    for event in events:
        record.note(event)
    return record


def test_every_attempt_has_a_row() -> None:
    error = TrainingFailed("rank 1 was killed\nand more")
    record = record_of(
        AttemptStarted(0, None),
        AttemptEnded(0, 1.5, None, error, will_restart=True, log_dir="/l/0"),
        AttemptStarted(1, 120),
        AttemptEnded(1, 2.5, "finished", None, will_restart=False, log_dir="/l/1"),
    )

    page = report_markdown(record.report("Completed", None), record.job)
    page = page.replace(f"`{record.workspace.root}/", "WORK/")
    assert "| 1 | the start | 1.5 s | rank 1 was killed | WORK/logs/attempt-0` |" in page
    assert "| 2 | step 120 | 2.5 s | every rank finished | WORK/logs/attempt-1` |" in page


def test_attempts_of_a_killed_process_are_taken_over() -> None:
    killed = record_of(AttemptStarted(0, None))
    killed.workspace.root.mkdir(parents=True)
    killed.note(AttemptStarted(1, 40))
    record = RunRecord("r1", "digits")

    record.take_over(2)
    record.note(AttemptStarted(2, 80))
    record.note(AttemptEnded(2, 1.0, "finished", None, False, "/l"))

    attempts = record.report("Completed", None).attempts
    assert [(row.number, row.seconds, row.outcome, row.resumed_from) for row in attempts] == [
        (0, None, "its process was ended", None),
        (1, None, "its process was ended", 40),
        (2, 1.0, "every rank finished", 80),
    ]


def test_an_attempt_whose_flow_process_died_is_named_by_the_next_one() -> None:
    killed = record_of(AttemptStarted(0, None))
    records = killed.workspace.attempt_logs(0) / "records"
    records.mkdir(parents=True)
    killed.note(AttemptStarted(0, None))
    (records / "outcome.json").write_text('{"reason": "orphaned", "code": -15}')
    record = RunRecord("r1", "digits", TrainingJob.parse(JOB))

    record.take_over(1)

    report = record.report("Failed", "x")
    assert [row.outcome for row in report.attempts] == ["flow process died"]
    [note] = report.notes
    assert note.startswith("flow process died: The process of the flow was killed")
    assert "Look at the worker's log" in note


@pytest.mark.parametrize("outcome", ['{"reason": "finished", "code": 0}', "no JSON", "[]", None])
def test_of_an_attempt_whose_end_nobody_tells_it_is_said_that_it_has_ended(
    outcome: str | None,
) -> None:
    killed = record_of()
    records = killed.workspace.attempt_logs(0) / "records"
    records.mkdir(parents=True)
    killed.note(AttemptStarted(0, None))
    if outcome:
        (records / "outcome.json").write_text(outcome)
    record = RunRecord("r1", "digits")

    record.take_over(1)

    assert [row.outcome for row in record.attempts] == ["its process was ended"]


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"[]", b"null", b'"x"'])
def test_what_a_power_cut_has_left_of_the_files_of_a_run_keeps_it_from_nothing(
    content: bytes,
) -> None:
    folder = record_of().workspace.root
    folder.mkdir(parents=True)
    (folder / "attempts.json").write_bytes(content)
    (folder / "job.json").write_bytes(content)
    record = RunRecord("r1", "digits")

    record.take_over(1)
    record.job = record.read_job(JOB, "job")
    record.keep_job()

    assert [row.number for row in record.attempts] == [0]
    assert record.job.name == "digits"


def test_an_attempt_on_another_machine_has_a_row() -> None:
    record = RunRecord("r1", "digits", TrainingJob.parse(JOB))
    record.workspace.root.mkdir(parents=True)

    record.take_over(2)
    record.note(AttemptStarted(2, 80))

    report = record.report("Failed", None)
    assert [(row.number, row.outcome) for row in report.attempts] == [
        (0, "nothing of it is on this machine"),
        (1, "nothing of it is on this machine"),
        (2, "its process was ended"),
    ]
    page = report_markdown(report, record.job)
    assert "| 1 | unknown | unknown | nothing of it is on this machine | - |" in page


def test_a_machine_is_behind_until_it_begins_the_next_attempt() -> None:
    record = RunRecord("r1", "digits", TrainingJob.parse(JOB))
    record.workspace.start_attempt(())
    record.take_over(1)
    alone = record.is_behind

    record.take_over(2)
    elsewhere = record.is_behind
    record.workspace.start_attempt((), at_least=2)

    assert (alone, elsewhere, record.is_behind) == (False, True, False)


def test_an_attempt_that_was_broken_off_says_so() -> None:
    started, ended = AttemptStarted(0, None), AttemptEnded(0, 1.0, None, None, False, "/l")

    assert record_of(started, ended).report("Cancelled", "x").attempts[0].outcome == "interrupted"


def test_what_was_saved_and_what_is_missing_is_told() -> None:
    record = record_of(
        Saved("logs", "s3://b/l/", 1, 10, ("it is gone",)),
        Saved("checkpoints", "s3://b/c/", 3, 2048),
        Saved("logs", "s3://b/l/", 2, 10),
    )

    assert record.report("Cancelled", "stopped").saved == (
        "logs: 2 files, 10 B at s3://b/l/",
        "checkpoints: 3 files, 2 KiB at s3://b/c/",
    )
    missing = record_of(Saved("out", "/o", 0, 0, ("a.pt", "b.pt"))).report("Failed", "x")
    assert missing.saved == ("out: 0 files, 0 B at /o; MISSING: a.pt, b.pt",)


def test_what_was_never_written_is_not_told_as_saved() -> None:
    record = record_of(Saved("out", "/o", 0, 0))

    assert record.report("Cancelled", "x").saved == ("out: there was nothing to save",)


def test_a_note_is_told_once() -> None:
    record = record_of(Noted("the store is not ours"), Noted("the store is not ours"))

    page = report_markdown(record.report("Completed", None), record.job)

    assert page.count("- the store is not ours") == 1


def test_it_is_said_where_the_outputs_of_earlier_attempts_are() -> None:
    record = record_of()
    record.workspace.start_attempt(("out",))
    record.workspace.start_attempt(("out",))
    before = record.report("Cancelled", "x").notes
    (record.workspace.output_dir("out") / "model.pt").write_text("weights")
    record.workspace.start_attempt(("out",))

    notes = record.report("Cancelled", "x").notes

    assert before == ()
    assert notes == (
        "what earlier attempts had written to the outputs is in "
        f"{record.workspace.root / 'previous'}, a folder each",
    )


def test_the_metrics_are_a_table() -> None:
    summary = MetricSummary("loss", 0.5, 10, 0.4, 9, 2.0, 1)
    record = record_of(MetricsSummarised((summary,)))

    page = report_markdown(record.report("Completed", None), record.job)

    assert "| loss | 0.5 | 10 | 0.4 | 9 | 2 | 1 |" in page


def test_the_page_says_which_run_of_its_job_it_is_and_of_which_it_is_a_rerun() -> None:
    record = record_of()
    record.number, record.rerun_of = 1234, "r0"

    page = report_markdown(record.report("Completed", None), record.job)

    assert "| version | run 1,234 of the job digits |" in page
    assert "| rerun of | `r0` |" in page


def test_a_stage_that_is_tried_again_has_not_failed() -> None:
    failed = [StageFailed("train", 1.0, ValueError(), will_retry) for will_retry in (True, False)]

    assert len(record_of(*failed).report("Failed", "x").stages) == 1


def test_a_training_has_ended_well_when_its_stage_has() -> None:
    record = record_of(StageFailed("train", 1.0, ValueError(), will_retry=False))
    failed = record.has_trained
    record.stages.append(StageReport("train", 1.0, "every rank finished"))

    record.note(StageFailed("upload_outputs", 1.0, ValueError(), will_retry=False))

    assert (failed, record.has_trained) == (False, True)


def test_a_receipt_gets_json_values(tmp_path: Path) -> None:
    record = record_of(AttemptStarted(0, None), AttemptEnded(0, 1.0, "finished", None, False, "l"))
    record.facts["argv"] = ["t.py"]

    facts = record.receipt_facts("Completed")

    assert (facts["reason"], facts["attempts"], facts["argv"]) == ("Completed", 1, ["t.py"])
    assert facts["job"]["name"] == "digits"
