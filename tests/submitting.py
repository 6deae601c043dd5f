"""A server that takes jobs which nobody runs, for tests of the commands that hand them over."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate

from deployments.work_pools import Kind, base_job_template
from flows.training_job import training_job
from tests.jobs import make_job
from tests.pools import delete_pools

IMAGE = "registry.example.com/trainjob:1"
"""What runs of a pool start in, unless somebody chooses otherwise."""

SMALL = {"flavor": {"cores": 2, "memory_gib": 4}}
"""Resources of a job."""
LARGE = "resources.flavor={cores: 8, memory_gib: 32}"
"""What a rerun is told by ``--set`` to have more."""


@contextmanager
def cpu_deployment(kind: Kind = "process") -> Iterator[SyncPrefectClient]:
    """Give a client of a server that has the pool and the deployment cpu, and no worker."""
    with get_client(sync_client=True) as found:
        template = base_job_template(kind, "cpu", None if kind == "process" else IMAGE)
        delete_pools(found)  # the kind of one that is there stays
        pool = WorkPoolCreate(name="cpu", type=kind, base_job_template=template)
        found.create_work_pool(pool)
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
