"""What a rerun keeps of the job variables of its run, and what it says of the rest."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolUpdate

from deployments.work_pools import base_job_template
from flows.__main__ import main
from flows.training_job import training_job
from tests.submitting import IMAGE, LARGE, SMALL, cpu_deployment, job_file


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """A client of a server whose pool cpu makes pods, and has no worker."""
    with cpu_deployment("kubernetes") as found:
        yield found


@pytest.fixture
def elsewhere(client: SyncPrefectClient) -> Iterator[str]:
    """The name of another deployment on the same pool."""
    flow_id = client.create_flow(training_job)
    made = client.create_deployment(flow_id, "elsewhere", work_pool_name="cpu")
    yield "elsewhere"
    client.delete_deployment(made)


def made_run(client: SyncPrefectClient, capsys, *words: str) -> tuple[Any, list[str]]:
    """Run a command with --json; return the run it has made, and its warnings of variables."""
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    return client.read_flow_run(said["id"]), [w for w in said["warnings"] if "job variables" in w]


def scheduled_run(client: SyncPrefectClient, capsys, file: str, *words: str) -> Any:
    """Make the schedule `relative` of a job file; return a run of it."""
    assert main(["schedule", file, "--cron", "0 3 * * *", *words]) == 0
    capsys.readouterr()
    made = client.read_deployment_by_name("training-job/relative")
    return client.create_flow_run_from_deployment(made.id)


def test_cards_that_no_flavor_says_outlive_a_change_of_the_flavor(
    prefect_server: str, tmp_path: Path, capsys
) -> None:
    file = job_file(tmp_path, resources=SMALL)
    with cpu_deployment("docker") as client:
        template = base_job_template("docker", "npu", IMAGE)
        client.update_work_pool("cpu", WorkPoolUpdate(base_job_template=template))
        old, _ = made_run(client, capsys, "submit", file, "--job-variable", "cards=0-7")

        new, warnings = made_run(client, capsys, "rerun", str(old.id), "--set", LARGE)

    assert new.job_variables == {"cards": "0-7", "mem_limit": "32g"}
    assert warnings == []


def test_a_chosen_size_that_goes_with_another_flavor_is_told(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    file = job_file(tmp_path, resources=SMALL)
    old, _ = made_run(client, capsys, "submit", file, "--job-variable", "memory=6Gi")

    larger, told = made_run(client, capsys, "rerun", str(old.id), "--set", LARGE)
    without, untold = made_run(
        client, capsys, "rerun", str(old.id), "--set", "resources.flavor=null"
    )

    assert larger.job_variables == {"cpus": "8", "memory": "32Gi"}
    [warning] = told
    assert "the job variables memory of the run" in warning
    assert "6Gi" not in warning
    assert without.job_variables == {"memory": "6Gi"}
    assert untold == []


def test_a_rerun_of_a_schedule_without_its_flavor_is_as_large_as_the_pool_says(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    file = job_file(tmp_path, resources=SMALL)
    old = scheduled_run(client, capsys, file, "--job-variable", "image=lab:2")

    new, warnings = made_run(client, capsys, "rerun", str(old.id), "--set", "resources.flavor=null")

    assert main(["schedule", "delete", "relative"]) == 0
    assert new.deployment_id == old.deployment_id  # which has the image
    assert new.job_variables == {"cpus": "4", "memory": "16Gi"}
    assert warnings == []


def test_what_a_schedule_chose_is_named_when_another_deployment_reruns_it(
    client: SyncPrefectClient, elsewhere: str, tmp_path: Path, capsys
) -> None:
    base = client.read_deployment_by_name("training-job/cpu")
    everywhere = DeploymentUpdate(job_variables={"env": {"LEVEL": "high"}})
    client.update_deployment(base.id, everywhere)
    client.update_deployment(
        client.read_deployment_by_name(f"training-job/{elsewhere}").id, everywhere
    )
    file = job_file(tmp_path, resources=SMALL)
    old = scheduled_run(client, capsys, file, "--job-variable", "image=lab:2")

    new, warnings = made_run(client, capsys, "rerun", str(old.id), "--pool", elsewhere)

    assert main(["schedule", "delete", "relative"]) == 0
    assert new.job_variables == {"cpus": "2", "memory": "4Gi"}
    [warning] = warnings
    assert "the job variables image of the run" in warning
