"""``python -m flows algorithm deploy``: the form and the deployment of a saved algorithm."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.schedules import CronSchedule

from flows.__main__ import main
from flows.schedules import MADE_FROM_ALGORITHM
from tests.jobs import make_job
from tests.submitting import cpu_deployment
from trainjob.job import TrainingJob

ALGORITHM = """\
algorithm:
  code: {url: code}
  boot_file: train.py
  hyperparameters:
    - {name: lr, type: float, default: 0.1, minimum: 0, maximum: 1, description: learning rate}
    - {name: optimizer, type: string, default: sgd, choices: [sgd, adam]}
    - {name: layers, type: integer, is_list: true, default: [8, 4], minimum: 1}
"""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """A client of a server that has the pool and the deployment cpu, and no worker."""
    with cpu_deployment() as found:
        yield found


def test_a_deployment_of_an_algorithm_has_a_field_for_each_hyperparameter(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    make_job(tmp_path)
    (tmp_path / "algorithm.yaml").write_text(ALGORITHM)
    assert main(["algorithm", "register", "layered", str(tmp_path / "algorithm.yaml")]) == 0
    assert main(["algorithm", "deploy", "layered"]) == 0
    made = client.read_deployment_by_name("training-job/layered")

    good = client.create_flow_run_from_deployment(made.id)
    job = made.parameters["job"]
    wrong = job | {"hyperparameters": {"lr": 2}}
    with pytest.raises(Exception, match="lr"):
        client.create_flow_run_from_deployment(made.id, parameters={"job": wrong})

    assert made.parameter_openapi_schema
    fields = made.parameter_openapi_schema["definitions"]["TrainingJob"]["properties"]
    own = fields["hyperparameters"]["properties"]
    assert own["lr"] == {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.1,
        "title": "lr",
        "description": "learning rate; a finite number from 0 to 1",
        "position": 0,
    }
    assert own["optimizer"]["enum"] == ["sgd", "adam"]
    assert own["layers"]["items"] == {"type": "integer", "minimum": 1}
    assert job["algorithm"] == "layered@1"
    assert good.parameters["job"]["hyperparameters"]["optimizer"] == "sgd"
    assert MADE_FROM_ALGORITHM in made.tags
    client.delete_deployment(made.id)


def test_the_untouched_form_of_an_algorithm_is_a_job_that_it_can_run(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    base = client.read_deployment_by_name("training-job/cpu")
    resources = {"device": "cpu", "flavor": None, "nodes": 1, "processes_per_node": 2}
    job = {"resources": resources, "launcher": "torchrun", "store": None}
    client.update_deployment(base.id, DeploymentUpdate(parameters={"job": job}))
    make_job(tmp_path)
    constraints = "  constraints: {devices: [cuda], multi_card: false}\n"
    (tmp_path / "algorithm.yaml").write_text(ALGORITHM + constraints)
    assert main(["algorithm", "register", "one-card", str(tmp_path / "algorithm.yaml")]) == 0

    assert main(["algorithm", "deploy", "one-card"]) == 1
    refused = capsys.readouterr().err
    assert main(["algorithm", "deploy", "one-card", "--pool", "cpu"]) == 0

    made = client.read_deployment_by_name("training-job/one-card")
    client.delete_deployment(made.id)
    assert "'training-job/gpu' (resources.device: cuda), found: cpu" in refused
    assert made.parameter_openapi_schema
    form = made.parameter_openapi_schema["definitions"]["Resources"]["properties"]
    assert (form["device"]["enum"], form["processes_per_node"]["maximum"]) == (["cuda"], 1)
    untouched = TrainingJob.parse(made.parameters["job"] | {"outputs": []})
    assert (untouched.resources.device, untouched.launcher) == ("cuda", "single")


def test_a_deployment_that_is_made_anew_keeps_what_a_person_has_set(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    make_job(tmp_path)
    (tmp_path / "algorithm.yaml").write_text(ALGORITHM)
    assert main(["algorithm", "register", "kept", str(tmp_path / "algorithm.yaml")]) == 0
    assert main(["algorithm", "deploy", "kept"]) == 0
    made = client.read_deployment_by_name("training-job/kept")
    own = DeploymentScheduleCreate(
        schedule=CronSchedule(cron="0 5 * * *"), active=False, parameters={"job": {"name": "own"}}
    )
    client.create_deployment_schedules(made.id, [own])
    limit = {"concurrency_limit": 3, "concurrency_options": {"collision_strategy": "CANCEL_NEW"}}
    client.update_deployment(made.id, DeploymentUpdate(**limit, paused=True))

    assert main(["algorithm", "deploy", "kept"]) == 0

    again = client.read_deployment_by_name("training-job/kept")
    client.delete_deployment(again.id)
    [schedule] = again.schedules
    assert again.id == made.id
    assert (schedule.schedule, schedule.active) == (own.schedule, False)
    assert schedule.parameters == own.parameters
    assert again.paused
    assert again.global_concurrency_limit is not None
    assert again.global_concurrency_limit.limit == 3
    assert again.concurrency_options is not None
    assert again.concurrency_options.collision_strategy == "CANCEL_NEW"


def test_the_form_of_an_algorithm_begins_with_the_device_of_its_pool(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    base = client.read_deployment_by_name("training-job/cpu")
    job = {"resources": {"device": "cuda"}, "store": None}
    client.update_deployment(base.id, DeploymentUpdate(parameters={"job": job}))
    make_job(tmp_path)
    (tmp_path / "algorithm.yaml").write_text(ALGORITHM)
    assert main(["algorithm", "register", "any-card", str(tmp_path / "algorithm.yaml")]) == 0

    assert main(["algorithm", "deploy", "any-card", "--pool", "cpu"]) == 0

    made = client.read_deployment_by_name("training-job/any-card")
    client.delete_deployment(made.id)
    assert made.parameter_openapi_schema
    form = made.parameter_openapi_schema["definitions"]["Resources"]["properties"]
    assert form["device"]["default"] == "cuda"
    assert made.parameters["job"]["resources"]["device"] == "cuda"


def test_the_untouched_form_of_an_algorithm_with_two_outputs_gives_each_its_place(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    base = client.read_deployment_by_name("training-job/cpu")
    outputs = [{"name": "train_url", "url": "/results/{run_id}/", "given_as": None}]
    job = {"resources": {"device": "cpu"}, "store": None, "outputs": outputs}
    client.update_deployment(base.id, DeploymentUpdate(parameters={"job": job}))
    make_job(tmp_path)
    two = "outputs: [{name: weights}, {name: tables}]\n"
    (tmp_path / "algorithm.yaml").write_text(ALGORITHM + two)
    assert main(["algorithm", "register", "two-outputs", str(tmp_path / "algorithm.yaml")]) == 0

    assert main(["algorithm", "deploy", "two-outputs"]) == 0

    made = client.read_deployment_by_name("training-job/two-outputs")
    client.delete_deployment(made.id)
    untouched = TrainingJob.parse(made.parameters["job"])
    assert {output.name: output.url for output in untouched.outputs} == {
        "weights": "/results/{run_id}/weights/",
        "tables": "/results/{run_id}/tables/",
    }
