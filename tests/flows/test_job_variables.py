"""``--job-variable``: what a pool is told of one run, and what of it a rerun keeps."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import WorkPool
from prefect.workers.process import ProcessJobConfiguration

from flows.__main__ import main
from flows.job_variables import environment_of, merged, read_variables
from flows.training_job import training_job
from tests.submitting import IMAGE, LARGE, SMALL, cpu_deployment, job_file
from trainjob.errors import TrainjobError


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """A client of a server whose pool cpu makes pods, and has no worker."""
    with cpu_deployment("kubernetes") as found:
        yield found


def submitted(client: SyncPrefectClient, capsys, *words: str) -> tuple[Any, list[str]]:
    """Run a command with --json; return the run that it has made, and what it warned of."""
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    return client.read_flow_run(said["id"]), said["warnings"]


def test_a_variable_is_read_as_the_pool_wants_it(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    words = ["image=lab:1.10", "cpus=8", "finished_job_ttl=60", "node_selector={zone: a}"]
    chosen = [word for text in words for word in ("--job-variable", text)]

    run, _ = submitted(client, capsys, "submit", job_file(tmp_path), *chosen)

    assert run.job_variables == {
        "image": "lab:1.10",
        "cpus": "8",
        "finished_job_ttl": 60,
        "node_selector": {"zone": "a"},
    }


def test_a_variable_goes_before_the_flavor(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    file = job_file(tmp_path, resources=SMALL)

    run, _ = submitted(client, capsys, "submit", file, "--job-variable", "memory=6Gi")

    assert run.job_variables == {"cpus": "2", "memory": "6Gi"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("imge=x", "the job variable 'imge', found that the pool 'cpu' (kubernetes) has none"),
        ("imge=x", "did you mean 'image'?"),
        ("finished_job_ttl=soon", "found 'soon' is not of type 'integer'"),
        ("image", "asked for the job variable 'image', found no value; write KEY=VALUE"),
        ("=x", "found no name; write KEY=VALUE"),
        ("image=", "asked for the job variable 'image=', found no value; see the form"),
        ("cpus=", "asked for the job variable 'cpus=', found no value; see the form"),
        ("env={HF_TOKEN: hf_0123456789}", "everyone who sees the run may read"),
    ],
)
def test_a_variable_that_the_pool_does_not_take_is_one_message(
    client: SyncPrefectClient, tmp_path: Path, capsys, text: str, expected: str
) -> None:
    assert main(["submit", job_file(tmp_path), "--job-variable", text]) != 0

    assert expected in capsys.readouterr().err


def test_a_schedule_keeps_its_variables_beside_those_of_its_deployment(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    base = client.read_deployment_by_name("training-job/cpu")
    own = {"env": {"PREFECT_CLIENT_MAX_RETRIES": "9"}, "namespace": "lab"}
    client.update_deployment(base.id, DeploymentUpdate(job_variables=own))
    chosen = ["--job-variable", "image=lab:2", "--job-variable", "env={LEVEL: high}"]

    file = job_file(tmp_path, resources=SMALL)
    assert main(["schedule", file, "--cron", "0 3 * * *", *chosen]) == 0

    made = client.read_deployment_by_name("training-job/relative")
    client.delete_deployment(made.id)
    assert made.job_variables == {
        "image": "lab:2",
        "namespace": "lab",
        "cpus": "2",
        "memory": "4Gi",
        "env": {"PREFECT_CLIENT_MAX_RETRIES": "9", "LEVEL": "high"},
    }


def test_a_rerun_has_what_was_chosen_for_its_run_in_the_ui(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    first, _ = submitted(client, capsys, "submit", job_file(tmp_path))
    chosen = {"image": "lab:3", "namespace": "lab", "memory": "64Gi", "env": {"LEVEL": "high"}}
    old = client.create_flow_run_from_deployment(
        first.deployment_id, parameters=first.parameters, job_variables=chosen
    )

    same, warnings = submitted(client, capsys, "rerun", str(old.id))
    other, _ = submitted(client, capsys, "rerun", str(old.id), "--job-variable", "image=lab:4")
    resized, _ = submitted(client, capsys, "rerun", str(old.id), "--set", LARGE)

    assert same.job_variables == chosen
    assert other.job_variables == chosen | {"image": "lab:4"}
    assert resized.job_variables == chosen | {"cpus": "8", "memory": "32Gi"}
    assert not [warning for warning in warnings if "job variables" in warning]


def test_a_rerun_without_its_flavor_is_as_large_as_the_pool_says(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    old, _ = submitted(client, capsys, "submit", job_file(tmp_path, resources=SMALL))

    without, _ = submitted(client, capsys, "rerun", str(old.id), "--set", "resources.flavor=null")

    assert not without.job_variables


def test_a_rerun_by_another_deployment_says_which_variables_it_leaves_behind(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    chosen = ["--job-variable", "image=lab:5", "--job-variable", "namespace=secret-project"]
    file = job_file(tmp_path, resources=SMALL)
    old, _ = submitted(client, capsys, "submit", file, *chosen)
    flow_id = client.create_flow(training_job)
    elsewhere = client.create_deployment(flow_id, "elsewhere", work_pool_name="cpu")

    new, warnings = submitted(client, capsys, "rerun", str(old.id), "--pool", "elsewhere")

    client.delete_deployment(elsewhere)
    assert new.job_variables == {"cpus": "2", "memory": "4Gi"}
    [warning] = [warning for warning in warnings if "job variables" in warning]
    assert "the job variables image, namespace of the run" in warning
    assert "--job-variable" in warning
    assert "secret-project" not in warning


def test_a_template_of_a_persons_own_may_refer_to_its_definitions(prefect_server: str) -> None:
    login = {"type": "object", "properties": {"user": {"type": "string"}}}
    template = {
        "job_configuration": {"login": "{{ login }}"},
        "variables": {
            "type": "object",
            "required": ["host"],
            "properties": {"host": {"type": "string"}, "login": {"$ref": "#/definitions/Login"}},
            "definitions": {"Login": login},
        },
    }
    wanted = WorkPoolCreate(name="of-a-person", type="process", base_job_template=template)
    with get_client(sync_client=True) as client:
        pool = client.create_work_pool(wanted)
        client.delete_work_pool(pool.name)

    assert read_variables(["login={user: lab}"], pool) == {"login": {"user": "lab"}}
    with pytest.raises(TrainjobError, match="found 3 is not valid"):
        read_variables(["login={user: 3}"], pool)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ({"$ref": "#/definitions/Gone"}, "PointerToNowhere"),
        ({"$ref": "#/properties/login"}, "refers to itself"),
        ({"type": "strng"}, "'strng' is not valid"),
    ],
)
def test_a_template_that_is_broken_is_told_with_its_pool(
    field: dict[str, Any], expected: str
) -> None:
    template = {"job_configuration": {}, "variables": {"properties": {"login": field}}}
    pool = WorkPool(
        name="of-a-person", type="process", base_job_template=template, default_queue_id=uuid4()
    )

    with pytest.raises(TrainjobError) as told:
        read_variables(["login=lab"], pool)

    assert "the form of the work pool 'of-a-person' (process) is broken" in str(told.value)
    assert expected in str(told.value)


@pytest.mark.parametrize("variables", [None, {"properties": None}])
def test_a_template_without_variables_takes_none(variables: dict[str, Any] | None) -> None:
    template = {"job_configuration": {}, "variables": variables}
    pool = WorkPool(
        name="of-a-person", type="process", base_job_template=template, default_queue_id=uuid4()
    )

    with pytest.raises(TrainjobError, match="has none of that name, but none at all"):
        read_variables(["login=lab"], pool)


def test_what_may_be_absent_is_made_so_by_no_value(prefect_server: str) -> None:
    with cpu_deployment("kubernetes") as client:
        pool = client.read_work_pool("cpu")

    assert read_variables(["scheduler_name="], pool) == {"scheduler_name": None}


def test_the_environment_of_a_run_is_laid_out_as_its_worker_does(prefect_server: str) -> None:
    template = {
        "job_configuration": {"env": {"A": "fixed", "B": "fixed", "C": "fixed", "D": "fixed"}},
        "variables": {
            "type": "object",
            "properties": {"env": {"type": "object", "default": {"B": "default"}}},
        },
    }
    pool = WorkPool(
        name="fixed", type="process", base_job_template=template, default_queue_id=uuid4()
    )
    layers = {"env.C": "dotted", "env.D": "dotted"}, {"env": {"D": "run"}}

    env = environment_of(pool, *layers)

    by_worker: Any = asyncio.run(
        ProcessJobConfiguration.from_template_and_values(template, merged(*layers))
    )
    assert env == by_worker.env == {"A": "fixed", "B": "default", "C": "dotted", "D": "run"}


def test_a_pool_of_processes_has_no_image(prefect_server: str, tmp_path: Path, capsys) -> None:
    with cpu_deployment():
        assert main(["submit", job_file(tmp_path), "--job-variable", f"image={IMAGE}"]) == 1

    assert "found that the pool 'cpu' (process) has none of that name, but command, env, " in (
        capsys.readouterr().err
    )
