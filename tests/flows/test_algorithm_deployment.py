"""``python -m flows algorithm deploy``: the form and the deployment of a saved algorithm."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort

from flows.__main__ import main
from flows.schedules import MADE_FROM_ALGORITHM
from tests.jobs import make_job
from tests.submitting import cpu_deployment, job_file
from trainjob.errors import JobError
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


DIGITS = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())
"""What the deployments of prefect.yaml are."""


def test_the_form_of_an_algorithm_has_nothing_of_the_job_that_its_base_is_for(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    base = client.read_deployment_by_name("training-job/cpu")
    [digits] = [d["parameters"] for d in DIGITS["deployments"] if d["name"] == "npu"]
    own = {
        "env": {"EPOCHS_SEEN": "3"},
        "secrets": {"TOKEN": "of-digits"},
        "metrics": [{"name": "loss", "regex": "loss ([0-9.]+)"}],
        "environment": {"requirements": True},
    }
    given = digits["job"] | own
    client.update_deployment(base.id, DeploymentUpdate(parameters={"job": given}))
    make_job(tmp_path)
    declared = "inputs: [{name: photos}, {name: more, required: false}]\n"
    (tmp_path / "algorithm.yaml").write_text(ALGORITHM + declared)
    assert main(["algorithm", "register", "resnet", str(tmp_path / "algorithm.yaml")]) == 0

    assert main(["algorithm", "deploy", "resnet", "--pool", "cpu"]) == 0

    made = client.read_deployment_by_name("training-job/resnet")
    client.delete_deployment(made.id)
    job = made.parameters["job"]
    assert set(job) == set(given)
    assert (set(job["limits"]), set(job["logs"])) == (set(given["limits"]), set(given["logs"]))
    assert (job["limits"]["auto_stop"], job["limits"]["stall"]) == (None, "5m")
    assert (job["env"], job["secrets"], job["metrics"]) == ({}, {}, [])
    assert job["logs"] == {"url": ".demo/logs/resnet/{run_id}/", "ranks": "0"}
    assert not job["environment"]["requirements"]
    assert [(i["name"], i["url"], i["dataset"]) for i in job["inputs"]] == [("photos", "", None)]
    assert [o["url"] for o in job["outputs"]] == [".demo/runs/resnet/{run_id}/"]
    with pytest.raises(JobError) as asked:
        TrainingJob.parse(job)
    assert [problem.field for problem in asked.value.problems] == ["inputs[0].url"]


@pytest.fixture
def deployed(client: SyncPrefectClient, tmp_path: Path) -> Iterator[Path]:
    """Give the folder of a job; version 1 of two of the algorithm forming has a deployment."""
    make_job(tmp_path)
    (tmp_path / "algorithm.yaml").write_text(ALGORITHM)
    for _ in range(2):
        assert main(["algorithm", "register", "forming", str(tmp_path / "algorithm.yaml")]) == 0
    assert main(["algorithm", "deploy", "forming@1"]) == 0
    yield tmp_path
    client.delete_deployment(client.read_deployment_by_name("training-job/forming").id)


def last_job(client: SyncPrefectClient) -> tuple[str, object]:
    """Return by what deployment the newest run is started, and what it is given as algorithm."""
    [run] = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
    assert run.deployment_id
    return client.read_deployment(run.deployment_id).name, run.parameters["job"]["algorithm"]


def test_a_job_file_is_submitted_to_the_deployment_of_its_algorithm(
    client: SyncPrefectClient, deployed: Path
) -> None:
    file = job_file(deployed, algorithm="forming@1", hyperparameters={"lr": 0.5})

    assert main(["submit", file, "--pool", "forming"]) == 0
    submitted = last_job(client)
    assert main(["schedule", file, "--pool", "forming", "--cron", "0 3 * * *"]) == 0
    scheduled = client.read_deployment_by_name("training-job/relative")
    assert main(["schedule", "delete", "relative"]) == 0

    assert submitted == ("forming", "forming@1")
    assert scheduled.parameters["job"]["algorithm"] == "forming@1"
    assert scheduled.parameters["job"]["hyperparameters"] == {"lr": 0.5}


@pytest.mark.parametrize("command", ["submit", "schedule"])
def test_a_job_of_another_algorithm_is_not_sent_to_the_deployment_of_one(
    deployed: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    other = job_file(deployed, algorithm="forming@2", hyperparameters={"lr": 0.5})
    words = [command, other, "--pool", "forming"]

    assert main(words + (["--cron", "0 3 * * *"] if command == "schedule" else [])) == 1
    said = capsys.readouterr().err
    own = job_file(deployed)
    assert main(["submit", own, "--pool", "forming"]) == 1
    of_own = capsys.readouterr().err

    assert said == (
        "asked for the deployment 'training-job/forming' to train with forming@2, found that it "
        "trains with forming@1 alone; give --pool with another one, such as cpu\n"
    )
    assert "to train with an algorithm that is not saved, found that it" in of_own


def submitted_to_form(deployed: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the id of a run of the deployment that was made from the algorithm."""
    file = job_file(deployed, algorithm="forming@1", hyperparameters={"lr": 0.5})
    assert main(["submit", file, "--pool", "forming", "--json"]) == 0
    run: str = json.loads(capsys.readouterr().out)["id"]
    return run


def test_a_rerun_with_another_algorithm_leaves_the_deployment_of_the_old_one(
    client: SyncPrefectClient, deployed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted_to_form(deployed, capsys)

    assert main(["rerun", run, "--set", "hyperparameters.lr=0.25"]) == 0
    same = last_job(client)
    assert main(["rerun", run, "--set", "algorithm=forming@2"]) == 0
    deployment, other = last_job(client)

    assert same == ("forming", "forming@1")
    assert deployment == "cpu"
    assert isinstance(other, dict)
    assert other["registered"] == "forming@2"


def test_a_job_that_removes_a_default_is_not_for_the_form_that_has_it(
    client: SyncPrefectClient, deployed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted_to_form(deployed, capsys)

    assert main(["rerun", run, "--set", "hyperparameters.lr=null"]) == 0
    [again] = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
    removing = job_file(deployed, algorithm="forming@1", hyperparameters={"lr": None})
    assert main(["submit", removing, "--pool", "forming"]) == 1

    assert again.deployment_id
    assert client.read_deployment(again.deployment_id).name == "cpu"
    assert again.parameters["job"]["hyperparameters"] == {"lr": None}
    assert capsys.readouterr().err == (
        "asked for the deployment 'training-job/forming' to train with hyperparameters.lr: null, "
        "found that its form takes no null; give --pool with another one, such as cpu\n"
    )
