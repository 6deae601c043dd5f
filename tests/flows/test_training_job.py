"""The flow: from a job to verified outputs, or to a reason."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from prefect import State
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.flow_engine import run_flow

from flows.training_job import training_job
from tasks.artifacts import artifact_key
from tests.jobs import make_job
from trainjob.errors import JobError, TrainingFailed
from trainjob.events import Event, StageFailed, listening
from trainjob.job import TrainingJob
from trainjob.report import RunReport
from trainjob.storage.receipt import verify_receipt
from trainjob.workspace import Workspace

pytestmark = pytest.mark.usefixtures("prefect_server")


def run(job: dict[str, Any]) -> State[Any]:
    state: State[Any] = training_job(TrainingJob.parse(job), return_state=True)
    return state


def artifact_of(run_id: str, job: str = "copy", kind: str = "job") -> str:
    artifact = cast(Artifact, Artifact.get(key=artifact_key(job, kind)))
    assert str(artifact.flow_run_id) == run_id
    return str(artifact.data)


@contextmanager
def environment_in(folder: Path) -> Iterator[None]:
    """As tests have it, for a run that several of them look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINJOB_WORKDIR", str(folder / "runs"))
        patch.setenv("TRAINJOB_REGISTRY", str(folder / "registry"))
        yield


@pytest.fixture(scope="module")
def completed(
    prefect_server: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunReport]:
    """The folder of a run that ended well, and what the flow returned."""
    folder = tmp_path_factory.mktemp("completed")
    job = make_job(folder, name="completed", tags=["night", "digits"])
    with environment_in(folder):
        return folder, training_job(TrainingJob.parse(job))


@pytest.fixture(scope="module")
def failed(
    prefect_server: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, State[Any]]:
    """The folder of a run whose script raises, and the state of the run."""
    folder = tmp_path_factory.mktemp("failed")
    script = "def model():\n    raise ValueError('no such layer')\nmodel()\n"
    with environment_in(folder):
        return folder, run(make_job(folder, script, name="failed"))


def test_a_completed_run_has_its_outputs_in_the_store_with_a_receipt(
    completed: tuple[Path, RunReport],
) -> None:
    out = completed[0] / "out"
    assert json.loads((out / "result.json").read_text()) == 42
    assert (out / "_SUCCESS").read_bytes() == b""
    receipt = json.loads((out / "_trainjob" / "receipt.json").read_text())
    assert [file["path"] for file in receipt["files"]] == ["result.json"]
    assert receipt["job"]["hyperparameters"] == {"scale": 2}
    assert receipt["inputs"][0]["fingerprint"].startswith("sha256:")
    assert list(receipt["stages"]) == [
        "stage_inputs",
        "fetch_code",
        "inject_hyperparameters",
        "train",
    ]
    assert verify_receipt(str(out), None).problems == ()


def test_the_flow_returns_its_report(completed: tuple[Path, RunReport]) -> None:
    folder, report = completed

    assert report.state == "Completed"
    assert report.outputs[0].url == str(folder / "out")
    assert [stage.name for stage in report.stages][-1] == "upload_outputs"


def test_the_run_is_named_and_tagged_after_its_job(completed: tuple[Path, RunReport]) -> None:
    with get_client(sync_client=True) as client:
        known = client.read_flow_run(UUID(completed[1].run_id))

    assert known.state is not None
    assert known.state.is_completed()
    assert known.name.startswith("completed-20")
    assert {"night", "digits"} <= set(known.tags)


def test_the_page_of_a_run_says_which_run_of_its_job_it_is(
    completed: tuple[Path, RunReport],
) -> None:
    report = completed[1]

    assert report.number == 1
    page = artifact_of(report.run_id, "completed")
    assert "| version | run 1 of the job completed |" in page


def test_the_page_of_a_run_says_what_ran_and_where_the_outputs_are(
    completed: tuple[Path, RunReport],
) -> None:
    folder, report = completed

    page = artifact_of(report.run_id, "completed")
    assert "# completed: Completed" in page
    assert str(folder / "out") in page
    assert "| train |" in page
    assert "--scale 2" in page
    links = artifact_of(report.run_id, "completed", kind="outputs")
    receipt = folder / "out" / "_trainjob" / "receipt.json"
    assert f"| receipt of train_url | `{receipt}` |" in links
    assert f"python -m flows download {report.run_id} FOLDER" in links


def test_copies_are_removed_after_a_completed_run_and_logs_stay(
    completed: tuple[Path, RunReport],
) -> None:
    folder, report = completed
    with environment_in(folder):
        workspace = Workspace.of_run(report.run_id)

    left = sorted(path.name for path in workspace.root.iterdir())
    assert left == ["attempts.json", "lock", "logs", "params.json"]
    assert "result 42" in (workspace.attempt_logs(0) / "rank-0.log").read_text()


def test_a_failing_script_fails_the_run_with_its_cause(failed: tuple[Path, State[Any]]) -> None:
    folder, state = failed

    assert state.is_failed()
    assert "ValueError: no such layer" in (state.message or "")
    with pytest.raises(TrainingFailed):
        state.result()
    assert not (folder / "out").exists()
    page = artifact_of(str(state.state_details.flow_run_id), "failed")
    assert "# failed: Failed" in page
    assert "ValueError: no such layer" in page
    assert "| stage_inputs |" in page


def test_a_failed_run_keeps_its_workspace_for_a_retry(failed: tuple[Path, State[Any]]) -> None:
    folder, state = failed
    with environment_in(folder):
        workspace = Workspace.of_run(str(state.state_details.flow_run_id))

    assert workspace.code.is_dir()
    assert workspace.input_dir("data_url").is_dir()


def test_a_job_that_cannot_run_fails_with_all_its_problems_and_creates_nothing(
    tmp_path: Path,
) -> None:
    job = make_job(tmp_path)
    job["inputs"][0]["url"] = str(tmp_path / "absent")
    job["algorithm"]["boot_file"] = "other.py"

    state = run(job)

    assert state.is_failed()
    message = state.message or ""
    assert "inputs[0].url" in message
    assert "algorithm.boot_file" in message
    with pytest.raises(JobError):
        state.result()
    assert not (tmp_path / "runs").exists()


def test_a_job_given_as_plain_values_is_explained_like_a_file() -> None:
    values = {
        "name": "plain",
        "algorithm": {"code": {"url": "x"}, "boot_file": "t.py"},
        "inputz": 1,
    }

    state = cast(State[Any], training_job(values, return_state=True))

    assert state.is_failed()
    assert "did you mean 'inputs'?" in (state.message or "")
    run_id = str(state.state_details.flow_run_id)
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(UUID(run_id)).name.startswith("plain-20")
    assert "# plain: Failed" in artifact_of(run_id, "plain")


def test_a_script_that_writes_nothing_to_its_output_fails_the_run_in_the_stage_of_outputs(
    tmp_path: Path,
) -> None:
    state = run(make_job(tmp_path, "print('done')"))

    assert state.is_failed()
    assert "train_url" in (state.message or "")
    page = artifact_of(str(state.state_details.flow_run_id))
    stages = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| upload")]
    assert stages == ["| upload_outputs"]
    assert "| failed |" in page


def test_a_page_that_cannot_be_saved_does_not_decide_how_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no artifacts today")

    monkeypatch.setattr("tasks.report.write_report", refuse)

    state = run(make_job(tmp_path))

    assert state.is_completed(), state.message
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_store_that_is_gone_for_a_moment_does_not_refuse_the_job(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check finds no store; by the time the stage has tried again, it is there."""
    bucket = s3.new_bucket()
    s3.put(bucket, "data/value.txt", b"4")
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    job = make_job(tmp_path, inputs=[{"name": "data_url", "url": f"s3://{bucket}/data/"}])

    def bring_back(event: Event) -> None:
        if isinstance(event, StageFailed):
            monkeypatch.setenv("AWS_ENDPOINT_URL", s3.env["AWS_ENDPOINT_URL"])

    with listening(bring_back):
        state = run(job)

    assert state.is_completed(), state.message
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == 8


def test_an_output_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")

    state = run(job)

    assert state.is_failed()
    assert "outputs[0].url" in (state.message or "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_run_id_in_an_output_url_keeps_runs_apart(tmp_path: Path) -> None:
    outputs = [{"name": "train_url", "url": str(tmp_path / "out" / "{run_id}")}]

    report = training_job(TrainingJob.parse(make_job(tmp_path, outputs=outputs)))

    assert [path.name for path in (tmp_path / "out").iterdir()] == [report.run_id]


def test_a_job_on_s3_runs_from_bucket_to_bucket(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    bucket = s3.new_bucket()
    job = make_job(tmp_path)
    s3.put(bucket, "data/value.txt", b"4")
    s3.put(bucket, "code/train.py", (tmp_path / "code" / "train.py").read_bytes())
    job["algorithm"]["code"]["url"] = f"s3://{bucket}/code/"
    job["inputs"][0]["url"] = f"s3://{bucket}/data/"
    job["outputs"][0]["url"] = f"s3://{bucket}/out/"

    state = run(job)

    assert state.is_completed(), state.message
    assert s3.get(bucket, "out/result.json") == b"8"
    assert "out/_SUCCESS" in s3.keys(bucket)


@pytest.mark.parametrize("deployment", ["other", "lab"])
def test_a_run_in_another_pool_than_that_of_its_flavor_says_so(
    deployment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flavor = {"name": "lab-a", "cores": 1, "memory_gib": 1, "pool": "lab"}
    job = make_job(tmp_path, "raise SystemExit(1)", resources={"flavor": flavor})
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="elsewhere", type="process"))
        flow_id = client.create_flow(training_job)
        base = client.create_deployment(flow_id, deployment, work_pool_name="elsewhere")
        flow_run = client.create_flow_run_from_deployment(base, parameters={"job": job})
        # As the process of a worker has it.
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(flow_run.id))

        state = run_flow(training_job, flow_run=flow_run, return_type="state")

        client.delete_deployment(base)
        client.delete_work_pool("elsewhere")
    assert isinstance(state, State)
    page = artifact_of(str(flow_run.id))
    is_said = "- the flavor lab-a (1c1g) is of the pool 'lab', and the run is in the pool" in page
    assert is_said == (deployment == "other")


def test_a_run_of_a_priced_flavor_says_its_limits_and_what_it_cost(tmp_path: Path) -> None:
    flavor = {"cores": 1, "memory_gib": 1, "price_per_hour": 3600}
    limits = {"auto_stop": "10m", "budget": 3000}
    job = make_job(tmp_path, resources={"flavor": flavor}, limits=limits)

    refused = make_job(tmp_path, resources={"flavor": flavor}, limits=limits | {"budget": 100})
    with pytest.raises(JobError, match=r"limits.budget: asked for at most 100.00, found a worst"):
        training_job(cast(TrainingJob, refused))  # as a deployment gives it
    report = training_job(TrainingJob.parse(job))

    assert report.spent is not None
    assert report.spent.by_stage["train"] == pytest.approx(report.attempts[0].seconds)
    assert report.spent.device_seconds == report.attempts[0].seconds
    [note] = [note for note in report.notes if note.startswith("limits of the ranks: ")]
    assert "; 1 GiB of memory " in note
    page = artifact_of(report.run_id)
    assert note in page
    assert f"| took | {report.spent} |" in page
    assert "| flavor | 1c1g |" in page
    rate = "3,600.00 an hour for 1 machine of 1c1g, 7,200.00 in 2 hours"
    assert f"| costs | {rate}; at most 660.00 for the trai" in page
    assert "| stage | time | cost | what it did |" in page
