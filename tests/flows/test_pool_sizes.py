"""Runs in pods and containers are as large as the flavor of their job."""

from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from deployments.work_pools import Kind, PoolName, base_job_template
from flows.pool_sizes import size_variables
from trainjob.flavors import Flavor

FLAVOR = Flavor.parse("8C40G V100*2").model_copy(update={"disk_gib": 500})


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("kubernetes", "gpu", {"cpus": "8", "memory": "40Gi", "disk_size": "500Gi", "cards": 2}),
        ("kubernetes", "cpu", {"cpus": "8", "memory": "40Gi", "disk_size": "500Gi"}),
        ("docker", "gpu", {"mem_limit": "40g"}),
        ("process", "gpu", {}),
    ],
)
def test_a_run_is_as_large_as_its_flavor_where_the_template_of_its_pool_lets_it(
    prefect_server: str, kind: Kind, name: PoolName, expected: dict[str, Any]
) -> None:
    template = base_job_template(kind, name, "registry.example.com/trainjob:1")
    pool = WorkPoolCreate(name=f"size-{kind}-{name}", type=kind, base_job_template=template)
    with get_client(sync_client=True) as client:
        made = client.create_work_pool(pool)
        client.delete_work_pool(pool.name)

    assert size_variables(made, FLAVOR) == expected
    assert size_variables(made, None) == size_variables(None, FLAVOR) == {}


def test_the_disk_of_a_pod_is_that_of_its_pool_where_the_flavor_does_not_say_one(
    prefect_server: str,
) -> None:
    template = base_job_template("kubernetes", "cpu", "registry.example.com/trainjob:1")
    pool = WorkPoolCreate(name="size-disk", type="kubernetes", base_job_template=template)
    with get_client(sync_client=True) as client:
        made = client.create_work_pool(pool)
        client.delete_work_pool(pool.name)

    assert "disk_size" not in size_variables(made, Flavor.parse("2c4g"))
