"""Which run a command takes, and what it makes of one that was retried, restarted or deleted."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Crashed, Failed, Running, Scheduled

from flows import run_logs
from flows.__main__ import main
from flows.delivery import RESTART_PENDING
from flows.run_facts import places_of
from flows.server_client import configured_server
from flows.training_job import training_job
from tasks.report import write_report
from tests.jobs import make_job
from trainjob.errors import TrainjobError
from trainjob.job import TrainingJob
from trainjob.report import RunReport
from trainjob.run_record import RunRecord


@flow(name="somebody-elses")
def of_others() -> None:
    """A flow that is not ours."""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def made(client: SyncPrefectClient) -> Iterator[Callable[..., FlowRun]]:
    """Make runs that wait for a worker; they are deleted afterwards, if they are still there."""
    runs: list[FlowRun] = []

    def make(job: str, name: str | None = None, of: Any = training_job, **more: Any) -> FlowRun:
        parameters = {"job": {"name": job, **more}} if of is training_job else {}
        run = client.create_flow_run(of, parameters=parameters, name=name, state=Scheduled())
        runs.append(run)
        return run

    yield make
    for run in client.read_flow_runs():
        if run.id in {known.id for known in runs}:
            client.delete_flow_run(run.id)


def state_of(client: SyncPrefectClient, run: FlowRun) -> str | None:
    state = client.read_flow_run(run.id).state
    return state.name if state else None


def test_a_run_of_another_flow_is_not_stopped(client, made, capsys) -> None:
    run = made("none", of=of_others)

    assert main(["stop", str(run.id)]) == 1

    assert "found no training job of this id" in capsys.readouterr().err
    assert state_of(client, run) == "Scheduled"


def test_a_run_that_is_about_to_start_again_is_stopped(client, made, capsys) -> None:
    run = made("killed-job")
    client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, Crashed(name=RESTART_PENDING), force=True)

    assert main(["stop", "killed-job"]) == 0

    assert state_of(client, run) == "Cancelled"
    assert ": Cancelled" in capsys.readouterr().out


def test_stop_by_the_name_of_a_job_takes_the_only_run_that_is_not_over(client, made) -> None:
    going_on = made("shared-job")
    over = made("shared-job")
    client.set_flow_run_state(over.id, Completed(), force=True)

    assert main(["stop", "shared-job"]) == 0

    assert state_of(client, going_on) == "Cancelled"
    assert state_of(client, over) == "Completed"


def test_stop_by_the_name_of_a_job_with_two_runs_names_both(client, made, capsys) -> None:
    runs = [made("busy-job"), made("busy-job")]

    assert main(["stop", "busy-job"]) == 1

    message = capsys.readouterr().err
    assert all(str(run.id) in message for run in runs)
    assert {state_of(client, run) for run in runs} == {"Scheduled"}


def test_a_run_that_was_deleted_meanwhile_is_one_message(client, made) -> None:
    run = made("deleted-job")
    client.delete_flow_run(run.id)

    with pytest.raises(TrainjobError, match="was deleted meanwhile"), configured_server() as asking:
        run_logs.follow(asking, run.id, print)


@pytest.mark.parametrize(
    ("password", "expected"), [("hush", "does not answer"), ("hu/s@h", "is no url")]
)
def test_the_password_of_the_server_is_not_told(capsys, password: str, expected: str) -> None:
    with temporary_settings({PREFECT_API_URL: f"http://me:{password}@127.0.0.1:1/api"}):
        assert main(["list"]) == 1

    error = capsys.readouterr().err
    assert "the Prefect server at 'http://127.0.0.1:1/api'" in error
    assert expected in error
    assert "hu" not in error


def test_show_of_a_second_pass_that_was_killed_tells_nothing_of_the_first(
    client, made, capsys
) -> None:
    run = made("retried-job")
    client.set_flow_run_state(run.id, Running(), force=True)
    failed = RunReport("retried-job", str(run.id), state="Failed", error="the disk was full")
    write_report(failed, None)
    client.set_flow_run_state(run.id, Failed(message="the disk was full"), force=True)
    assert main(["show", str(run.id), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    again: list[State[Any]] = [
        Scheduled(name="AwaitingRetry"),
        Running(),
        Crashed(message="killed"),
    ]
    for state in again:
        client.set_flow_run_state(run.id, state, force=True)

    assert main(["show", str(run.id), "--json"]) == 0

    second = json.loads(capsys.readouterr().out)
    assert first["error"] == "the disk was full"
    assert (second["state"], second["error"], second["message"]) == ("Crashed", None, "killed")


def test_a_second_pass_that_completes_has_its_report(client, made, tmp_path: Path, capsys) -> None:
    run = made("mended-job")
    client.set_flow_run_state(run.id, Running(), force=True)
    write_report(RunReport("mended-job", str(run.id), state="Failed", error="disk was full"), None)
    again: list[State[Any]] = [
        Failed(message="disk was full"),
        Scheduled(name="AwaitingRetry"),
        Running(),
    ]
    for state in again:
        client.set_flow_run_state(run.id, state, force=True)
    place = tmp_path / "results"
    urls = {"train_url": str(place)}
    mended = RunReport(
        "mended-job",
        str(run.id),
        state="Completed",
        store="lab",
        notes=("mended",),
        output_urls=urls,
    )
    write_report(mended, None)
    client.set_flow_run_state(run.id, Completed(), force=True)

    assert main(["show", str(run.id), "--json"]) == 0

    shown = json.loads(capsys.readouterr().out)
    assert (shown["error"], shown["notes"]) == (None, ["mended"])
    assert places_of(client, client.read_flow_run(run.id)) == (urls, "lab")


def test_outputs_of_a_cancelled_run_are_where_the_worker_put_them(
    client, made, tmp_path: Path, capsys
) -> None:
    """The job of the form names them relative to the folder of the worker."""
    data = make_job(tmp_path) | {"outputs": [{"name": "train_url", "url": "results/{run_id}"}]}
    run = made("cancelled-job", outputs=data["outputs"])
    record = RunRecord(str(run.id), "copy", TrainingJob.parse(data).resolved(tmp_path))
    write_report(record.report("Cancelled", "stopped"), record.job)

    main(["download", str(run.id), str(tmp_path / "here")])

    place = tmp_path / "results" / str(run.id)
    assert f"train_url: NOT downloaded: {place}" in capsys.readouterr().out


def test_outputs_of_which_nobody_knows_the_folder_are_told_as_such(client, made, capsys) -> None:
    run = made("lost-job", outputs=[{"name": "train_url", "url": "results/{run_id}"}])

    assert main(["download", str(run.id)]) == 1

    assert "relative to the folder in which its worker ran it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../up", "/tmp/else", "a\0b", ""])
def test_an_output_is_not_written_outside_of_the_folder(
    made, tmp_path: Path, capsys, name: str
) -> None:
    run = made("sly-job", outputs=[{"name": name, "url": str(tmp_path)}])

    assert main(["download", str(run.id), str(tmp_path / "here")]) == 1

    assert f"found an output of the name {name!r}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../up", "a/b", ".."])
def test_the_name_of_a_run_that_is_no_name_of_a_folder_is_refused(
    made, tmp_path: Path, capsys, name: str
) -> None:
    run = made("odd-job", name, outputs=[{"name": "train_url", "url": str(tmp_path)}])

    assert main(["download", str(run.id)]) == 1

    assert "give a FOLDER" in capsys.readouterr().err
