"""A deployment or run of an older release: said in one message when a job is submitted to it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate

from flows.__main__ import main
from flows.training_job import training_job
from tests.jobs import write_job
from tests.pools import delete_pools


def older_schema() -> dict[str, Any]:
    """Return the schema of a release that knew no secrets."""
    schema: dict[str, Any] = training_job.parameters.model_dump()
    del schema["definitions"]["TrainingJob"]["properties"]["secrets"]
    return schema


def other_schema() -> dict[str, Any]:
    """Return the schema of a release that asked for a key which is gone."""
    schema: dict[str, Any] = training_job.parameters.model_dump()
    job = schema["definitions"]["TrainingJob"]
    job["properties"]["machine"] = {"type": "string"}
    job["required"].append("machine")
    return schema


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        found.create_work_pool(WorkPoolCreate(name="cpu", type="process"), overwrite=True)
        yield found
        delete_pools(found)


def deploy(client: SyncPrefectClient, schema: dict[str, Any]) -> None:
    """Make the deployment cpu, or make it one of another release."""
    client.create_deployment(
        client.create_flow(training_job),
        "cpu",
        work_pool_name="cpu",
        entrypoint="flows.training_job.training_job",
        parameter_openapi_schema=schema,
        enforce_parameter_schema=True,
    )


@pytest.mark.parametrize(
    ("how", "schema", "key"),
    [
        ("submit", older_schema(), "secrets"),
        ("rerun", older_schema(), "secrets"),
        ("schedule", older_schema(), "secrets"),
        ("submit", other_schema(), "machine"),
        ("rerun", other_schema(), "machine"),
    ],
    ids=["submit-older", "rerun-older", "schedule-older", "submit-other", "rerun-other"],
)
def test_a_deployment_of_another_version_is_one_message_that_says_what_to_do(
    client: SyncPrefectClient,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    how: str,
    schema: dict[str, Any],
    key: str,
) -> None:
    outputs = [{"name": "train_url", "url": str(tmp_path / "out/{run_id}")}]
    file = str(write_job(tmp_path, outputs=outputs))
    deploy(client, training_job.parameters.model_dump())
    assert main(["submit", file, "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["id"]
    deploy(client, schema)
    words = {
        "submit": ["submit", file],
        "rerun": ["rerun", run],
        "schedule": ["schedule", file, "--cron", "0 3 * * *"],
    }

    assert main(words[how]) == 1

    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert f"'{key}'" in said
    assert "make it anew, by `make register` or the `algorithm deploy` or `schedule` that" in said


def test_the_run_of_an_older_job_is_not_run_again_with_a_key_that_is_gone(
    client: SyncPrefectClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"name": "of-old", "machine": "big"}
    run = client.create_flow_run(training_job, parameters={"job": job})

    assert main(["rerun", str(run.id)]) == 2

    assert "machine: " in capsys.readouterr().err
