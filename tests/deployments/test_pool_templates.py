"""The templates of pools, read by the classes of Prefect that make processes and pods of them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast
from uuid import uuid4

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from deployments.leave import LEAVE_TIMEOUT_S
from deployments.work_pools import KINDS, POOLS, Kind, PoolName, base_job_template
from flows.local_places import KEPT

_C = TypeVar("_C", bound=BaseJobConfiguration)
ROOT = Path(__file__).parents[2]
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())[
    "deployments"
]
IMAGE = "registry.example.com/trainjob:1"
CARDS = {"gpu": "nvidia.com/gpu", "npu": "huawei.com/Ascend910"}


@pytest.fixture(autouse=True)
def server_that_nobody_asks() -> Iterator[None]:
    """Let Prefect make a client, which it never uses, without starting a server."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        yield


def configured(configuration: type[_C], kind: Kind, pool: PoolName, **variables: Any) -> _C:
    """Return what a worker of the pool would start for a run."""
    return made_from(base_job_template(kind, pool, IMAGE), configuration, variables)


def made_from(template: dict[str, Any], configuration: type[_C], variables: dict[str, Any]) -> _C:
    """Return what a worker would start for a run by this template."""
    # Prefect's decorator of this method hides what it returns.
    made = cast(_C, asyncio.run(configuration.from_template_and_values(template, variables)))
    made.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="digits-1"))
    return made


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda found: found["name"])
def test_a_run_knows_what_the_automations_count_on_whatever_template_its_pool_has(
    deployment: dict[str, Any],
) -> None:
    variables = deployment["work_pool"]["job_variables"]
    template = ProcessWorker.get_default_base_job_template()

    made = made_from(template, ProcessJobConfiguration, variables)

    assert made.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert made.env["PREFECT_CLIENT_MAX_RETRIES"] == "9"
    assert made.env["PREFECT_LOGGING_EXTRA_LOGGERS"] == "trainjob"


def test_what_a_deployment_says_of_the_environment_is_added_to_that_of_its_pool() -> None:
    env = {"TRAINJOB_WORKDIR": "/data", "MINE": "1"}

    made = configured(BaseJobConfiguration, "docker", "npu", env=env)

    assert (made.env["MINE"], made.env["TRAINJOB_WORKDIR"]) == ("1", "/data")
    assert made.env["TRAINJOB_HOME"] == "/opt/trainjob"


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
@pytest.mark.parametrize("pool", POOLS)
def test_a_container_finds_saved_versions_on_the_server(kind: Kind, pool: PoolName) -> None:
    """A folder of its own has none, whatever the variables of its worker say."""
    made = configured(BaseJobConfiguration, kind, pool)

    assert made.env["TRAINJOB_REGISTRY"] == "prefect"


@pytest.mark.parametrize("pool", POOLS)
def test_a_pod_that_is_stopped_has_the_time_that_jobs_have_to_leave(pool: PoolName) -> None:
    job = base_job_template("kubernetes", pool)["job_configuration"]["job_manifest"]["spec"]

    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= LEAVE_TIMEOUT_S


@pytest.mark.parametrize("pool", POOLS)
def test_containers_of_a_machine_see_one_anothers_claims_to_cards(pool: PoolName) -> None:
    fields = base_job_template("docker", pool)["variables"]["properties"]
    shared = [PurePosixPath(volume.split(":")[1]) for volume in fields["volumes"]["default"]]

    made = configured(BaseJobConfiguration, "docker", pool)

    claims = PurePosixPath(made.env["TRAINJOB_CARDS_DIR"] or "")
    assert [folder for folder in shared if claims.is_relative_to(folder)]


def test_what_a_pool_calls_kept_is_on_a_volume_of_its_containers() -> None:
    fields = base_job_template("docker", "cpu")["variables"]["properties"]
    volumes = [volume.split(":")[1] for volume in fields["volumes"]["default"]]

    assert configured(BaseJobConfiguration, "docker", "cpu").env[KEPT] in volumes
    pod = base_job_template("kubernetes", "cpu")["variables"]["properties"]
    assert KEPT not in pod["env"]["default"]


def test_a_process_template_says_all_that_a_process_can_be_told() -> None:
    template = base_job_template("process", "cpu")

    assert set(template["job_configuration"]) == set(ProcessJobConfiguration.json_template())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", POOLS)
def test_every_field_of_a_pool_has_a_title_and_help(kind: Kind, pool: PoolName) -> None:
    fields = base_job_template(kind, pool)["variables"]["properties"]

    assert [name for name, field in fields.items() if not field.get("title")] == []
    assert [name for name, field in fields.items() if not field.get("description")] == []


@pytest.mark.parametrize("pool", POOLS)
def test_a_container_has_room_to_talk_and_the_cards_of_its_pool(pool: PoolName) -> None:
    docker = pytest.importorskip("prefect_docker.worker", reason="needs the extra docker")

    made = configured(docker.DockerWorkerJobConfiguration, "docker", pool, shm_size="2g")

    container = made.container_create_kwargs
    assert (made.image, container["shm_size"], container["init"]) == (IMAGE, "2g", True)
    gpus = [{"driver": "nvidia", "count": -1, "capabilities": [["gpu"]]}]
    assert container.get("device_requests") == (gpus if pool == "gpu" else None)
    assert container.get("runtime") == ("ascend" if pool == "npu" else None)
    assert made.env.get("ASCEND_VISIBLE_DEVICES") == ("0" if pool == "npu" else None)
    assert made.env["TRAINJOB_HOME"] == "/opt/trainjob"


def test_a_container_gets_the_network_memory_and_cores_that_it_is_given() -> None:
    docker = pytest.importorskip("prefect_docker.worker", reason="needs the extra docker")
    given = {"networks": ["lab"], "mem_limit": "32g", "cores": "0-3"}

    made = configured(docker.DockerWorkerJobConfiguration, "docker", "cpu", **given)

    assert made.networks == ["lab"]
    assert (made.mem_limit, made.memswap_limit) == ("32g", "32g")
    assert made.container_create_kwargs["cpuset_cpus"] == "0-3"


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_of_kubernetes_is_one_and_has_the_cards_of_its_pool(pool: PoolName) -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="needs the extra kubernetes")
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    given = {"namespace": "lab", "node_selector": {"zone": "a"}}

    made = configured(worker.KubernetesWorkerJobConfiguration, "kubernetes", pool, **given)

    job = made.job_manifest
    pod = job["spec"]["template"]["spec"]
    for misplaced in ("parallelism", "completions"):  # prefect-kubernetes wants them in the pod
        pod.pop(misplaced)
    validator.validate(job, "1.30", strict=True)
    [container] = pod["containers"]
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
    assert shm in pod["volumes"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    cards = {CARDS[pool]: 1} if pool in CARDS else {}
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "16Gi", **cards}
    assert (job["metadata"]["namespace"], pod["nodeSelector"]) == ("lab", {"zone": "a"})
    assert container["image"] == IMAGE
