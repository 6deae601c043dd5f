"""Tell a Prefect server what trainjob has: block type, work pool, deployments and automations.

Running it again changes nothing that is already right. ``python -m deployments.register``
"""

import subprocess
import sys
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

from blocks.object_store import ObjectStore
from deployments.automations import default_dead_after_s, register_automations

HOME = Path(__file__).resolve().parent.parent
POOLS = ("cpu",)


def register() -> None:
    """Register block type, work pools, automations and the deployments of prefect.yaml.

    Raises:
        RuntimeError: If Prefect refuses a deployment; the message is Prefect's own.
    """
    ObjectStore.register_type_and_schema()
    with get_client(sync_client=True) as client:
        for name in POOLS:
            _create_pool(client, name)
        register_automations(client, default_dead_after_s())
    # prefect.yaml is read by Prefect's own command, which is the only one that reads all of it.
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"prefect deploy failed:\n{done.stdout}{done.stderr}")


def _create_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
    except ObjectAlreadyExists:
        return


if __name__ == "__main__":
    register()
