"""The check as a person types it and as a run makes it: errors, warnings, what was not checked."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from prefect.artifacts import Artifact

from flows.__main__ import main
from flows.check_job import check_training_job
from flows.training_job import training_job
from tests.jobs import COPY_SCRIPT, make_job, write_job
from trainjob.errors import JobError
from trainjob.job import TrainingJob

IGNORING = COPY_SCRIPT.replace("args = parser.parse_args()", "args, _ = parser.parse_known_args()")


def test_errors_warnings_and_what_was_not_checked_are_three_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_job(tmp_path, hyperparameters={"scale": 1.5})
    (tmp_path / "code" / "requirements.txt").write_text("no-such-package\n")

    assert main(["check", str(file)]) == 2

    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert lines[0] == f"{file}: 1 problem"
    assert lines[1].startswith("  hyperparameters.scale: asked for '--scale 1.5', found that argp")
    assert lines[1].endswith(" [script-refuses-argument]")
    assert lines[2] == f"  code: 2 files, {len(COPY_SCRIPT) + 16} B"
    assert lines[3] == "  warnings:"
    assert lines[4].endswith(" [requirement-not-met]")
    assert lines[5] == "  not checked:"
    assert "    whether the training fits the memory" in lines[6:]
    assert said.out == ""


def test_a_job_with_warnings_alone_may_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["check", str(write_job(tmp_path, IGNORING, hyperparameters={"momentum": 0.9}))]) == 0
    )

    said = capsys.readouterr().out
    assert "  warnings:\n    hyperparameters.momentum: asked for --momentum" in said
    assert "[script-ignores-argument]\n  not checked:\n" in said


def test_for_machines_every_problem_has_its_id_and_level(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(file: Path) -> Any:
        main(["check", "--json", str(file)])
        return json.loads(capsys.readouterr().out)

    good = check(write_job(tmp_path, IGNORING))
    bad = check(write_job(tmp_path, hyperparameters={"speed": 1}))
    unread = check(write_job(tmp_path, sise=1))

    assert good["problems"] == []
    assert good["command"].startswith("python train.py")
    assert [(p["id"], p["level"], p["field"]) for p in bad["problems"]] == [
        ("script-undeclared-argument", "error", "hyperparameters.speed")
    ]
    assert "whether the training fits the memory" in bad["not_checked"]
    assert [problem["id"] for problem in unread["problems"]] == ["unknown-key"]
    assert unread["not_checked"] == [
        "everything outside the job file, such as code, stores and machine: correct it first"
    ]


@pytest.mark.usefixtures("prefect_server")
def test_a_run_refuses_errors_and_logs_warnings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = make_job(tmp_path, hyperparameters={"speed": 1})
    (tmp_path / "code" / "requirements.txt").write_text("no-such-package\n")

    with pytest.raises(JobError, match=r"hyperparameters\.speed") as raised:
        training_job(TrainingJob.parse(refused))

    assert [problem.id for problem in raised.value.problems] == ["script-undeclared-argument"]
    assert any("[requirement-not-met]" in record.getMessage() for record in caplog.records)
    assert any("not checked: " in record.getMessage() for record in caplog.records)


@pytest.mark.usefixtures("prefect_server")
def test_the_flow_of_a_check_tells_all_and_runs_nothing(tmp_path: Path) -> None:
    wrong = make_job(tmp_path, hyperparameters={"speed": 1, "scale": 1.5})
    (tmp_path / "code" / "requirements.txt").write_text("no-such-package\n")

    with pytest.raises(JobError) as raised:
        check_training_job(TrainingJob.parse(wrong))
    findings = check_training_job(cast(TrainingJob, make_job(tmp_path)))

    assert [problem.id for problem in raised.value.problems] == [
        "script-undeclared-argument",
        "script-refuses-argument",
    ]
    assert findings.errors == []
    assert [problem.id for problem in findings.warnings] == ["requirement-not-met"]
    page = cast(Artifact, Artifact.get(key="check-copy")).data
    assert "| warning | requirement-not-met | algorithm.code |" in str(page)
    assert "- whether the training fits the memory" in str(page)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("prefect_server")
def test_a_missing_secret_is_told_with_all_other_findings(tmp_path: Path) -> None:
    changes: Any = {"secrets": {"API_KEY": "never-saved"}, "env": {"HF_TOKEN": "sent-long-ago"}}
    job = TrainingJob.parse(make_job(tmp_path, hyperparameters={"scale": 1.5}, **changes))

    with pytest.raises(JobError) as caught:
        check_training_job(job)
    state = training_job(job, return_state=True)

    fields = ["secrets.API_KEY", "hyperparameters.scale"]
    assert [problem.field for problem in caught.value.problems] == fields
    assert all(field in (state.message or "") for field in fields)
    page = cast(Artifact, Artifact.get(key="check-copy")).data
    assert "| warning | env-secret | env.HF_TOKEN |" in str(page)


@pytest.mark.usefixtures("prefect_server")
def test_the_command_tells_a_missing_secret_with_all_other_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets = {"API_KEY": "never-saved"}
    file = write_job(tmp_path, hyperparameters={"scale": 1.5}, secrets=secrets)

    assert main(["check", str(file)]) == 2

    said = capsys.readouterr().err
    assert "secrets.API_KEY: asked for the saved secret" in said
    assert "hyperparameters.scale: asked for '--scale 1.5'" in said
    assert "not checked:" in said


@pytest.mark.usefixtures("prefect_server")
def test_a_missing_store_is_told_with_all_other_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [{"name": "data_url", "url": str(tmp_path / "absent")}]
    inputs += [{"name": "ckpt_url", "url": "s3://models/net/"}]
    file = write_job(tmp_path, store="never-saved", inputs=inputs, launcher="torchrun")
    (tmp_path / "code" / "train.py").unlink()

    assert main(["check", str(file)]) == 2
    with pytest.raises(JobError) as caught:
        check_training_job(TrainingJob.load(file))
    state = training_job(TrainingJob.load(file), return_state=True)

    said = capsys.readouterr().err
    fields = ["store", "algorithm.code.url", "inputs[0].url"]
    assert [problem.field for problem in caught.value.problems] == fields
    for text in (said, state.message or ""):
        assert all(f"  {field}: asked for" in text for field in fields)
    assert "\n    inputs[1].url: the store could not be had\n" in said


@pytest.mark.usefixtures("prefect_server")
def test_the_flow_of_a_check_tells_the_mistakes_of_the_file_on_a_page(tmp_path: Path) -> None:
    wrong = make_job(tmp_path, name="Mistaken", sise=1, limits={"auto_stop": "soon"})

    with pytest.raises(JobError) as raised:
        check_training_job(cast(TrainingJob, wrong))

    assert len(raised.value.problems) == 2
    page = str(cast(Artifact, Artifact.get(key="check-mistaken")).data)
    assert "| error | unknown-key | sise |" in page
    assert "| error | wrong-value | limits.auto_stop |" in page
    assert "- everything outside the job file" in page
