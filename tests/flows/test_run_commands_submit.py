"""``python -m flows submit | rerun | schedule``: what the server is given and what is said."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.__main__ import main
from flows.schedules import MADE_FROM_ALGORITHM, MADE_HERE
from flows.submitting import path_warnings
from flows.training_job import training_job
from tests.jobs import make_job
from tests.pools import delete_pools
from trainjob.job import TrainingJob


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """A client of a server that has the pool and the deployment cpu, and no worker."""
    with get_client(sync_client=True) as found:
        found.create_work_pool(WorkPoolCreate(name="cpu", type="process"), overwrite=True)
        flow_id = found.create_flow(training_job)
        base = found.create_deployment(
            flow_id,
            "cpu",
            work_pool_name="cpu",
            entrypoint="flows.training_job.training_job",
            parameter_openapi_schema=training_job.parameters.model_dump(),
            enforce_parameter_schema=True,
            parameters={"job": {"resources": {"device": "cpu"}, "store": None}},
        )
        yield found
        found.delete_deployment(base)
        delete_pools(found)


def job_file(folder: Path, **changes: Any) -> str:
    """Write a job whose paths are relative to its file."""
    make_job(folder)
    relative = {
        "name": "relative",
        "algorithm": {"code": {"url": "code"}, "boot_file": "train.py"},
        "inputs": [{"name": "data_url", "url": "data"}],
        "outputs": [{"name": "train_url", "url": "out/{run_id}/"}],
        "hyperparameters": {"scale": 2},
    }
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(relative | changes))
    return str(file)


def submitted(client: SyncPrefectClient, capsys, *words: str) -> Any:
    """Run a command with --json and return the run that it has made."""
    assert main([*words, "--json"]) == 0
    return client.read_flow_run(json.loads(capsys.readouterr().out)["id"])


def test_submit_gives_the_server_the_whole_job_with_absolute_paths(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    run = submitted(client, capsys, "submit", job_file(tmp_path, tags=["nightly"]))

    job = run.parameters["job"]
    assert job["algorithm"]["code"]["url"] == str(tmp_path / "code")
    assert job["outputs"][0]["url"] == f"{tmp_path}/out/{{run_id}}/"
    assert job["limits"]["grace"]
    assert run.name.startswith("relative-2")
    assert run.tags == ["nightly"]
    assert run.state.is_scheduled()


def test_submit_tells_of_a_pool_without_a_worker(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    assert main(["submit", job_file(tmp_path)]) == 0

    text = capsys.readouterr().out
    assert "warning: no worker of the pool 'cpu' is online" in text
    assert "python -m flows logs -f " in text


def test_submit_to_a_deployment_that_is_not_there_names_those_that_are(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    assert main(["submit", job_file(tmp_path, resources={"device": "cuda"})]) == 1
    by_device = capsys.readouterr().err
    assert main(["submit", job_file(tmp_path), "--pool", "elsewhere"]) == 1
    by_pool = capsys.readouterr().err

    assert "'training-job/gpu' (resources.device: cuda), found: cpu;" in by_device
    assert "'training-job/elsewhere' (--pool), found: cpu;" in by_pool


def test_a_wrong_job_is_not_submitted(client: SyncPrefectClient, tmp_path: Path, capsys) -> None:
    assert main(["submit", job_file(tmp_path, hyperparamters={})]) == 2

    assert "did you mean 'hyperparameters'?" in capsys.readouterr().err


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
    job = TrainingJob.parse(make_job(tmp_path))

    with temporary_settings({PREFECT_API_URL: url}):
        warnings = list(path_warnings(job))

    assert len(warnings) == num_warnings
    assert not warnings or str(tmp_path / "code") in warnings[0]


def test_rerun_fills_in_the_old_job_and_takes_changes(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    old = submitted(client, capsys, "submit", job_file(tmp_path))

    changes = ["--set", "hyperparameters.scale=0.5", "--set", "limits.auto_stop=2h"]
    new = submitted(client, capsys, "rerun", str(old.id), *changes)

    expected = old.parameters["job"]
    expected["hyperparameters"] = {"scale": 0.5}
    expected["limits"]["auto_stop"] = "2h"
    assert new.parameters["job"] == expected
    assert new.deployment_id == old.deployment_id


def test_rerun_refuses_a_key_that_the_job_does_not_have(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    old = submitted(client, capsys, "submit", job_file(tmp_path))

    assert main(["rerun", str(old.id), "--set", "hyperparameters.scal=3"]) == 2

    assert "did you mean 'scale'?" in capsys.readouterr().err


def test_schedule_makes_a_deployment_that_is_listed_replaced_and_deleted(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    file = job_file(tmp_path)
    assert main(["schedule", file, "--cron", "0 3 * * *"]) == 0
    assert main(["schedule", file, "--cron", "0 4 * * 1", "--timezone", "Europe/Berlin"]) == 0
    capsys.readouterr()

    assert main(["schedule", "list", "--json"]) == 0
    [listed] = json.loads(capsys.readouterr().out)["schedules"]
    made = client.read_deployment_by_name("training-job/relative")
    assert main(["schedule", "delete", "relative"]) == 0
    capsys.readouterr()
    assert main(["schedule", "list"]) == 0

    assert (listed["name"], listed["when"]) == ("relative", "0 4 * * 1 (Europe/Berlin)")
    assert listed["is_active"]
    assert made.parameters["job"]["algorithm"]["code"]["url"] == str(tmp_path / "code")
    assert (made.entrypoint, made.work_pool_name) == ("flows.training_job.training_job", "cpu")
    assert capsys.readouterr().out == "no schedules\n"


def test_a_schedule_that_is_replaced_keeps_its_deployment(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    """A run of it that goes on is started again from there, if its process is killed."""
    file = job_file(tmp_path)
    assert main(["schedule", file, "--cron", "0 3 * * *"]) == 0
    before = client.read_deployment_by_name("training-job/relative")
    client.pause_deployment(before.id)
    run = client.create_flow_run_from_deployment(before.id)

    assert main(["schedule", file, "--cron", "0 4 * * *"]) == 0

    after = client.read_deployment_by_name("training-job/relative")
    assert after.id == before.id == client.read_flow_run(run.id).deployment_id
    assert [item.schedule.model_dump()["cron"] for item in after.schedules] == ["0 4 * * *"]
    assert not after.paused
    capsys.readouterr()
    assert main(["schedule", "delete", "relative"]) == 0
    assert "runs that have begun stay" in capsys.readouterr().out


def test_what_a_schedule_is_made_from_does_not_make_it_another_thing(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    base = client.read_deployment_by_name("training-job/cpu")
    client.update_deployment(base.id, DeploymentUpdate(tags=["lab", MADE_FROM_ALGORITHM]))

    assert main(["schedule", job_file(tmp_path), "--cron", "0 3 * * *"]) == 0

    made = client.read_deployment_by_name("training-job/relative")
    client.delete_deployment(made.id)
    assert made.tags == ["lab", MADE_HERE]


def test_a_pool_may_be_named_as_prefect_names_its_deployment(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    run = submitted(client, capsys, "submit", job_file(tmp_path), "--pool", "training-job/cpu")

    assert run.work_pool_name == "cpu"


@pytest.mark.parametrize("name", ["a/b", "50%", "", "training-job/"])
def test_a_name_that_no_deployment_can_have_is_one_message(
    client: SyncPrefectClient, tmp_path: Path, capsys, name: str
) -> None:
    assert main(["submit", job_file(tmp_path), "--pool", name]) == 1

    assert "found a name that no deployment can have" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["more", "--cron", "0 3 * * *"], "found 'more' after it"),
        (["--cron", "0 3 * * *", "--name", "50%"], "found a name that no deployment can have"),
        (["--cron", "61 * * * *"], "asked for the schedule '61 * * * *'"),
        (["--cron", "0 3 * * *", "--timezone", "Mars/North"], "'Mars/North'"),
        (["--cron", "0 3 * * *", "--name", "cpu"], "this command has not made"),
        ([], "found no --cron"),
    ],
)
def test_a_wrong_schedule_is_one_message(
    client: SyncPrefectClient, tmp_path: Path, capsys, words: list[str], expected: str
) -> None:
    assert main(["schedule", job_file(tmp_path), *words]) == 1

    assert expected in capsys.readouterr().err


def test_runs_of_a_schedule_need_places_of_their_own(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    file = job_file(tmp_path, outputs=[{"name": "train_url", "url": "out"}], logs={"url": "logs"})

    assert main(["schedule", file, "--cron", "0 3 * * *"]) == 2

    message = capsys.readouterr().err
    assert "outputs[0].url: asked for a place for every run" in message
    assert "logs.url: asked for a place for every run" in message


def test_a_deployment_that_was_not_made_here_is_not_deleted(
    client: SyncPrefectClient, capsys
) -> None:
    assert main(["schedule", "delete", "cpu"]) == 1

    assert "this command has not made" in capsys.readouterr().err
    assert client.read_deployment_by_name("training-job/cpu")


ALGORITHM = """\
algorithm:
  code: {url: code}
  boot_file: train.py
  hyperparameters:
    - {name: lr, type: float, default: 0.1, minimum: 0, maximum: 1, description: learning rate}
    - {name: optimizer, type: string, default: sgd, choices: [sgd, adam]}
    - {name: layers, type: integer, is_list: true, default: [8, 4], minimum: 1}
"""


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
        "description": "learning rate",
        "position": 0,
    }
    assert own["optimizer"]["enum"] == ["sgd", "adam"]
    assert own["layers"]["items"] == {"type": "integer", "minimum": 1}
    assert job["algorithm"] == "layered@1"
    assert good.parameters["job"]["hyperparameters"]["optimizer"] == "sgd"
    assert MADE_FROM_ALGORITHM in made.tags
    client.delete_deployment(made.id)
