"""prefect.yaml: what it offers is what the examples and the model say."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.work_pools import POOLS, PoolName
from trainjob.job import TrainingJob

ROOT = Path(__file__).parent.parent
DEPLOYMENTS: dict[str, dict[str, Any]] = {
    deployment["name"]: deployment
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
}
CPU, NIGHTLY = DEPLOYMENTS["cpu"], DEPLOYMENTS["nightly"]
CHECKS = {"cpu": "check", "gpu": "check-gpu", "npu": "check-npu"}


def test_the_default_job_is_the_digits_example() -> None:
    default = TrainingJob.parse(CPU["parameters"]["job"]).resolved(ROOT)

    assert default == TrainingJob.load(ROOT / "examples" / "digits" / "job.yaml")


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_the_default_job_gives_every_key(name: str) -> None:
    """A partial default makes the form of the UI choose a wrong variant."""
    given = DEPLOYMENTS[name]["parameters"]["job"]

    assert TrainingJob.parse(given).model_dump(mode="json") == given


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_the_entrypoint_is_dotted(name: str) -> None:
    """The path form imports the file as a module of its own and breaks `import tasks`."""
    is_check = name in CHECKS.values()
    flow = "check_job.check_training_job" if is_check else "training_job.training_job"

    assert DEPLOYMENTS[name]["entrypoint"] == f"flows.{flow}"


@pytest.mark.parametrize(("pool", "device"), [("cpu", "cpu"), ("gpu", "cuda"), ("npu", "npu")])
def test_the_default_job_of_a_pool_asks_for_the_devices_of_the_pool(pool: str, device: str) -> None:
    deployment = DEPLOYMENTS[pool]

    assert deployment["work_pool"]["name"] == pool
    assert deployment["parameters"]["job"]["resources"]["device"] == device


def test_every_deployment_runs_on_a_pool_that_is_registered() -> None:
    named = {deployment["work_pool"]["name"] for deployment in DEPLOYMENTS.values()}

    assert named == set(POOLS)


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_is_checked_where_it_would_run(pool: PoolName) -> None:
    """The worker of another pool has other devices, and would refuse every right job."""
    check, train = DEPLOYMENTS[CHECKS[pool]], DEPLOYMENTS[pool]

    assert check["work_pool"] == train["work_pool"]
    assert check["parameters"] == train["parameters"]


def test_a_schedule_is_offered_for_the_same_job() -> None:
    assert NIGHTLY["parameters"] == CPU["parameters"]


def test_nothing_trains_on_a_schedule_before_a_person_wants_it() -> None:
    schedules = [s for deployment in DEPLOYMENTS.values() for s in deployment.get("schedules", [])]

    assert [schedule["active"] for schedule in schedules] == [False] * 3
