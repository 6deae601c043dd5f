"""``python -m flows submit | rerun``: what the server is given and what is said."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient

from deployments import serve
from deployments.work_queues import ensure_queues
from flows.__main__ import main
from tests.submitting import cpu_deployment, job_file


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    """A client of a server that has the pool and the deployment cpu, and no worker."""
    with cpu_deployment() as found:
        yield found


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
    as_make_serve = f"python {' '.join(serve._WORKER)} --pool cpu"
    assert f"in a checkout of trainjob, by `TRAINJOB_HOME=$PWD {as_make_serve}`" in text
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


def test_the_pool_of_the_flavor_goes_before_that_of_the_device(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    size = {"cores": 8, "memory_gib": 40, "card": "V100", "cards": 1}
    elsewhere = job_file(tmp_path, resources={"flavor": size | {"pool": "vision"}})
    assert main(["submit", elsewhere]) == 1
    refused = capsys.readouterr().err

    run = submitted(
        client, capsys, "submit", job_file(tmp_path, resources={"flavor": size | {"pool": "cpu"}})
    )

    assert "'training-job/vision' (the pool of the flavor 8c40g V100*1), found: cpu;" in refused
    assert run.work_pool_name == "cpu"


def test_a_wrong_job_is_not_submitted(client: SyncPrefectClient, tmp_path: Path, capsys) -> None:
    assert main(["submit", job_file(tmp_path, hyperparamters={})]) == 2

    assert "did you mean 'hyperparameters'?" in capsys.readouterr().err


def test_what_a_run_costs_is_said_by_whatever_starts_it(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    flavor = {"cores": 2, "memory_gib": 4, "price_per_hour": 1.5}
    file = job_file(tmp_path, resources={"flavor": flavor}, limits={"auto_stop": "2h"})

    assert main(["submit", file]) == 0
    submitted_text = capsys.readouterr().out
    assert main(["rerun", "relative", "--set", "limits.auto_stop=off"]) == 0
    rerun_text = capsys.readouterr().out
    assert main(["schedule", file, "--cron", "0 3 * * *"]) == 0
    schedule_text = capsys.readouterr().out
    assert main(["schedule", "delete", "relative"]) == 0
    capsys.readouterr()
    assert main(["submit", file, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)

    assert (
        "\ncost: 1.50 an hour for 1 machine of 2c4g, 3.00 in 2 hours; at most 3.02 for"
        in submitted_text
    )
    assert "\ncost: 1.50 an hour for 1 machine of 2c4g, 3.00 in 2 hours; with" in rerun_text
    assert (
        "cost: 1.50 an hour for 1 machine of 2c4g, 3.00 in 2 hours; at most 3.02 for"
        in schedule_text
    )
    assert "; so much for every run\n" in schedule_text
    assert facts["cost"].startswith("1.50 an hour")


def test_runs_of_a_job_are_counted_by_its_name(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    for name in ("counted", "counted-2", "COUNTED"):  # of which the first is in the others
        for _ in range(2):
            submitted(client, capsys, "submit", job_file(tmp_path, name=name))
    later = submitted(client, capsys, "submit", job_file(tmp_path, name="counted"))
    last = submitted(client, capsys, "rerun", str(later.id))

    assert main(["show", str(later.id)]) == 0
    text = capsys.readouterr().out
    assert main(["show", str(last.id), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)

    assert "  version  run 3 of the job counted\n" in text
    assert (facts["number"], facts["rerun_of"]) == (4, str(later.id))


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
    assert main(["show", str(new.id)]) == 0
    assert f"  rerun of {old.id}" in capsys.readouterr().out


def test_what_a_rerun_changes_does_not_depend_on_where_it_was_submitted(
    client: SyncPrefectClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "nums").mkdir()
    (tmp_path / "nums" / "value.txt").write_text("1")
    assert main(["dataset", "register", "nums", str(tmp_path / "nums")]) == 0
    capsys.readouterr()
    old = submitted(client, capsys, "submit", job_file(tmp_path))
    monkeypatch.chdir(tmp_path)

    paths = ["inputs[0].url=data2/", "outputs[0].url=out2/{run_id}", "logs.url=~/l/{run_id}"]
    moved = submitted(client, capsys, "rerun", str(old.id), *_set(*paths))
    latest = submitted(client, capsys, "rerun", str(old.id), *_set("inputs[0].dataset=nums"))

    job = moved.parameters["job"]
    assert job["inputs"][0]["url"] == f"{tmp_path}/data2/"
    assert job["outputs"][0]["url"] == f"{tmp_path}/out2/{{run_id}}"
    assert job["logs"]["url"] == f"{Path.home()}/l/{{run_id}}"
    [channel] = latest.parameters["job"]["inputs"]
    assert (channel["dataset"], channel["url"]) == ("nums@1", str(tmp_path / "nums"))
    assert channel["expect"].startswith("sha256:")


def _set(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def test_runs_are_listed_by_tag(client: SyncPrefectClient, tmp_path: Path, capsys) -> None:
    (tmp_path / "other").mkdir()
    run = submitted(client, capsys, "submit", job_file(tmp_path, tags=["paper", "lab"]))
    submitted(client, capsys, "submit", job_file(tmp_path / "other", tags=["lab"]))

    assert main(["list", "--tag", "paper", "--json"]) == 0

    [listed] = json.loads(capsys.readouterr().out)["runs"]
    assert listed["id"] == str(run.id)


def test_a_rerun_waits_where_its_run_waited(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    ensure_queues(client, "cpu")
    old = submitted(client, capsys, "submit", job_file(tmp_path), "--priority", "high")

    same = submitted(client, capsys, "rerun", str(old.id))
    dedicated = [
        "rerun",
        str(old.id),
        "--set",
        "resources.flavor={cores: 1, memory_gib: 1, pool: x}",
    ]

    assert same.work_queue_name == old.work_queue_name == "high"
    assert main(dedicated) == 1
    assert "'training-job/x' (the pool of the flavor 1c1g), found: cpu" in capsys.readouterr().err


def test_rerun_refuses_a_key_that_the_job_does_not_have(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    old = submitted(client, capsys, "submit", job_file(tmp_path))

    assert main(["rerun", str(old.id), "--set", "hyperparameters.scal=3"]) == 2

    assert "did you mean 'scale'?" in capsys.readouterr().err


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


def test_a_priority_puts_the_run_into_its_queue_if_the_pool_has_it(
    client: SyncPrefectClient, tmp_path: Path, capsys
) -> None:
    file = job_file(tmp_path)
    assert main(["submit", file, "--priority", "high"]) == 1
    refused = capsys.readouterr().err
    ensure_queues(client, "cpu")

    urgent = submitted(client, capsys, "submit", file, "--priority", "high")
    later = submitted(client, capsys, "rerun", str(urgent.id), "--priority", "low")
    usual = submitted(client, capsys, "submit", file)
    assert main(["schedule", file, "--cron", "0 3 * * *", "--priority", "low"]) == 0
    nightly = client.read_deployment_by_name("training-job/relative")
    client.delete_deployment(nightly.id)

    assert "asked for the priority 'high', found no queue 'high' in the work pool 'cpu'" in refused
    queues = [run.work_queue_name for run in (urgent, later, usual)]
    assert queues == ["high", "low", "default"]
    assert nightly.work_queue_name == "low"
