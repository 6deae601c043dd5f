"""What is said of folders that only one machine has, and what a run in a container refuses."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry

from deployments.work_pools import Kind
from flows.__main__ import main
from flows.local_places import KEPT, lost_places, place_warnings, refuse_lost_places
from flows.server_check import check_with_server
from flows.submitting import submit
from flows.training_job import training_job
from tests.jobs import make_job
from tests.submitting import cpu_deployment, job_file
from trainjob.errors import JobError, Problem
from trainjob.job import TrainingJob

STORE = {
    "algorithm": {"code": {"url": "git+https://host/code.git"}, "boot_file": "train.py"},
    "inputs": [{"name": "data_url", "url": "s3://bucket/data/"}],
    "outputs": [{"name": "train_url", "url": "s3://bucket/out/{run_id}/"}],
}
IN_VOLUME = "/var/lib/trainjob/results/{run_id}/"


def a_job(folder: Path, **changes: Any) -> TrainingJob:
    return TrainingJob.parse(make_job(folder, **changes))


@pytest.fixture
def in_container(
    request: pytest.FixtureRequest,
    prefect_server: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[SyncPrefectClient]:
    """Make this process that of a run in a pool of the kind that the test names."""
    with cpu_deployment(request.param) as client:
        deployment = client.read_deployment_by_name("training-job/cpu")
        run = submit(client, a_job(tmp_path), deployment).run
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(run.id))
        yield client


@pytest.mark.parametrize(
    ("url", "num_warnings"),
    [
        ("http://127.0.0.1:4200/api", 0),
        ("http://localhost:4200/api", 0),
        ("https://prefect.example.org/api", 3),
    ],
)
def test_folders_of_this_machine_are_told_if_the_server_is_on_another(
    tmp_path: Path, url: str, num_warnings: int
) -> None:
    with temporary_settings({PREFECT_API_URL: url}):
        warnings = list(place_warnings(a_job(tmp_path), "process", {}))

    assert len(warnings) == num_warnings
    assert not warnings or str(tmp_path / "code") in warnings[0]


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_submit_says_what_a_container_does_not_have_and_does_not_keep(
    prefect_server: str, tmp_path: Path, capsys, kind: Kind
) -> None:
    file = job_file(tmp_path, checkpoints={"url": f"file://{tmp_path}/c"})
    with cpu_deployment(kind):
        assert main(["submit", file]) == 0

    text = capsys.readouterr().out
    assert f"warning: inputs[0].url: {tmp_path}/data is a folder of the container" in text
    assert f"warning: algorithm.code.url: {tmp_path}/code is a folder of the container" in text
    for field, place in (
        ("outputs[0].url", f"{tmp_path}/out/{{run_id}}/"),
        ("checkpoints.url", f"file://{tmp_path}/c"),
    ):
        said = f"warning: {field}: {place} is a folder of the container of the run, and gone with"
        assert said in text
    assert ("below /var/lib/trainjob, which stays" in text) == (kind == "docker")


def test_schedule_and_rerun_say_it_too(prefect_server: str, tmp_path: Path, capsys) -> None:
    with cpu_deployment("docker") as client:
        deployment = client.read_deployment_by_name("training-job/cpu")
        old = submit(client, a_job(tmp_path), deployment).run
        assert main(["schedule", job_file(tmp_path), "--cron", "0 3 * * *"]) == 0
        scheduled = capsys.readouterr().out
        assert main(["rerun", str(old.id)]) == 0
        rerun = capsys.readouterr().out
        assert main(["schedule", "delete", "relative"]) == 0

    assert "warning: outputs[0].url: " in scheduled
    assert "warning: outputs[0].url: " in rerun


def test_nothing_is_said_of_stores_and_of_what_a_volume_keeps(
    prefect_server: str, tmp_path: Path, capsys
) -> None:
    with cpu_deployment("docker") as client:
        kept = job_file(tmp_path, **STORE | {"outputs": [{"name": "train_url", "url": IN_VOLUME}]})
        assert main(["submit", kept]) == 0
        by_template = capsys.readouterr().out
        base = client.read_deployment_by_name("training-job/cpu")
        own = DeploymentUpdate(job_variables={"env": {KEPT: "/data:/more"}})
        client.update_deployment(base.id, own)
        elsewhere = job_file(
            tmp_path, **STORE | {"outputs": [{"name": "train_url", "url": "/more/out/{run_id}/"}]}
        )
        assert main(["submit", elsewhere]) == 0
        by_deployment = capsys.readouterr().out

    assert ".url: " not in by_template
    assert ".url: " not in by_deployment


@pytest.mark.parametrize("in_container", ["docker", "kubernetes"], indirect=True)
def test_a_run_in_a_container_refuses_places_that_go_with_it(
    in_container: SyncPrefectClient, tmp_path: Path
) -> None:
    job = a_job(tmp_path, checkpoints={"url": "file:///ck/{run_id}/"}, logs={"url": "/l/{run_id}/"})

    found = [problem for problem in check_with_server(job).errors if problem.id == "place-lost"]
    with pytest.raises(JobError, match=r"deleted with it; use a store") as refused:
        refuse_lost_places(job, "job 'copy'")

    assert [p.field for p in found] == ["outputs[0].url", "checkpoints.url", "logs.url"]
    assert refused.value.problems == tuple(found)
    assert KEPT in found[0].do


@pytest.mark.parametrize("in_container", ["kubernetes"], indirect=True)
def test_nothing_is_trained_whose_results_would_be_lost_not_even_when_it_is_retried(
    in_container: SyncPrefectClient, tmp_path: Path
) -> None:
    run_id = UUID(os.environ["PREFECT__FLOW_RUN_ID"])

    states = []
    for _ in range(2):
        run = in_container.read_flow_run(run_id)
        states.append(run_flow(training_job, flow_run=run, return_type="state"))
        in_container.set_flow_run_state(run_id, AwaitingRetry(), force=True)

    for state in states:
        assert isinstance(state, State)
        assert state.is_failed()
        assert "a folder of the container of this run, which is deleted with it" in str(
            state.message
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("in_container", ["docker"], indirect=True)
def test_a_run_in_a_container_may_write_to_a_volume_that_is_named(
    in_container: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEPT, f"/data:{tmp_path}/")
    inside = a_job(tmp_path)
    beside = a_job(tmp_path, outputs=[{"name": "out", "url": f"{tmp_path}-2/out"}])
    escaping = a_job(tmp_path, outputs=[{"name": "out", "url": f"{tmp_path}/../out"}])

    assert lost_places(inside) == []
    assert [problem.field for problem in lost_places(beside)] == ["outputs[0].url"]
    assert [problem.field for problem in lost_places(escaping)] == ["outputs[0].url"]
    assert f"below /data or {tmp_path}" in lost_places(beside)[0].do


@pytest.mark.parametrize("in_container", ["docker", "process"], indirect=True)
def test_a_flow_that_a_run_calls_is_where_its_run_is(
    in_container: SyncPrefectClient, tmp_path: Path
) -> None:
    run = in_container.read_flow_run(UUID(os.environ["PREFECT__FLOW_RUN_ID"]))

    @flow
    def called() -> list[Problem]:
        return lost_places(a_job(tmp_path))

    @flow
    def of_a_person(job: Any) -> list[Problem]:
        return called()

    found = run_flow(of_a_person, flow_run=run)

    is_docker = in_container.read_work_pool("cpu").type == "docker"
    assert bool(found) == is_docker


@pytest.mark.parametrize("in_container", ["docker"], indirect=True)
def test_a_run_that_a_flow_asks_for_is_where_its_own_pool_is(
    in_container: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @flow
    def on_a_laptop() -> str:
        parameters = {"job": make_job(tmp_path)}
        run: Any = run_deployment("training-job/cpu", parameters=parameters, timeout=0)
        return str(run.id)

    monkeypatch.delenv("PREFECT__FLOW_RUN_ID")
    run_id = on_a_laptop()
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run_id)

    assert lost_places(a_job(tmp_path))


@pytest.mark.parametrize("in_container", ["docker"], indirect=True)
def test_a_kept_folder_is_known_however_many_slashes_it_begins_with(
    in_container: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEPT, "/data")
    urls = ["file:////data/out", "//data/out", "/data/out", "file:///data/out"]
    job = a_job(tmp_path, outputs=[{"name": f"o{i}", "url": url} for i, url in enumerate(urls)])

    assert lost_places(job) == []


@pytest.mark.parametrize("in_container", ["process"], indirect=True)
def test_a_process_may_write_to_its_machine(
    in_container: SyncPrefectClient, tmp_path: Path
) -> None:
    assert lost_places(a_job(tmp_path)) == []


@pytest.mark.parametrize("in_container", ["process"], indirect=True)
def test_a_process_refuses_to_write_into_the_folder_that_its_worker_deletes(
    in_container: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TemporaryDirectory(suffix="prefect", dir=tmp_path) as of_worker:  # as its worker does
        clone = Path(of_worker) / "trainjob"
        clone.mkdir()
        monkeypatch.chdir(clone)
        whole = {"name": "whole", "url": f"{tmp_path}/out"}
        relative = {"name": "relative", "url": "out/{run_id}/"}
        job = a_job(tmp_path, outputs=[whole, relative]).resolved(Path.cwd())

        found = lost_places(job)
        monkeypatch.chdir(tmp_path)

    assert [problem.field for problem in found] == ["outputs[1].url"]
    assert "which is deleted with it" in found[0].found


def test_outside_of_a_run_every_folder_stays(tmp_path: Path) -> None:
    assert lost_places(a_job(tmp_path)) == []
