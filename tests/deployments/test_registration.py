"""`python -m deployments.register` as a whole, on a real server: idempotent, with a line each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.schedules import CronSchedule

from deployments import register
from deployments.automations import automations
from deployments.work_pools import POOLS
from tests.pools import delete_pools

ROOT = Path(__file__).parents[2]
PULL = yaml.safe_load((ROOT / "prefect.yaml").read_text())["pull"]


def registered(server: str, **variables: str) -> list[str]:
    """Register everything, a store too, and return the lines that were printed."""
    keys = {"AWS_ACCESS_KEY_ID": "lab-key", "AWS_SECRET_ACCESS_KEY": "not-for-everyone"}
    env = os.environ | keys | {"PREFECT_API_URL": server} | variables
    command = [sys.executable, "-m", "deployments.register", "--store", "lab"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_registering_again_leaves_everything_and_what_a_person_set_in_the_ui(
    prefect_server: str,
) -> None:
    with get_client(sync_client=True) as client:
        delete_pools(client)
        first = registered(prefect_server)
        nightly = client.read_deployment_by_name("training-job/nightly")
        [schedule] = [found for found in nightly.schedules if found.slug == "nightly"]
        client.update_deployment_schedule(nightly.id, schedule.id, active=True)
        own = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 5 * * *"), active=False)
        # The UI gives them no slug.
        [added] = client.create_deployment_schedules(nightly.id, [own])
        cpu = client.read_deployment_by_name("training-job/cpu")
        [only] = client.create_deployment_schedules(cpu.id, [own])
        client.update_deployment(cpu.id, DeploymentUpdate(concurrency_limit=3, paused=True))

        # As of a checkout in another place; `make serve` registers with its own, too.
        second = registered(prefect_server, TRAINJOB_HOME="/x")

        after = client.read_deployment_by_name("training-job/nightly").schedules
        cpu = client.read_deployment_by_name("training-job/cpu")
        for automation in client.read_automations():
            client.delete_automation(automation.id)
        for deployment in client.read_deployments():
            if (deployment.entrypoint or "").startswith("flows."):
                client.delete_deployment(deployment.id)
        for document in client.read_block_documents_by_type("object-store"):
            client.delete_block_document(document.id)
        delete_pools(client)
    assert not schedule.active
    switches = {found.slug: (found.active, found.id) for found in after}
    assert switches["nightly"] == (True, schedule.id)
    of_file = {"nightly", "every-six-hours", "mondays"}
    assert [found.id for found in after if found.slug not in of_file] == [added.id]
    assert {slug: active for slug, (active, _) in switches.items() if slug != "nightly"} == {
        "every-six-hours": False,
        "mondays": False,
        str(added.id): False,
    }
    assert [found.id for found in cpu.schedules] == [only.id]
    assert cpu.pull_steps == PULL
    assert cpu.paused
    assert cpu.global_concurrency_limit is not None
    assert cpu.global_concurrency_limit.limit == 3
    things = [line[9:] for line in first]
    assert things == [line[9:] for line in second]
    assert {f"automation {automation.name!r}" for automation in automations(90)} <= set(things)
    assert "pool gpu (process)" in things
    assert "saved store 'lab'" in things
    assert {"deployment training-job/npu", "deployment check-job/check-npu"} <= set(things)
    assert {line.split()[0] for line in first} <= {"created", "left"}
    assert {line.split()[0] for line in second} == {"left"}


def test_a_pool_that_is_named_twice_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # where nobody answers

    assert register.main(["gpu=docker", "cpu=process", "gpu=process"]) == 1

    assert capsys.readouterr().err == (
        "asked for the pool 'gpu' of type docker, found that it is named again, of type process; "
        "name it once\n"
    )


def test_an_image_is_for_the_pools_that_are_named_or_for_all() -> None:
    words = [register._pool("gpu=kubernetes")]
    named = {spec.name: spec.image for spec in register._pools(words, "mine:2")}
    unnamed = {spec.name: spec.image for spec in register._pools([], "mine:2")}

    assert named == {"cpu": None, "gpu": "mine:2", "npu": None}
    assert unnamed == dict.fromkeys(POOLS, "mine:2")
